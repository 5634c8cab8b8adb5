"""The labelled rows that absorption and sparse probing look at, and the dense probes on them; one set for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from ...shared.cache import Cache, open_cache
from ...shared.cache.documents import DocumentRecord, read_documents
from ...shared.cache.heldout import split_rows as rows_of_heldout
from ...shared.errors import UsageError
from ..stream.batches import StreamBatch
from .fit import LinearProbes, ThresholdRule, train_probes
from .labels import FAMILIES, MAX_CATEGORIES, Labels, content_rows, draw, row_labels, token_texts
from .splits import Split, split_rows

if TYPE_CHECKING:
    from ..subject.subject import Subject

WORD = "word"
"""Column of a prompt set that says which prompts belong together: they are never on both sides of a split."""


@dataclass(frozen=True)
class Sample:
    """Which rows, under which labels; equal samples of one cache are computed once.

    Attributes:
        rows: how many, at most.
        families: of :data:`analyze.labels.FAMILIES`, or columns of the cache; None: all that make sense, of a cache of
            prompts its columns.
        splits: how many splits into rows to learn from and rows to score.
        min_positives: a label with fewer positive (or negative) rows is left out: its probe would learn noise.
    """

    rows: int
    families: tuple[str, ...] | None
    splits: int
    min_positives: int
    seed: int
    threshold: ThresholdRule = "tuned"
    shards: tuple[int, ...] | None = None
    heldout: float | None = None


@dataclass(frozen=True)
class Labelled:
    """n rows with everything that does not depend on a coder.

    Attributes:
        rows: [n] row numbers, ascending.
        x: [n, d] float32, the site that coders write to.
        labels: of those rows; only labels with enough positive and negative rows.
        left_out: names of the labels without.
        splits: each with the dense probes trained on it. A document (of prompts: a word) is never on both sides.
    """

    rows: NDArray[np.int64]
    x: Tensor
    labels: Labels
    left_out: tuple[str, ...]
    splits: tuple[tuple[Split, LinearProbes], ...]


def sampled_rows(cache: Cache, sample: Sample) -> NDArray[np.int64]:
    """At most `sample.rows` rows with text (of prompts: the rows they are about), drawn evenly. Ascending."""
    targets = [record.target_row for record in read_documents(cache.path) if record.target_row is not None]
    rows = np.unique(np.array(targets, np.int64)) if targets else content_rows(cache)
    if sample.shards is not None and len(sample.shards) < cache.layout.n_shards:
        rows = rows[np.isin(rows // cache.layout.shard_rows, sample.shards)]
    if sample.heldout is not None:
        rows = rows[rows_of_heldout(cache, sample.heldout).heldout[rows]]
    return draw(rows, sample.rows, sample.seed)


def labelled(cache: Cache, site: str, sample: Sample) -> Labelled:
    """The sampled rows of a site with labels and dense probes; remembered for the other coders of one analysis.

    Raises:
        DataError: the cache carries no tokenizer.
        UsageError: a family that this cache cannot have, or no label with enough rows.
    """
    return _labelled(cache.path, cache.identity, site, sample)


@lru_cache(maxsize=2)
def _labelled(path: Path, identity: str, site: str, sample: Sample) -> Labelled:
    cache = open_cache(path, identity=identity)
    rows = sampled_rows(cache, sample)
    documents = list(read_documents(path))
    columns = document_columns(documents)
    prompts = any(record.target_row is not None for record in documents)
    families = sample.families or tuple(dict.fromkeys([*usual_columns(columns), *(() if prompts else FAMILIES)]))
    labels = row_labels(cache, rows, token_texts(cache), families, columns)
    enough = labels.with_enough(sample.min_positives)
    docs = cache.doc_id.reshape(-1)[rows]
    groups = np.array([columns[WORD].get(int(doc), int(doc)) for doc in docs], str) if WORD in columns else docs
    splits = [split_rows(groups, sample.seed + number) for number in range(sample.splits)]
    enough = enough.columns([i for i in range(len(enough.names)) if _in_every_part(enough.values[:, i], splits)])
    kept = set(enough.names)
    if not kept:
        raise UsageError(
            f"none of the {len(labels.names)} labels has {sample.min_positives} positive and negative rows among the "
            f"{len(rows)} sampled",
            "take more rows, or lower min_positives",
        )
    x = cache.rows(site, rows).to(torch.float32)
    trained = tuple((split, train_probes(x, enough, split, threshold=sample.threshold)) for split in splits)
    return Labelled(rows, x, enough, tuple(name for name in labels.names if name not in kept), trained)


def _in_every_part(values: NDArray[np.int8], splits: Sequence[Split]) -> bool:
    """Whether both answers occur among the rows of every part of every split: a label may be that of few documents."""
    parts = [part for split in splits for part in (split.train, split.validation, split.test)]
    return all((values[part] == answer).any() for part in parts for answer in (0, 1))


def document_columns(documents: Sequence[DocumentRecord]) -> dict[str, dict[int, object]]:
    """Name → document → value, of the labels and, where documents have one, the domain."""
    columns: dict[str, dict[int, object]] = {}
    for record in documents:
        if record.domain:
            columns.setdefault("domain", {})[record.doc_id] = record.domain
        for name, value in record.labels.items():
            columns.setdefault(name, {})[record.doc_id] = value
    return columns


def usual_columns(columns: Mapping[str, Mapping[int, object]]) -> list[str]:
    """Columns whose values are categories: booleans or few texts. Numbers and identifiers are labels only if named."""
    usual = []
    for name, column in columns.items():
        values = {value for value in column.values() if value is not None}
        if all(isinstance(value, (bool, str)) for value in values) and 1 < len(values) <= MAX_CATEGORIES:
            usual.append(name)
    return usual


class SampledCodes:
    """Collects the codes of the sampled rows from the stream."""

    def __init__(self, subject: Subject, sample: Sample) -> None:
        self.wanted = sampled_rows(subject.cache, sample)
        self.rows: list[NDArray[np.int64]] = []
        self.codes: list[sparse.csr_array] = []

    def update(self, batch: StreamBatch) -> None:
        """Take in one shard."""
        mask = np.isin(batch.rows.row, self.wanted)
        if mask.any():
            self.rows.append(batch.rows.row[mask])
            self.codes.append(sparse.csr_array(batch.codes.rows(mask).csr()))

    def merge(self, other: SampledCodes) -> None:
        """Take in what was collected from other shards."""
        self.rows += other.rows
        self.codes += other.codes

    def matrix(self) -> sparse.csr_array:
        """[n, F] in the order of the sampled rows.

        Raises:
            ValueError: some sampled rows never came.
        """
        rows = np.concatenate(self.rows) if self.rows else np.zeros(0, np.int64)
        order = np.argsort(rows)
        if not np.array_equal(rows[order], self.wanted):
            raise ValueError(f"{len(self.wanted)} rows were sampled, and {len(rows)} have been seen")
        return sparse.csr_array(sparse.vstack(self.codes, format="csr")[order])
