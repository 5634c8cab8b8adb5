"""The labelled rows of absorption and sparse probing, with their dense probes: one set for all coders of a cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from ...shared.cache import Cache, open_cache
from ...shared.cache.documents import DocumentRecord, read_documents
from ...shared.cache.heldout import split_rows
from ...shared.cache.rows import counted_rows
from ...shared.errors import UsageError
from ..stream.batches import StreamBatch
from .dense import LinearProbes, train_probes
from .labels import FAMILIES, MAX_CATEGORIES, Labels, content_rows, draw, row_labels, token_texts
from .splits import ProbeSplit, split_groups

WORD = "word"
"""Column of a prompt set: prompts with the same word are never in two parts of a split."""

_LOCK = Lock()


@dataclass(frozen=True)
class LabelSample:
    """Which rows to sample and which labels to give them; equal samples of one cache are computed once.

    Attributes:
        rows: maximum number of rows.
        families: of :data:`~.labels.FAMILIES`, or columns of the cache; None: all columns that are categories and,
            unless the cache holds prompts, all families.
        splits: number of splits into rows to learn from and rows to score.
        min_positives: a label with fewer positive or fewer negative rows is dropped: its probe would learn noise.
        shards: sample from these shards only; None: from all.
        heldout: sample only from the documents that training held out: their share (`data.heldout`); None: from all.
        left_out: sites whose rows that are not finite are no sample (Cache.left_out).
    """

    rows: int
    families: tuple[str, ...] | None
    splits: int
    min_positives: int
    seed: int
    shards: tuple[int, ...] | None = None
    heldout: float | None = None
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Labelled:
    """n rows with everything that does not depend on a coder.

    Attributes:
        rows: [n] row numbers, ascending.
        x: [n, d] float32, the site that coders write to.
        labels: of those rows; only labels with enough positive and negative rows.
        left_out: names of the labels that have too few.
        positives: number of positive rows of every label, including those left out.
        splits: each with the dense probes trained on it. A document (of prompts: a word) is never in two parts.
    """

    rows: NDArray[np.int64]
    x: Tensor
    labels: Labels
    left_out: tuple[str, ...]
    positives: Mapping[str, int]
    splits: tuple[tuple[ProbeSplit, LinearProbes], ...]


def sampled_rows(cache: Cache, sample: LabelSample) -> NDArray[np.int64]:
    """At most `sample.rows` rows with text (of prompts: their target rows), drawn uniformly. [n], ascending."""
    targets = [record.target_row for record in read_documents(cache.path) if record.target_row is not None]
    rows = np.unique(np.array(targets, np.int64)) if targets else content_rows(cache)
    rows = rows[counted_rows(cache.flags.reshape(-1))[rows]]
    if sample.shards is not None and len(sample.shards) < cache.layout.n_shards:
        rows = rows[np.isin(rows // cache.layout.shard_rows, sample.shards)]
    if sample.heldout is not None:
        rows = rows[split_rows(cache, sample.heldout).heldout[rows]]
    return draw(rows, sample.rows, sample.seed)


def labelled(cache: Cache, site: str, sample: LabelSample) -> Labelled:
    """The sampled rows of a site with labels and dense probes; cached for the other coders of one analysis.

    Raises:
        DataError: the cache has no tokenizer.
        UsageError: the cache has no such family, or no label has enough rows.
    """
    # Reports of several coders finish side by side: the first computes, the others wait for its result.
    with _LOCK:
        rows = replace(sample, splits=0, min_positives=0, left_out=cache.left_out)
        base = _base(cache.path, cache.identity, site, rows)
        splits = [split_groups(base.groups, sample.seed + number) for number in range(sample.splits)]
        enough = base.labels.with_enough(sample.min_positives)
        enough = enough.columns([i for i in range(len(enough.names)) if _in_every_part(enough.values[:, i], splits)])
        kept = set(enough.names)
        if not kept:
            raise UsageError(
                f"none of the {len(base.labels.names)} labels has {sample.min_positives} positive and "
                f"{sample.min_positives} negative rows among the {len(base.rows)} sampled",
                "sample more rows, or lower min_positives",
            )
        trained = tuple(
            (split, _probes(cache.path, cache.identity, site, rows, number, enough.names))
            for number, split in enumerate(splits)
        )
    left_out = tuple(name for name in base.labels.names if name not in kept)
    positives = dict(zip(base.labels.names, (base.labels.values == 1).sum(0).tolist(), strict=True))
    return Labelled(base.rows, base.x, enough, left_out, positives, trained)


@dataclass(frozen=True)
class _Base:
    """Sampled rows with all labels, and the group of each row."""

    rows: NDArray[np.int64]
    x: Tensor
    labels: Labels
    groups: NDArray[np.generic]


@lru_cache(maxsize=2)
def _base(path: Path, identity: str, site: str, sample: LabelSample) -> _Base:
    cache = open_cache(path, identity=identity)
    cache = cache.without_nonfinite([one for one in sample.left_out if one in cache.sites])
    rows = sampled_rows(cache, sample)
    documents = list(read_documents(path))
    columns = document_columns(documents)
    prompts = any(record.target_row is not None for record in documents)
    families = sample.families or tuple(dict.fromkeys([*usual_columns(columns), *(() if prompts else FAMILIES)]))
    labels = row_labels(cache, rows, token_texts(cache), families, columns)
    docs = cache.doc_id.reshape(-1)[rows]
    # Prompts about one word share its token: the word is their group. Elsewhere the document is.
    groups = np.array([columns[WORD].get(int(doc), int(doc)) for doc in docs], str) if WORD in columns else docs
    return _Base(rows, cache.rows(site, rows).to(torch.float32), labels, groups)


@lru_cache(maxsize=8)
def _probes(
    path: Path, identity: str, site: str, sample: LabelSample, number: int, names: tuple[str, ...]
) -> LinearProbes:
    """The dense probes of one split: those of absorption's first split are those of sparse probing."""
    base = _base(path, identity, site, sample)
    place = {name: i for i, name in enumerate(base.labels.names)}
    labels = base.labels.columns([place[name] for name in names])
    return train_probes(base.x, labels, split_groups(base.groups, sample.seed + number))


def _in_every_part(values: NDArray[np.int8], splits: Sequence[ProbeSplit]) -> bool:
    """Whether both answers occur in every part of every split; a label that few documents have may miss one."""
    parts = [part for split in splits for part in (split.train, split.validation, split.test)]
    return all((values[part] == answer).any() for part in parts for answer in (0, 1))


def document_columns(documents: Sequence[DocumentRecord]) -> dict[str, dict[int, object]]:
    """Name → document → value: the documents' labels and, where they have one, their domain."""
    columns: dict[str, dict[int, object]] = {}
    for record in documents:
        if record.domain:
            columns.setdefault("domain", {})[record.doc_id] = record.domain
        for name, value in record.labels.items():
            columns.setdefault(name, {})[record.doc_id] = value
    return columns


def usual_columns(columns: Mapping[str, Mapping[int, object]]) -> list[str]:
    """Columns whose values are categories: booleans or few texts. Numbers and identifiers become labels on request."""
    usual = []
    for name, column in columns.items():
        values = {value for value in column.values() if value is not None}
        if all(isinstance(value, (bool, str)) for value in values) and 1 < len(values) <= MAX_CATEGORIES:
            usual.append(name)
    return usual


class SampledCodes:
    """Collects the codes of the sampled rows from the stream.

    Args:
        cache: the cache that is streamed.
        sample: which of its rows.
    """

    def __init__(self, cache: Cache, sample: LabelSample) -> None:
        self.wanted = sampled_rows(cache, sample)
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
            ValueError: the stream did not contain all sampled rows.
        """
        rows = np.concatenate(self.rows) if self.rows else np.zeros(0, np.int64)
        order = np.argsort(rows)
        if not np.array_equal(rows[order], self.wanted):
            raise ValueError(f"expected the codes of {len(self.wanted)} sampled rows, found {len(rows)}")
        return sparse.csr_array(sparse.vstack(self.codes, format="csr")[order])
