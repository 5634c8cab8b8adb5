"""The subject of an analysis: one run (or control) on one cache."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ...shared.cache import Cache
from ...shared.cache.documents import domains_of
from ...shared.cache.heldout import split_rows
from ...shared.cache.rows import rest_rows
from ...shared.cache.vocabulary import Vocabulary
from ...shared.coders import Coder
from ...shared.runs.explanations import Explanations
from ..stream.batches import CoderSites, ShardRows
from .geometry import Geometry

SCRATCH = Path(tempfile.gettempdir())
"""Where a subject's temporary files lie unless another folder is given."""


@dataclass(frozen=True)
class Subject:
    """One run (or control) under analysis: everything that a report reads besides the stream.

    Attributes:
        name: the run's name; that of a control says what kind it is.
        role: a control is measured for comparison only.
        trained: a run's coder as it is; False: as it was before the first step, and the page does not list its latents.
        coder: in evaluation mode, on `device`.
        cache: the cache under analysis.
        source: site that the coder reads.
        target: site that the coder reconstructs.
        vocabulary: of the cache's tokenizer.
        shards: shards of the cache that the analysis reads.
        device: where codes are computed.
        seed: of all sampling.
        heldout: analyse only the documents that training held out: their share (`data.heldout` of the run); None: all
            documents.
        trained_on: the cache that the coder was trained on, which may be another one; None: not available.
        measured: what training measured on this cache's held-out documents: `fvu` and its twins by key; empty where it
            held none out, or trained elsewhere. Of a control `fvu` alone, as it was before the first step.
        explanations: labels of its latents (`pipeline explain`); None: it has none.
        scratch: folder for files that are needed only during the analysis.
    """

    name: str
    role: Literal["run", "control"]
    coder: Coder
    cache: Cache
    source: str
    target: str
    vocabulary: Vocabulary
    shards: tuple[int, ...]
    device: str = "cpu"
    seed: int = 0
    heldout: float | None = None
    trained_on: Cache | None = None
    measured: Mapping[str, Any] = field(default_factory=dict)
    explanations: Explanations | None = None
    scratch: Path = SCRATCH
    trained: bool = True

    @property
    def n_latents(self) -> int:
        """F."""
        return self.coder.n_latents

    @property
    def n_positions(self) -> int:
        """Length of a sequence of the cache."""
        return self.cache.ctx

    @cached_property
    def w_dec(self) -> NDArray[np.float32]:
        """Decoder rows [F, d_out] in the coder's normalised space, in which its geometry is measured."""
        rows: NDArray[np.float32] = self.coder.w_dec.detach().float().cpu().numpy()
        return rows

    @cached_property
    def raw_w_dec(self) -> NDArray[np.float32]:
        """Decoder rows [F, d_out] in raw activation space: what a code of 1 adds to the reconstruction."""
        raw = self.coder.raw_directions(self.coder.w_dec.detach().double())
        rows: NDArray[np.float32] = raw.float().cpu().numpy()
        return rows

    @cached_property
    def raw_w_enc(self) -> NDArray[np.float32]:
        """Encoder rows [F, d_in] in raw activation space."""
        rows: NDArray[np.float32] = self.coder.fold().w_enc.float().cpu().numpy()
        return rows

    @cached_property
    def w_enc(self) -> NDArray[np.float32]:
        """Encoder rows [F, d_in] in the coder's normalised space."""
        rows: NDArray[np.float32] = self.coder.dense_encoder().detach().float().cpu().numpy()
        return rows

    @cached_property
    def domains(self) -> dict[int, str]:
        """Document → domain, of the documents that have one."""
        return domains_of(self.cache.path)

    @cached_property
    def geometry(self) -> Geometry:
        """Cosines of decoder rows in the coder's normalised space; computed once for all reports."""
        return Geometry.of(self.coder.w_dec.detach())

    @cached_property
    def only(self) -> NDArray[np.bool_] | None:
        """Mask of the rows of documents under analysis [n_rows]; None: all."""
        return None if self.heldout is None else split_rows(self.cache, self.heldout).heldout

    @cached_property
    def rest_rows(self) -> NDArray[np.bool_]:
        """Mask of the rows under analysis, excluding padding and position 0 [n_rows]."""
        keep = np.zeros((self.cache.n_seq, self.cache.ctx), np.bool_)
        for shard in self.shards:
            seqs = self.cache.layout.seqs_of(shard)
            flags = self.cache.flags[seqs.start : seqs.stop]
            keep[seqs.start : seqs.stop] = rest_rows(flags, self.cache.ctx)
        rows = keep.reshape(-1)
        return rows if self.only is None else rows & self.only

    @cached_property
    def n_rows(self) -> int:
        """Number of rows under analysis, including padding unless only held-out documents are analysed."""
        spans = [self.cache.layout.rows_of(shard) for shard in self.shards]
        if self.only is None:
            return sum(map(len, spans))
        return sum(int(self.only[span.start : span.stop].sum()) for span in spans)

    @cached_property
    def massive(self) -> NDArray[np.bool_]:
        """Mask of the massive rows of the cache [n_rows]: massive at the source or the target."""
        return self.cache.massive_rows(sorted({self.source, self.target}))

    @cached_property
    def massive_target(self) -> NDArray[np.bool_]:
        """Mask of the rows that are massive at the target [n_rows]: those that an FVU may mostly be about."""
        return self.cache.massive_rows([self.target])

    @cached_property
    def has_massive(self) -> bool:
        """Whether any row under analysis is massive; where none is, no figure has a twin without them."""
        return bool((self.massive & self.rest_rows).any())

    def massive_of(self, rows: ShardRows) -> NDArray[np.bool_]:
        """Which rows of a shard are massive, of those that count [R]."""
        mask: NDArray[np.bool_] = self.massive[rows.start : rows.start + len(rows)] & rows.rest
        return mask

    def coder_sites(self, reconstruct: bool) -> CoderSites:
        """What the pass over the cache needs of this subject.

        Args:
            reconstruct: whether a report needs reconstructions.
        """
        return CoderSites(self.coder, self.source, self.target, reconstruct)
