"""Documents in which two labels are correlated, and documents in which they are balanced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ....shared.errors import UsageError
from ...probes.texts import Ids, by_value, parts
from .config import ScrConfig

FIRST, SECOND, BOTH = 0, 1, 2
"""Columns of `PairDocuments.labels`: the first label, the second, and both at once."""


@dataclass(frozen=True)
class PairDocuments:
    """D documents of the four combinations of two values of one label with two of another.

    Attributes:
        pair: of the first column, the value that is yes and the value that is no. values: of the second.
        documents: [D] ids, ascending.
        labels: [D, 3] 1, 0 or −1 for a document that is not in the set. FIRST and SECOND: the label, in a set where
            the other one is balanced. BOTH: 1 where both are yes, 0 where both are no, other documents are not in it.
        scores: [D] documents that score; the others fit.
    """

    pair: tuple[str, str]
    values: tuple[str, str]
    documents: Ids
    labels: NDArray[np.int8]
    scores: NDArray[np.bool_]


def pair_documents(
    documents: Ids, first: Mapping[int, str], second: Mapping[int, str], config: ScrConfig, seed: int
) -> list[PairDocuments]:
    """Draws the documents of each pair.

    Args:
        documents: those that have rows under analysis.
        first, second: document → value of each column.

    Raises:
        UsageError: no pair has enough documents of all four combinations, or one that is wanted has too few.
    """
    of_first, of_second = by_value(documents, first), by_value(documents, second)
    values = config.values or _two(list(of_second), "second")
    pairs = config.pairs or _twos(list(of_first)) or (_two(list(of_first), "first"),)
    rng = np.random.default_rng(seed)
    found, lacking = [], []
    for pair in pairs[: None if config.pairs else config.max_pairs]:
        cells = {
            (i, j): np.intersect1d(of_first.get(pair[i], _NONE), of_second.get(values[j], _NONE))
            for i in (0, 1)
            for j in (0, 1)
        }
        n = min(len(own) // (2 if i == j else 1) for (i, j), own in cells.items())
        if n >= config.min_documents:
            found.append(_drawn(pair, values, cells, min(n, config.documents), rng))
        else:
            lacking.append(_too_few(pair, values, cells, n, config))
    if lacking and (config.pairs or not found):
        raise UsageError(*lacking[0])
    return found


_NONE = np.zeros(0, np.int64)


def _two(names: Sequence[str], which: str) -> tuple[str, str]:
    if len(names) < 2:
        raise UsageError(
            f"scr: the {which} label has {len(names)} values among the documents, expected at least two",
            "name two labels: --set analyze.reports.scr.columns=[COLUMN,COLUMN]",
        )
    return names[0], names[1]


def _twos(names: Sequence[str]) -> list[tuple[str, str]]:
    """The first two, the next two and so on."""
    return list(zip(names[::2], names[1::2], strict=False))


def _drawn(
    pair: tuple[str, str],
    values: tuple[str, str],
    cells: Mapping[tuple[int, int], Ids],
    n: int,
    rng: np.random.Generator,
) -> PairDocuments:
    """n documents of each combination, and of those that are in the correlated set n more."""
    ids, labels, scores = [], [], []
    for (i, j), own in cells.items():
        order = rng.permutation(own)
        for more, half in enumerate((order[:n], order[n : 2 * n])[: 2 if i == j else 1]):
            label = (-1 if more else 1 - i, -1 if more else 1 - j, 1 - i if i == j else -1)
            for scored, some in enumerate(parts(half, n, rng)):
                ids.append(some)
                labels.append(np.tile(np.array(label, np.int8), (len(some), 1)))
                scores.append(np.full(len(some), bool(scored)))
    order = np.argsort(every := np.concatenate(ids))
    return PairDocuments(pair, values, every[order], np.concatenate(labels)[order], np.concatenate(scores)[order])


def _too_few(
    pair: tuple[str, str], values: tuple[str, str], cells: Mapping[tuple[int, int], Ids], n: int, config: ScrConfig
) -> tuple[str, str]:
    """(what was found and expected, what to do) where a combination has too few documents."""
    counts = ", ".join(f"{pair[i]} and {values[j]} {len(own)}" for (i, j), own in cells.items())
    least = config.min_documents
    return (
        f"scr: found documents: {counts}; expected at least {least} of each combination, and {2 * least} of "
        f"{pair[0]} and {values[0]} and of {pair[1]} and {values[1]}",
        "harvest more documents" + (f", or --set analyze.reports.scr.min_documents={n}" if n > 1 else ""),
    )
