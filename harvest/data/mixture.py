"""Several datasets as one: documents drawn by weight, in an order that seed and weights decide."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import accumulate, count

import numpy as np

from ...shared.hashing import mix
from .documents import Document
from .reading import Reading

_TURN = 1 << 64
_GOLDEN = 0x9E3779B97F4A7C15
"""2^64 / φ: the multiples of it, modulo 2^64, lie as evenly as any sequence of points can."""


@dataclass(frozen=True)
class Part:
    """One dataset of a mixture.

    Attributes:
        documents: starts a reading of it.
        weight: its share of the documents, relative to the other parts.
        name: of it in messages; the domain of documents that have none.
        domain: of all its documents; None: their own, if they have one.
    """

    documents: Callable[[Reading], Iterable[Document]]
    weight: float
    name: str
    domain: str | None = None


def draws(weights: Sequence[float], seed: int) -> Iterator[int]:
    """The part that each document comes from.

    Document n is at the point (start + n / φ) mod 1, and the parts share the unit interval by weight. So at every n
    each part has its share of the first n documents, to within a few (the discrepancy of these points is O(log n / n)).
    Whole numbers alone decide: the order is the same on every machine.
    """
    total = sum(map(Fraction, weights))
    ends = [int(end / total * _TURN) for end in accumulate(map(Fraction, weights))]
    start = int(mix(np.array([seed], np.uint64))[0])
    for number in count():
        point = (start + number * _GOLDEN) % _TURN
        yield next(part for part, end in enumerate(ends) if point < end)


def mixed(parts: Sequence[Part], seed: int, reading: Reading) -> Iterator[Document]:
    """The documents of the mixture. It ends where a part has none left when its turn comes, so that shares hold; the
    reading then says which part and after how many documents."""
    sources = [iter(part.documents(reading)) for part in parts]
    taken = [0] * len(parts)
    for number in draws([part.weight for part in parts], seed):
        document, part = next(sources[number], None), parts[number]
        if document is None:
            counts = ", ".join(f"{one.name} {n:,}" for one, n in zip(parts, taken, strict=True))
            reading.ended = f"the mixture ends where {part.name} has no document left (documents so far: {counts})"
            return
        taken[number] += 1
        domain = part.domain if part.domain is not None else document.domain or part.name
        yield replace(document, domain=domain)
