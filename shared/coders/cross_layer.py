"""Cross-layer coders: a latent reads one layer and writes that layer and all later ones.

With another target than source it is a cross-layer transcoder (Ameisen et al. 2025, "Circuit Tracing"): source
resid_mid, target mlp_out at each layer. With the source as target it is a weakly causal crosscoder (Lindsey et al.
2024). No latent reads a later layer or writes an earlier one, so nothing flows back.

Parameters are blocks, not masked matrices: `decoders[l]` holds the rows by which the latents of layers 0 … l write
layer l. The latents of a layer follow one another, so those rows belong to the first (l + 1)·F/L latents, and decoding
into layer l is one sparse product over the active latents of layers 0 … l.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..errors import UsageError
from .base import Coder, Widths, unit_rows
from .batchtopk import follow, packed, select_batch
from .codes import Codes
from .configs.base import ENCODER_NORM, CoderConfig
from .configs.cross_layer import CrossLayerConfig
from .ops import LatentLists, dense_pre, gather_pre, nested_squared_error, sampled_dot, sparse_decode


@dataclass(frozen=True)
class LayeredCodes(Codes):
    """Codes whose slots are in the order of layers: those of layers 0 … l are the first `ends[l]`."""

    ends: tuple[int, ...] = ()

    def detach(self) -> Codes:
        return LayeredCodes(self.values.detach(), self.latents, self.n_latents, self.lists, ends=self.ends)


class CrossLayer(Coder):
    """z^l = the k largest of u_l W_enc^lᵀ + b_enc^l, t̂_l = Σ_{l' ≤ l} z^{l'} W_dec^{l'→l} + b_l (+ W_skip^l u_l).

    Row i of `w_enc` [F, d_in of one site] reads the site i // (F/L). With one site it is the TopK or BatchTopK coder of
    that site, weight by weight.
    """

    config_class: ClassVar[type[CoderConfig]] = CrossLayerConfig
    config: CrossLayerConfig

    def __init__(
        self, config: CoderConfig, d_in: Widths, d_out: Widths, *, tied: bool, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(config, d_in, d_out, tied=tied, generator=generator)
        if self.config.selects_over == "batch":
            self.register_buffer("threshold", torch.zeros(self.n_sources))
            self.register_buffer("threshold_steps", torch.zeros(self.n_sources, dtype=torch.int64))

    threshold: Tensor
    threshold_steps: Tensor

    def make_weights(self, generator: torch.Generator | None) -> None:
        n, config = self.n_sources, self.config
        if len(set(self.source_widths)) > 1 or len(set(self.target_widths)) > 1 or n != self.n_targets:
            raise UsageError(
                f"a cross-layer coder reads and writes as many sites, all of one width on each side; found sources of "
                f"width {self.source_widths} and targets of width {self.target_widths}",
                "train.source and train.target: the same kind of site at different layers, in their order",
            )
        if (problem := config.problem(n)) is not None:
            raise UsageError(f"train.{problem}")
        self.per_layer = per = config.latents // n
        d_in, d_out = self.source_widths[0], self.target_widths[0]
        directions = unit_rows(torch.randn(config.latents, d_in, generator=generator))
        self.w_enc = nn.Parameter(directions * ENCODER_NORM)
        self.b_enc = nn.Parameter(torch.zeros(config.latents))
        blocks = [torch.zeros((layer + 1) * per, d_out) for layer in range(n)]
        for layer, block in enumerate(blocks if self.tied else ()):
            block[layer * per :] = directions[layer * per : (layer + 1) * per]
        self.decoders = nn.ParameterList([nn.Parameter(block) for block in blocks])
        self.b_dec = nn.Parameter(torch.zeros(self.d_out))
        self.w_skip = nn.Parameter(torch.zeros(n, d_out, d_in)) if config.skip else None

    # The same as one coder over the joint sites

    @property
    def w_dec(self) -> Tensor:  # type: ignore[override]
        """The decoder as one matrix [F, L·d_out], zero where a latent does not write: for reports."""
        rows = self.n_latents
        full = [nn.functional.pad(block, (0, 0, 0, rows - len(block))) for block in self.decoders]
        return torch.cat(full, dim=1)

    def dense_encoder(self) -> Tensor:
        blocks = self.w_enc.view(self.n_sources, self.per_layer, -1).unbind(0)
        dense: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
        return dense

    def dense_skip(self) -> Tensor | None:
        if self.w_skip is None:
            return None
        dense: Tensor = torch.block_diag(*self.w_skip.unbind(0))  # type: ignore[no-untyped-call]
        return dense

    @property
    def kind(self) -> str:
        if self.n_sources == 1:
            return super().kind
        return "weakly causal crosscoder" if self.tied else "cross-layer transcoder"

    @property
    def reads(self) -> Tensor | None:
        """Which source site each latent reads [F]."""
        return torch.arange(self.n_latents) // self.per_layer

    @property
    def k(self) -> int:
        """Latents kept per row and layer: those of this step in training, `config.k` otherwise."""
        return self.config.k_at(self.context, self.training)

    # Encoding and decoding

    def encode_normalised(self, u: Tensor) -> Codes:
        values, latents, ends, end = [], [], [], 0
        for layer, (x, w, b) in enumerate(self._layers(u)):
            with torch.no_grad():
                ids, pre, kept = self._select(layer, x, w, b)
            active = torch.relu(gather_pre(x, w, b, ids, values=pre, lists=LatentLists(ids, self.per_layer)))
            values.append(active if kept is None else active * kept)
            latents.append(ids + layer * self.per_layer)
            ends.append(end := end + ids.shape[1])
        return LayeredCodes(torch.cat(values, 1), torch.cat(latents, 1), self.n_latents, ends=tuple(ends))

    def decode_normalised(self, codes: Codes, u: Tensor | None = None) -> Tensor:
        parts = [sparse_decode(values, latents, block) for values, latents, block in self._writes(codes)]
        return torch.cat(parts, dim=1) + self.offset(u)

    def offset(self, u: Tensor | None) -> Tensor:
        if self.w_skip is None:
            return self.b_dec
        if u is None:
            raise ValueError("this coder has a skip connection: decode needs the input too")
        sites = torch.split(u, list(self.source_widths), dim=1)
        return self.b_dec + torch.cat([x @ w.T for x, w in zip(sites, self.w_skip.unbind(0), strict=True)], dim=1)

    def _layers(self, u: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Of each layer: its input [B, d], its encoder [F/L, d], its bias [F/L]."""
        sites = torch.split(self.centred(u), list(self.source_widths), dim=1)
        encoders = self.w_enc.view(self.n_sources, self.per_layer, -1).unbind(0)
        biases = self.b_enc.view(self.n_sources, self.per_layer).unbind(0)
        for x, w, b in zip(sites, encoders, biases, strict=True):
            yield x.contiguous(), w, b

    def _select(self, layer: int, x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """(latents of the layer [B, K], their pre-activations [B, K], which of them are codes; None: all)."""
        pre = dense_pre(x, w, b, self.selection_dtype)
        kept = None
        if self.config.selects_over == "row":
            ids = pre.topk(self.k, dim=1, sorted=False).indices
        elif self.training or not bool(self.threshold[layer] > 0):
            ids, kept = select_batch(pre, self.k)
        else:
            ids, kept = packed(pre > self.threshold[layer].to(pre.dtype))
        if pre.dtype != x.dtype:  # selected in low precision; the values themselves are exact
            return ids, sampled_dot(x, w, ids) + b[ids], kept
        return ids, pre.gather(1, ids), kept

    def _writes(self, codes: Codes) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Of each target layer l: values and latents of the codes of layers 0 … l, and the rows that they write."""
        if codes.latents is None:
            everyone = torch.arange(self.n_latents, device=codes.values.device).expand_as(codes.values)
            codes = Codes(codes.values, everyone, self.n_latents)
        assert codes.latents is not None
        for layer, block in enumerate(self.decoders):
            if isinstance(codes, LayeredCodes):
                end = codes.ends[layer]
                yield codes.values[:, :end].contiguous(), codes.latents[:, :end].contiguous(), block
            else:
                inside = codes.latents < len(block)
                yield codes.values * inside, torch.where(inside, codes.latents, 0), block

    # Training

    def losses(self, u: Tensor, t: Tensor, codes: Codes) -> dict[str, Tensor]:
        bases = torch.split(self.offset(u) - t, list(self.target_widths), dim=1)
        found = [
            nested_squared_error(values, latents, block, base=base, prefixes=(len(block),))
            for (values, latents, block), base in zip(self._writes(codes), bases, strict=True)
        ]
        terms = {"reconstruction": sum((squares.sum() for squares, _ in found), start=t.new_zeros(())) / t.numel()}
        aux = self.aux_loss(u, -torch.cat([residual for _, residual in found], dim=1))
        if aux is not None:
            terms["aux"] = aux
        return terms

    def dead_codes(self, u: Tensor, dead: Tensor, k: int) -> tuple[Tensor, Tensor]:
        parts, ids = [], []
        for layer, (x, w, b) in enumerate(self._layers(u)):
            own = dead[(dead // self.per_layer) == layer]
            local = own - layer * self.per_layer
            parts.append(nn.functional.linear(x, w[local], b[local]))
            ids.append(own)
        pre, latents = torch.cat(parts, dim=1), torch.cat(ids)
        best = pre.detach().topk(k, dim=1, sorted=False).indices
        return torch.relu(pre.gather(1, best)), latents[best]

    def decode_only(self, values: Tensor, latents: Tensor) -> Tensor:
        codes = Codes(values, latents, self.n_latents)
        return torch.cat([sparse_decode(v, i, block) for v, i, block in self._writes(codes)], dim=1)

    @torch.no_grad()
    def project_gradients(self) -> None:
        if self.config.decoder_norm != "unit":
            return
        along = self.b_enc.new_zeros(self.n_latents)
        for block in self.decoders:
            if block.grad is not None:
                along[: len(block)] += torch.linalg.vecdot(block.grad, block)
        for block in self.decoders:
            if block.grad is not None:
                block.grad.addcmul_(along[: len(block)].unsqueeze(1), block, value=-1)

    @torch.no_grad()
    def project_parameters(self) -> None:
        if self.config.decoder_norm != "unit":
            return
        squares = self.b_enc.new_zeros(self.n_latents)
        for block in self.decoders:
            squares[: len(block)] += block.square().sum(dim=1)
        norms = squares.sqrt().clamp_min(torch.finfo(squares.dtype).tiny)
        for block in self.decoders:
            block.div_(norms[: len(block)].unsqueeze(1))

    @torch.no_grad()
    def after_step(self, codes: Codes) -> None:
        super().after_step(codes)
        if self.config.selects_over != "batch" or not isinstance(codes, LayeredCodes):
            return
        active = codes.values.detach()
        active = torch.where(active > 0, active, torch.inf)
        starts = (0, *codes.ends[:-1])
        smallest = torch.stack([active[:, a:b].amin() for a, b in zip(starts, codes.ends, strict=True)])
        follow(self.threshold, self.threshold_steps, smallest, self.config)
