"""Which documents are harvested in which order: a shuffle in a buffer, and long documents cut or split."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TypeVar

import numpy as np

from ...shared.hashing import mix
from .pack import TokenDocument

Item = TypeVar("Item")


def shuffled(items: Iterable[Item], buffer: int, seed: int) -> Iterator[Item]:
    """The items, each drawn from the next `buffer` ones that are left; 0 or 1: their own order.

    The order depends on the number of items, the buffer and the seed alone, on every machine.
    """
    if buffer < 2:
        yield from items
        return
    held: list[Item] = []
    drawn = 0
    for item in items:
        if len(held) < buffer:
            held.append(item)
            continue
        place = _draw(seed, drawn, buffer)
        drawn += 1
        yield held[place]
        held[place] = item
    while held:
        place = _draw(seed, drawn, len(held))
        drawn += 1
        held[place], held[-1] = held[-1], held[place]
        yield held.pop()


def _draw(seed: int, number: int, below: int) -> int:
    """A number from 0 to below - 1, by a fixed hash: a library's generator may change from version to version."""
    start = mix(np.array([seed], np.uint64))
    return int(mix(start + np.uint64(number))[0] % np.uint64(below))


def limited(documents: Iterable[TokenDocument], most: int | None, split: bool) -> Iterator[TokenDocument]:
    """Documents of at most `most` tokens: of longer ones the beginning, or with `split` all parts, as documents."""
    index = 0
    for document in documents:
        if most is None or len(document.tokens) <= most:
            yield replace(document, index=index)
            index += 1
            continue
        for part, start in enumerate(range(0, len(document.tokens) if split else most, most), 1):
            stop = start + most
            ends = stop >= len(document.tokens)
            yield replace(
                document,
                index=index,
                tokens=document.tokens[start:stop],
                flags=None if document.flags is None else document.flags[start:stop],
                source=f"{document.source} part {part}" if split else document.source,
                close=document.close and ends,
            )
            index += 1
