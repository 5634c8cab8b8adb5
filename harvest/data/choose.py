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
    """Documents of at most `most` tokens, numbered anew: of longer ones the beginning, or with `split` all parts, as
    documents. Pieces of a document stay pieces, except those of parts."""
    if split and most is not None:
        yield from _split(documents, most)
        return
    index = -1
    for document in documents:
        index += not document.start
        if most is None:
            yield replace(document, index=index)
        elif document.start < most:
            room = most - document.start
            goes_on = document.more and len(document.tokens) < room
            ends = len(document.tokens) <= room and not document.more
            cut = _slice(document, 0, room)
            yield replace(cut, index=index, more=goes_on, close=document.close and (ends or goes_on))


def _split(documents: Iterable[TokenDocument], most: int) -> Iterator[TokenDocument]:
    """Every `most` tokens of a document as a document. Holds one part at a time."""
    index = part = 0
    held: TokenDocument | None = None
    for document in documents:
        if held is None or not document.start:
            held, part = replace(document, more=False), 0
        else:
            held = _joined(held, document)
        while len(held.tokens) > most:
            part += 1
            yield replace(_part(_slice(held, 0, most), part), index=index, close=False)
            index, held = index + 1, _slice(held, most, len(held.tokens))
        if not document.more:
            yield replace(_part(held, part + 1) if part else held, index=index)
            index += 1


def _slice(document: TokenDocument, start: int, stop: int) -> TokenDocument:
    flags = None if document.flags is None else document.flags[start:stop]
    return replace(document, tokens=document.tokens[start:stop], flags=flags)


def _part(document: TokenDocument, number: int) -> TokenDocument:
    return replace(document, source=f"{document.source} part {number}")


def _joined(held: TokenDocument, piece: TokenDocument) -> TokenDocument:
    flags = None
    if held.flags is not None and piece.flags is not None:
        flags = np.concatenate([held.flags, piece.flags])
    return replace(held, tokens=np.concatenate([held.tokens, piece.tokens]), flags=flags, close=piece.close)
