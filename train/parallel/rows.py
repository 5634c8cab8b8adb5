"""`train.parallel: data`: each process computes its rows of every batch; all hold the whole coder.

A loss is a sum over the rows of the batch, divided by numbers of the whole batch. Each process computes its rows' part
of that sum, so the parts' gradients add up to the batch's. Two things need the other rows: a selection over the batch
(BatchTopK), which is that of one process on the candidates of all, and the denominator of AuxK.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import cast

import torch
from torch import Tensor, nn

from ...shared.cache.batch import Batch
from ...shared.coders import Coder, Codes
from ...shared.coders.batchtopk import CANDIDATES, BatchTopK, largest, packed
from .base import Sharing
from .peers import Peers


class SharesRows(BatchTopK):
    """Comes before a coder's class: within a step, the coder sees this process's rows of the batch.

    Attributes:
        n_shared: rows of the whole batch within a step; 0 outside, where every process computes the same.
    """

    peers: Peers
    n_shared: int = 0

    def losses(self, u: Tensor, t: Tensor, codes: Codes) -> dict[str, Tensor]:
        terms = super().losses(u, t, codes)
        if self.n_shared:  # a mean over the rows here; AuxK is a sum over them already
            terms["reconstruction"] = terms["reconstruction"] * (len(t) / self.n_shared)
        return terms

    def spread(self, error: Tensor) -> Tensor:
        if not self.n_shared:
            return super().spread(error)
        mean = self.peers.total(error.sum(dim=0)) / self.n_shared
        return self.peers.total((error - mean).square().sum())

    def select_over_batch(self, score: Tensor) -> tuple[Tensor, Tensor]:
        """The k·B largest of the whole batch, exactly: as `select_batch`, each process with its rows' candidates. If
        some row had all of its candidates selected, it may have more to offer, so all double them."""
        if not self.n_shared:
            return super().select_over_batch(score)
        sizes = self.peers.sizes(self.n_shared)
        n_candidates = min(CANDIDATES * self.k, self.n_latents)
        while True:
            values, candidates = score.topk(n_candidates, dim=1, sorted=False)
            mask = largest(self.peers.joined(values.float(), sizes), self.k * self.n_shared)
            if n_candidates == self.n_latents or not bool(mask.all(dim=1).any()):
                break
            n_candidates = min(2 * n_candidates, self.n_latents)
        slots, kept = (one[self.peers.part(self.n_shared)] for one in packed(mask))
        return candidates.gather(1, slots), kept


def sharing_rows(kind: type[Coder], peers: Peers) -> type[Coder]:
    """A coder's class for training with `peers`."""
    return cast(type[Coder], type(f"Shared{kind.__name__}", (SharesRows, kind), {"peers": peers}))


class RowSharing(Sharing):
    """The step of a `SharesRows` coder."""

    def __init__(self, peers: Peers, coder: Coder) -> None:
        super().__init__(peers)
        assert isinstance(coder, SharesRows)
        self._coder = coder

    @contextmanager
    def step(self, rows: Batch) -> Iterator[Batch]:
        own = self.peers.part(len(rows))
        parts = {field.name: getattr(rows, field.name) for field in fields(rows)}
        acts = {site: values[own] for site, values in parts.pop("acts").items()}
        self._coder.n_shared = len(rows)
        try:
            yield Batch(acts=acts, **{name: values[own] for name, values in parts.items()})
        finally:
            self._coder.n_shared = 0

    def losses(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        together = self.peers.total(torch.stack([value.detach() for value in own.values()]))
        return dict(zip(own, together.unbind(), strict=True))

    def gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        self.peers.totals([parameter.grad for parameter in parameters if parameter.grad is not None])

    def norm(self, parameters: Sequence[nn.Parameter]) -> Tensor:
        return torch.nn.utils.get_total_norm([one.grad for one in parameters if one.grad is not None])

    def codes(self, own: Codes) -> Codes:
        assert own.latents is not None
        sizes = self.peers.sizes(self._coder.n_shared)
        values = self.peers.joined(own.values.detach(), sizes)
        latents = self.peers.joined(own.latents.to(torch.int32), sizes)
        return Codes(values, latents.long(), own.n_latents)

    def collected(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(tensors)

    def parts(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(tensors)

    def whole_coder(self) -> Coder:
        return self._coder
