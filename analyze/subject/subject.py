"""What is analysed: one run (or control) on one cache."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ...shared.cache import Cache
from ...shared.cache.documents import domains_of
from ...shared.cache.heldout import split_rows
from ...shared.cache.rows import rest_rows
from ...shared.cache.vocabulary import Vocabulary
from ...shared.coders import Coder
from ..stream.batches import CoderSites
from .geometry import Geometry


@dataclass(frozen=True)
class Subject:
    """One run (or control) under analysis: what a report may look at besides the stream.

    Attributes:
        name: the run's name; a control's says what it is.
        role: a control is measured for comparison only.
        shards: the shards that the whole analysis looks at.
        heldout: only the documents that training held out are looked at: the share of them (`data.heldout` of the
            run); None: all documents.
        trained_on: the cache that the coder was trained on, which may be another one; None: not at hand.
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

    @property
    def n_latents(self) -> int:
        return self.coder.n_latents

    @property
    def n_positions(self) -> int:
        return self.cache.ctx

    @cached_property
    def w_dec(self) -> NDArray[np.float32]:
        """Decoder rows [F, d_out]."""
        rows: NDArray[np.float32] = self.coder.w_dec.detach().float().cpu().numpy()
        return rows

    @cached_property
    def w_enc(self) -> NDArray[np.float32]:
        """Encoder rows [F, d_in]."""
        rows: NDArray[np.float32] = self.coder.w_enc.detach().float().cpu().numpy()
        return rows

    @cached_property
    def domains(self) -> dict[int, str]:
        """Domain of each document that has one."""
        return domains_of(self.cache.path)

    @cached_property
    def geometry(self) -> Geometry:
        """Cosines of the decoder's rows; computed once for all reports."""
        return Geometry.of(self.coder.w_dec.detach())

    @cached_property
    def only(self) -> NDArray[np.bool_] | None:
        """Rows of the documents under analysis [n_rows]; None: all."""
        return None if self.heldout is None else split_rows(self.cache, self.heldout).heldout

    @cached_property
    def rest_rows(self) -> NDArray[np.bool_]:
        """Rows under analysis that are neither padding nor at position 0 [n_rows]."""
        keep = np.zeros((self.cache.n_seq, self.cache.ctx), np.bool_)
        for shard in self.shards:
            seqs = self.cache.layout.seqs_of(shard)
            flags = self.cache.flags[seqs.start : seqs.stop]
            keep[seqs.start : seqs.stop] = rest_rows(flags, self.cache.ctx)
        rows = keep.reshape(-1)
        return rows if self.only is None else rows & self.only

    @cached_property
    def n_rows(self) -> int:
        """Rows under analysis, in whole shards padding included."""
        spans = [self.cache.layout.rows_of(shard) for shard in self.shards]
        if self.only is None:
            return sum(map(len, spans))
        return sum(int(self.only[span.start : span.stop].sum()) for span in spans)

    def coder_sites(self, reconstruct: bool) -> CoderSites:
        """What the pass needs to know."""
        return CoderSites(self.coder, self.source, self.target, reconstruct)
