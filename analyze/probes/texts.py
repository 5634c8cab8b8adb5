"""Documents as units: the mean activation and the mean code of each, and linear probes of these means.

As in SAEBench's evals/scr_and_tpp: a document is the mean over its first rows, without BOS and EOS. A decoder is linear
in its codes, so what latents add to a document's mean activation is their mean code times their decoder rows, and
setting them to 0 in every row takes just that away: nothing needs the rows again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from ...shared.cache import Cache, Flag
from ...shared.cache.documents import read_documents
from ...shared.config.registry import did_you_mean
from ...shared.errors import UsageError
from ..stream.batches import StreamBatch
from .dense import Doubles, Floats, fit_raw
from .labelled_rows import document_columns
from .labels import Labels

AT_ONCE = 8192
"""Rows whose activations are read at once."""

TEST_SHARE = 0.2
"""Share of a class's documents that score; the others fit the probes and choose the latents."""

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Texts:
    """D documents and the rows that stand for them.

    Attributes:
        documents: [D] ids, ascending.
        rows: [n] rows of the cache, ascending.
        place: [n] which of the documents each row belongs to.
    """

    documents: Ids
    rows: Ids
    place: Ids

    @cached_property
    def lengths(self) -> Ids:
        """Rows of each document [D]."""
        return np.bincount(self.place, minlength=len(self.documents)).astype(np.int64)

    def only(self, documents: Ids) -> Texts:
        """These documents alone (ids, ascending), with their rows."""
        inside = np.isin(self.documents[self.place], documents)
        return Texts(documents, self.rows[inside], np.searchsorted(documents, self.documents[self.place[inside]]))


def texts_of(cache: Cache, under_analysis: NDArray[np.bool_], tokens: int) -> Texts:
    """Every document with a row, and its rows: its first `tokens` tokens, without EOS and what is not under analysis.

    Args:
        under_analysis: [n_rows] neither padding nor at position 0.
    """
    usable = under_analysis & ((cache.flags & int(Flag.EOS)) == 0).reshape(-1)
    rows = np.flatnonzero(usable & (cache.pos_in_doc.reshape(-1) < tokens)).astype(np.int64)
    documents, place = np.unique(cache.doc_id.reshape(-1)[rows], return_inverse=True)
    return Texts(documents.astype(np.int64), rows, place.reshape(-1).astype(np.int64))


def columns_of(cache: Cache) -> list[str]:
    """What the documents are labelled with: `domain` if they have one, then their labels."""
    found = document_columns(list(read_documents(cache.path)))
    return sorted(found, key=lambda name: name != "domain")


def column_of(cache: Cache, name: str) -> dict[int, str]:
    """Document → its value in a column (`domain`, or a label), as text; documents without one are left out.

    Raises:
        UsageError: no document has such a column.
    """
    columns = document_columns(list(read_documents(cache.path)))
    if name not in columns:
        found = f"they have {', '.join(columns)}" if columns else "they have neither a domain nor labels"
        raise UsageError(
            f"the documents of {cache.path} have no {name!r}: {found}{did_you_mean(name, columns)}",
            "harvest with --set harvest.domain_column=COLUMN or --set harvest.label_columns=[COLUMN,COLUMN], "
            "columns of the dataset",
        )
    return {document: str(value) for document, value in columns[name].items() if value is not None and value != ""}


def by_value(documents: Ids, values: Mapping[int, str]) -> dict[str, Ids]:
    """Value → the documents that have it, the most frequent value first (of equals the first by alphabet)."""
    found: dict[str, list[int]] = {}
    for document in documents.tolist():
        if document in values:
            found.setdefault(values[document], []).append(document)
    order = sorted(found, key=lambda value: (-len(found[value]), value))
    return {value: np.array(found[value], np.int64) for value in order}


def parts(documents: Ids, n: int, rng: np.random.Generator) -> tuple[Ids, Ids]:
    """(documents to fit on, documents to score on): n of them at random, a fifth of these to score on, at least one."""
    drawn = rng.permutation(documents)[:n]
    scored = max(1, round(len(drawn) * TEST_SHARE))
    return drawn[scored:], drawn[:scored]


class MeanCodes:
    """Collects the mean code of each text from the stream."""

    def __init__(self, texts: Texts, n_latents: int) -> None:
        self.texts, self.n_latents = texts, n_latents
        self._parts: list[sparse.coo_array] = []

    def update(self, batch: StreamBatch) -> None:
        """Take in one shard."""
        first, last = np.searchsorted(self.texts.rows, [batch.rows.start, batch.rows.start + len(batch.rows)])
        if first == last:
            return
        mask = np.zeros(len(batch.rows), np.bool_)
        mask[self.texts.rows[first:last] - batch.rows.start] = True
        codes = batch.codes.rows(mask).csr().astype(np.float64)
        place = self.texts.place[first:last]
        inside, local = np.unique(place, return_inverse=True)
        shares = (1 / self.texts.lengths[place], (local.reshape(-1), np.arange(last - first)))
        means = (sparse.csr_array(shares, shape=(len(inside), last - first)) @ codes).tocoo()
        shape = (len(self.texts.documents), self.n_latents)
        self._parts.append(sparse.coo_array((means.data, (inside[means.row], means.col)), shape=shape))

    def merge(self, other: MeanCodes) -> None:
        """Take in what was collected from other shards."""
        self._parts += other._parts

    def matrix(self) -> sparse.csr_array:
        """[D, F] float64."""
        shape = (len(self.texts.documents), self.n_latents)
        if not self._parts:
            return sparse.csr_array(shape, dtype=np.float64)
        data, row, column = (
            np.concatenate([getattr(part, name) for part in self._parts]) for name in ("data", "row", "col")
        )
        return sparse.csr_array((data, (row, column)), shape=shape)  # a text of several shards is summed


def mean_activations(cache: Cache, site: str, texts: Texts) -> Tensor:
    """[D, d] float32, summed in float64."""
    total = torch.zeros(len(texts.documents), cache.spec(site).width, dtype=torch.float64)
    for start in range(0, len(texts.rows), AT_ONCE):
        some = slice(start, start + AT_ONCE)
        total.index_add_(0, torch.from_numpy(texts.place[some]), cache.rows(site, texts.rows[some]).double())
    return (total / torch.from_numpy(texts.lengths)[:, None]).float()


class TextProbes(NamedTuple):
    """P linear probes of mean activations: weight [P, d], bias [P]; a text is accepted where x·weight + bias > 0."""

    weight: Floats
    bias: Doubles

    def scores(self, x: Tensor) -> Doubles:
        """[D, P] of mean activations [D, d]."""
        found: Doubles = x.double().numpy() @ self.weight.T.astype(np.float64) + self.bias
        return found


def fit_texts(x: Tensor, labels: Labels, train: NDArray[np.bool_]) -> TextProbes:
    """A dense probe of each label: the optimum of its class-balanced cross-entropy on the texts of `train` [D]."""
    weight, bias = fit_raw(x[torch.from_numpy(train)], labels.values[train], labels.names)
    return TextProbes(weight, bias)


class Ablation:
    """What probes say of texts after latents were set to 0 in every row.

    Args:
        probes: P of them.
        x: [D, d] mean activations.
        codes: [D, F] mean codes of the same texts.
        decoder: [F, d] decoder rows in raw activation space.
    """

    def __init__(self, probes: TextProbes, x: Tensor, codes: sparse.csr_array, decoder: Floats) -> None:
        self.clean = probes.scores(x)
        self._codes = sparse.csc_array(codes)
        self.pull = decoder.astype(np.float64) @ probes.weight.T.astype(np.float64)
        """What a code of 1 adds to each probe's score [F, P]."""

    def without(self, latents: Ids) -> Doubles:
        """Scores [D, P] with these latents at 0."""
        scores: Doubles = self.clean - self._codes[:, latents] @ self.pull[latents]
        return scores


def strongest(effects: Doubles, most: int) -> Ids:
    """The latents with the largest effects [F], largest first; at most `most`, and none whose effect is not above 0."""
    order = np.argsort(-effects, kind="stable")[:most]
    return order[effects[order] > 0].astype(np.int64)
