"""Which documents stand for which class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ....shared.errors import UsageError
from ...probes.texts import Ids, by_value, parts
from .config import MIN_CLASSES, TppConfig


@dataclass(frozen=True)
class ClassDocuments:
    """D documents of C classes, as many of each.

    Attributes:
        names: [C] values of the column, the most frequent first.
        documents: [D] ids, ascending.
        of_class: [D] place of each document's class in names.
        scores: [D] documents that score; the others fit.
    """

    names: tuple[str, ...]
    documents: Ids
    of_class: Ids
    scores: NDArray[np.bool_]


def class_documents(documents: Ids, values: Mapping[int, str], config: TppConfig, seed: int) -> ClassDocuments:
    """Draws the documents of each class.

    Args:
        documents: those that have rows under analysis.
        values: document → value of the column.

    Raises:
        UsageError: fewer than three classes have enough documents, or one that is wanted has too few.
    """
    found = by_value(documents, values)
    enough = [name for name, own in found.items() if len(own) >= config.min_documents]
    names = tuple(enough[: config.max_classes]) if config.classes is None else tuple(dict.fromkeys(config.classes))
    if len(names) < MIN_CLASSES or not set(names) <= set(enough):
        raise UsageError(*_too_few(found, names, config))
    n = min(config.documents, *(len(found[name]) for name in names))
    rng = np.random.default_rng(seed)
    ids, of_class, scores = [], [], []
    for place, name in enumerate(names):
        for scored, some in enumerate(parts(found[name], n, rng)):
            ids.append(some)
            of_class.append(np.full(len(some), place, np.int64))
            scores.append(np.full(len(some), bool(scored)))
    order = np.argsort(every := np.concatenate(ids))
    return ClassDocuments(names, every[order], np.concatenate(of_class)[order], np.concatenate(scores)[order])


def _too_few(found: Mapping[str, Ids], names: tuple[str, ...], config: TppConfig) -> tuple[str, str]:
    """(what was found and expected, what to do) where a class has too few documents."""
    counts = {name: len(own) for name, own in found.items()}
    wanted = list(names) if config.classes is not None else list(counts)[:MIN_CLASSES]
    least = min((counts.get(name, 0) for name in wanted), default=0) if len(wanted) >= MIN_CLASSES else 0
    listed = ", ".join(f"{name} {count}" for name, count in list(counts.items())[:12]) or "none"
    return (
        f"tpp: found documents of {config.column}: {listed}; expected at least {config.min_documents} of "
        f"{'three classes' if config.classes is None else 'each of ' + ', '.join(names)}",
        "harvest more documents" + (f", or --set analyze.reports.tpp.min_documents={least}" if least > 1 else ""),
    )
