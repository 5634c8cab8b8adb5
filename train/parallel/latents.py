"""`train.parallel: latents`: each process owns a slice of the dictionary and sees every row.

Row i of w_enc, b_enc and w_dec, its gradient and its moments live in one process. In a step

1. each process offers the largest pre-activations of its latents, all of them see every offer (a few numbers of each
   row, never [B, F]), and make the same selection: that of one process;
2. each decodes its own selected latents, and the partial reconstructions are added up, [B, G, d] for G prefixes;
3. from the errors, which all know now, each computes the gradient of its own rows: nothing else is sent.

b_dec and W_skip are computed alike everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...shared.cache.batch import Batch
from ...shared.coders import Coder, Codes, build_coder
from ...shared.coders.base import Widths
from ...shared.coders.batchtopk import CANDIDATES, BatchTopK, largest, packed
from ...shared.coders.configs.base import CoderConfig
from ...shared.coders.ops import LatentLists, dense_pre, gather_pre, nested_squared_error, sampled_dot, sparse_decode
from .base import Sharing
from .peers import Peers

SLICED = frozenset({"w_enc", "b_enc", "w_dec", "since_fired"})
"""Tensors with a row for each latent."""

CHUNK_ROWS = 4096
"""Rows that are drawn at a time: a multiple of the 16 numbers that torch's generator draws together."""


@dataclass(frozen=True)
class SlicedCodes(Codes):
    """The codes of all latents, detached, known to every process; `own`: this process's, with latents counted from the
    first of its slice, differentiable."""

    own: Codes = field(kw_only=True)


class Slice(BatchTopK):
    """Comes before a coder's class: the same coder, of whose latents this process has a slice.

    Attributes:
        span: the slice.
    """

    peers: Peers

    def __init__(
        self, config: CoderConfig, d_in: Widths, d_out: Widths, *, tied: bool, generator: torch.Generator | None = None
    ) -> None:
        self.span = self.peers.part(config.latents)
        super().__init__(config, d_in, d_out, tied=tied, generator=generator)
        self.since_fired = torch.zeros(len(self.b_enc), dtype=torch.int64)

    def first_rows(self, generator: torch.Generator | None) -> Tensor:
        return drawn_rows(self.config.latents, self.d_in, self.span, generator)

    def encode_normalised(self, u: Tensor) -> Codes:
        u = self._enter(self.centred(u))
        with torch.no_grad():
            pre = dense_pre(u, self.w_enc, self.b_enc, self.selection_dtype)
            latents, kept = self._chosen_of_all(pre)
            mine = kept & (latents >= self.span.start) & (latents < self.span.stop)
            slots, kept = packed(mine)
            own = torch.where(kept, latents.gather(1, slots) - self.span.start, 0)
            exact = pre.dtype == u.dtype
            values = pre.gather(1, own) if exact else sampled_dot(u, self.w_enc, own) + self.b_enc[own]
        lists = LatentLists(own, len(self.b_enc))
        codes = torch.relu(gather_pre(u, self.w_enc, self.b_enc, own, values=values, lists=lists)) * kept
        whole = torch.zeros(latents.shape, dtype=codes.dtype, device=u.device).scatter_add_(1, slots, codes.detach())
        return SlicedCodes(
            self.peers.total(whole), latents, self.n_latents, own=Codes(codes, own, len(self.b_enc), lists)
        )

    def _chosen_of_all(self, pre: Tensor) -> tuple[Tensor, Tensor]:
        """(latents [B, K] of the whole dictionary, which of them are codes [B, K] bool), alike in all processes."""
        weights = self.selection_weights()
        score = pre if weights is None else pre * weights.to(pre.dtype)
        if self.selection == "row":
            values, latents, _ = self._offers(score, self.k)
            latents = latents.gather(1, values.topk(self.k, dim=1, sorted=False).indices)
            return latents, torch.ones_like(latents, dtype=torch.bool)
        if self.training or not bool(self.threshold > 0):
            return self._largest_of_batch(score)
        latents, kept = packed(score > self.threshold.to(pre.dtype))
        sizes = self.peers.numbers(latents.shape[1])
        latents = self.peers.joined((latents + self.span.start).to(torch.int32), sizes, dim=1)
        return latents.long(), self.peers.joined(kept.to(torch.uint8), sizes, dim=1).bool()

    def _offers(self, score: Tensor, n: int) -> tuple[Tensor, Tensor, list[int]]:
        """(scores, latents) of the n largest of each row in each process, [B, Σ sizes], and the sizes."""
        sizes = [min(n, size) for size in self.peers.sizes(self.n_latents)]
        values, latents = score.topk(sizes[self.peers.index], dim=1, sorted=False)
        ids = (latents + self.span.start).to(torch.int32)
        return (
            self.peers.joined(values.float(), sizes, dim=1),
            self.peers.joined(ids, sizes, dim=1).long(),
            sizes,
        )

    def _largest_of_batch(self, score: Tensor) -> tuple[Tensor, Tensor]:
        """The k·B largest of the batch, exactly: among the offers, unless some row had all that one process offered
        selected; then all offer twice as much."""
        n = CANDIDATES * self.k
        while True:
            values, latents, sizes = self._offers(score, n)
            mask = largest(values, self.k * len(score))
            complete = [offered == size for offered, size in zip(sizes, self.peers.sizes(self.n_latents), strict=True)]
            used_up = [bool(one.all(dim=1).any()) for one in torch.split(mask, sizes, dim=1)]
            if not any(used and not whole for used, whole in zip(used_up, complete, strict=True)):
                break
            n *= 2
        slots, kept = packed(mask)
        return latents.gather(1, slots), kept

    def decode_normalised(self, codes: Codes, u: Tensor | None = None) -> Tensor:
        assert isinstance(codes, SlicedCodes)
        return self.peers.total(codes.own.decode(self.w_dec).detach()) + self.offset(u)

    def squared_errors(self, codes: Codes, base: Tensor) -> tuple[Tensor, Tensor]:
        assert isinstance(codes, SlicedCodes)
        own = codes.own
        assert own.latents is not None
        prefixes = tuple(length - self.span.start for length in self.prefixes or (self.n_latents,))
        return nested_squared_error(
            own.values, own.latents, self.w_dec, base=base, prefixes=prefixes, lists=own.lists, total=self.peers.total
        )

    @property
    def n_dead(self) -> int:
        return self.n_of(self.dead.nonzero())

    def n_of(self, ids: Tensor) -> int:
        return sum(self.peers.numbers(len(ids)))

    def dead_codes(self, u: Tensor, dead: Tensor, k: int) -> tuple[Tensor, Tensor]:
        u = self._enter(self.centred(u))
        with torch.no_grad():
            sizes = [min(k, n) for n in self.peers.numbers(len(dead))]
            n = sizes[self.peers.index]
            pre = dense_pre(u, self.w_enc[dead], self.b_enc[dead]) if n else u.new_empty(len(u), 0)
            values, index = pre.topk(n, dim=1, sorted=False)
            chosen = self.peers.joined(values, sizes, dim=1).topk(k, dim=1, sorted=False).indices
            mask = torch.zeros(len(u), sum(sizes), dtype=torch.bool, device=u.device).scatter_(1, chosen, True)
            own = mask[:, sum(sizes[: self.peers.index]) :][:, :n]
            if n:
                slots, kept = packed(own)
                latents, values = dead[index].gather(1, slots), values.gather(1, slots)
        if not n:  # none dead here: zeros that depend on u, for its gradient is added up in all processes or in none
            return u[:, :1] * 0, torch.zeros(len(u), 1, dtype=torch.int64, device=u.device)
        return torch.relu(gather_pre(u, self.w_enc, self.b_enc, latents, values=values)) * kept, latents

    def decode_only(self, values: Tensor, latents: Tensor) -> Tensor:
        return cast(Tensor, _Summed.apply(sparse_decode(values, latents, self.w_dec), self.peers))  # type: ignore[no-untyped-call]

    def after_step(self, codes: Codes) -> None:
        assert isinstance(codes, SlicedCodes)
        super().after_step(codes.own)

    def update_threshold(self, smallest: Tensor) -> None:
        super().update_threshold(self.peers.smallest(smallest.clone()))

    def _enter(self, u: Tensor) -> Tensor:
        """u, whose gradient is that of all slices: b_dec's, where it is subtracted from the input."""
        return cast(Tensor, _Entered.apply(u, self.peers)) if u.requires_grad else u  # type: ignore[no-untyped-call]


class _Summed(torch.autograd.Function):
    """Forward: the sum over the processes. Backward: each of them has the gradient of the sum already."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, peers: Peers) -> Tensor:
        return peers.total(part.clone())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class _Entered(torch.autograd.Function):
    """Forward: what every process has. Backward: the sum of what each process makes of it."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, peers: Peers) -> Tensor:
        ctx.peers = peers
        return u.view_as(u)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.peers.total(grads[0].clone()), None


def drawn_rows(
    n: int, width: int, span: slice, generator: torch.Generator | None, chunk_rows: int = CHUNK_ROWS
) -> Tensor:
    """Rows `span` of torch.randn(n, width), the same numbers, without holding the others.

    Args:
        chunk_rows: rows drawn at a time, a multiple of 16.
    """
    own, at = torch.empty(span.stop - span.start, width), 0
    while at < n:
        stop = n if n - at < 2 * chunk_rows else at + chunk_rows
        chunk = torch.randn(stop - at, width, generator=generator)
        first, last = max(at, span.start), min(stop, span.stop)
        if first < last:
            own[first - span.start : last - span.start] = chunk[first - at : last - at]
        at = stop
    return own


def sliced(kind: type[Coder], peers: Peers) -> type[Coder]:
    """A coder's class, of which each of `peers` has a slice."""
    return cast(type[Coder], type(f"Sliced{kind.__name__}", (Slice, kind), {"peers": peers}))


class LatentSharing(Sharing):
    """The step of a `Slice`."""

    def __init__(self, peers: Peers, coder: Coder) -> None:
        super().__init__(peers)
        assert isinstance(coder, Slice)
        self._coder = coder

    @contextmanager
    def step(self, rows: Batch) -> Iterator[Batch]:
        yield rows

    def losses(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.detach() for name, value in own.items()}

    def gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Each process has the whole gradient of what it owns."""

    def norm(self, parameters: Sequence[nn.Parameter]) -> Tensor:
        owned = {id(parameter) for name, parameter in self._coder.named_parameters() if name in SLICED}
        own, shared = (torch.zeros((), device=self._coder.b_enc.device) for _ in range(2))
        for one in parameters:
            if one.grad is not None:
                (own if id(one) in owned else shared).add_(torch.linalg.vector_norm(one.grad).square())
        return torch.sqrt(self.peers.total(own) + shared)

    def codes(self, own: Codes) -> Codes:
        return own

    def collected(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        sizes = self.peers.sizes(self._coder.n_latents)
        found = dict(tensors)
        for name in sorted(tensors):  # in one order everywhere: that of a file's tensors is random in each process
            if _is_sliced(name, tensors[name]):
                found[name] = self.peers.collected(tensors[name], sizes)
        return found

    def parts(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        span = self._coder.span
        return {name: value[span].clone() if _is_sliced(name, value) else value for name, value in tensors.items()}

    def whole_coder(self) -> Coder:
        coder = self._coder
        state = self.collected(coder.state_dict())
        if not self.peers.first:
            return coder
        with torch.device("meta"):
            whole = build_coder(coder.config, coder.source_widths, coder.target_widths, tied=coder.tied)
        whole.load_state_dict({name: value.cpu() for name, value in state.items()}, assign=True)
        return whole


def _is_sliced(name: str, tensor: Tensor) -> bool:
    """Whether a tensor of a checkpoint has a row for each latent: `w_enc`, or one of Adam's such as
    `adam.w_enc.exp_avg`."""
    return bool(SLICED & set(name.split("."))) and tensor.dim() > 0
