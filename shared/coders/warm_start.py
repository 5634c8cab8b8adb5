"""Start a coder from another: the same latents, the first of a nested dictionary, or more latents than it has.

The weights pass through raw activation space (`Coder.fold`), so the two may be normalised by different caches: those of
a base model and of its tuned successor, say. With the same normalisation they are copied bit by bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError
from .base import WHITENING, Coder
from .batchtopk import BatchTopK
from .gated import Gated
from .jumprelu import JumpReLU
from .ops import dense_pre

SMALLEST = 1e-6
"""Thresholds of a JumpReLU are positive."""

NORMALISATION = ("input_mean", "input_scale", "target_mean", "target_scale", *WHITENING)


def refuse(into: Coder, source: Coder, where: str) -> None:
    """Refuse a pair that cannot pass its latents on. Raises UsageError.

    Args:
        where: what the source is called in the error.
    """
    hint = "train.init takes a coder of the same kind; leave it null to start from random weights"
    for what, ours, theirs in (
        ("input width", _shown(into.source_widths), _shown(source.source_widths)),
        ("output width", _shown(into.target_widths), _shown(source.target_widths)),
        ("autoencoder", into.tied, source.tied),
        ("skip connection", into.config.skip, source.config.skip),
        ("input_transform", into.config.input_transform, source.config.input_transform),
        ("subtract_decoder_bias", into.config.subtract_decoder_bias, source.config.subtract_decoder_bias),
        ("gated", isinstance(into, Gated), isinstance(source, Gated)),
    ):
        if ours != theirs:
            raise UsageError(f"train.init: {where} differs in {what}: found {theirs}, expected {ours}", hint)
    if into.n_latents < source.n_latents and into.n_latents not in (source.prefixes or ()):
        lengths = (
            f"its prefixes are {', '.join(map(str, source.prefixes))}" if source.prefixes else "it has no prefixes"
        )
        raise UsageError(
            f"train.init: {into.n_latents:,} of the {source.n_latents:,} latents of {where} are no dictionary: "
            f"{lengths}",
            "set train.coder.latents to one of them, or to as many latents as it has, or more",
        )


def _shown(widths: tuple[int, ...]) -> str:
    return " + ".join(map(str, widths))


@torch.no_grad()
def transfer(into: Coder, source: Coder, inputs: Sequence[Tensor] = ()) -> int:
    """Overwrite the first latents of `into` by those of `source`; further ones keep their initial values.

    A decoder row that must have length 1 is rescaled, its code with it: the reconstruction stays. A JumpReLU that
    starts from a BatchTopK takes the thresholds of `frequency_thresholds`.

    Args:
        into: in float32, with its normalisation set.
        source: checked by `refuse`.
        inputs: batches of raw inputs [B, d_in], for those thresholds.

    Returns:
        How many latents were taken.
    """
    n = min(into.n_latents, source.n_latents)
    scale = torch.ones(n, dtype=torch.float64)
    if same_normalisation(into, source):
        values = {name: p.double() for name, p in source.named_parameters()}
    else:
        values = {name: p.double() for name, p in source.named_parameters()} | renormalised(into, source)
        if into.config.decoder_norm == "unit":
            norms = torch.linalg.vector_norm(values["w_dec"], dim=1)
            norms = torch.where(norms > 0, norms, torch.ones_like(norms))
            scale = norms[:n]
            values["w_dec"] = values["w_dec"] / norms.unsqueeze(1)
            values["w_enc"], values["b_enc"] = values["w_enc"] * norms.unsqueeze(1), values["b_enc"] * norms
            if "b_mag" in values:
                values["b_mag"] = values["b_mag"] * norms
            if "log_threshold" in values:
                values["log_threshold"] = values["log_threshold"] + norms.log()
    for name, parameter in into.named_parameters():
        if name in values:
            by_latent = parameter.dim() > 0 and name not in ("b_dec", "w_skip")
            (parameter[:n] if by_latent else parameter).copy_(values[name][:n] if by_latent else values[name])
    if isinstance(source, BatchTopK) and source.selection == "batch":
        if isinstance(into, JumpReLU):
            into.log_threshold[:n] = (frequency_thresholds(source, inputs)[:n].double() * scale).log().float()
        elif isinstance(into, BatchTopK) and into.selection == "batch":
            into.threshold.copy_(source.threshold * scale.mean())
    return n


@torch.no_grad()
def frequency_thresholds(coder: BatchTopK, inputs: Sequence[Tensor]) -> Tensor:
    """[F] thresholds at which each latent fires as often, on these rows, as in the selection over batches.

    θ_i lies midway between the n_i-th and the next largest pre-activation of latent i, n_i the number of rows on which
    the selection kept it. One θ for all (the coder's own) would change frequencies where batches differ in strength. A
    latent that was never kept stays silent: its threshold is its largest pre-activation, or θ if that is larger.

    Args:
        inputs: batches of raw inputs [B, d_in], of the size that training selects over.
    """
    was_training = coder.training
    kept, lowest = torch.zeros(coder.n_latents, dtype=torch.int64), torch.tensor(torch.inf)
    coder.train()
    for x in inputs:
        codes = coder.encode(x)
        kept += codes.firing_counts()
        if bool((codes.values > 0).any()):
            lowest = torch.minimum(lowest, codes.values[codes.values > 0].min())
    coder.train(was_training)
    largest = torch.full((coder.n_latents,), -torch.inf)
    latents, values = [], []
    for x in inputs:
        pre = dense_pre(coder.centred(coder.normalise_input(x)), coder.w_enc, coder.b_enc)
        largest = torch.maximum(largest, pre.amax(dim=0))
        row, latent = (pre >= lowest / 2).nonzero(as_tuple=True)
        latents.append(latent)
        values.append(pre[row, latent])
    thresholds = torch.maximum(largest, coder.thresholds).clamp_min(SMALLEST)
    if not latents:
        return thresholds
    latent, value = torch.cat(latents), torch.cat(values)
    order = torch.argsort(value, descending=True, stable=True)
    order = order[torch.argsort(latent[order], stable=True)]
    latent, value = latent[order], value[order]
    counts = torch.bincount(latent, minlength=coder.n_latents)
    first = counts.cumsum(0) - counts
    fires = kept.nonzero().squeeze(1)
    above = value[first[fires] + kept[fires] - 1]
    place = first[fires] + kept[fires]
    below = torch.where(counts[fires] > kept[fires], value[place.clamp_max(len(value) - 1)], lowest / 2)
    thresholds[fires] = ((above + below) / 2).clamp_min(SMALLEST)
    return thresholds


@torch.no_grad()
def distances(start: Coder, end: Coder, n: int) -> dict[str, Any]:
    """How far the first n latents moved: cosine between the rows of `start` and `end`, of decoder and encoder.

    Returns:
        For each matrix its median, its 5th percentile, and the share of rows below 0.9; `latents` is n.
    """
    found: dict[str, Any] = {"latents": n}
    for name in ("w_dec", "w_enc"):
        before, after = (getattr(coder, name)[:n].detach().cpu().double() for coder in (start, end))
        cosine = torch.nn.functional.cosine_similarity(before, after, dim=1)
        found[name] = {
            "median": float(cosine.median()),
            "p05": float(cosine.quantile(0.05)),
            "below_0.9": float((cosine < 0.9).double().mean()),
        }
    return found


def same_normalisation(a: Coder, b: Coder) -> bool:
    """Whether two coders normalise alike, to the bit."""

    def same(x: Tensor | None, y: Tensor | None) -> bool:
        return (x is None) == (y is None) and (x is None or y is None or torch.equal(x, y))

    return all(same(getattr(a, name), getattr(b, name)) for name in NORMALISATION)


def renormalised(into: Coder, source: Coder) -> dict[str, Tensor]:
    """The weights of `source` as they act between the normalised spaces of `into`, in float64.

    With u = (x − m) W and t = (y − M) V: π = x W_encᵀ + b is u (W_enc W⁻¹)ᵀ + b + W_enc m, and t̂ has the rows w V and
    the bias (b_dec + W_skip m − M) V.
    """
    double = torch.float64
    raw, m = source.fold(), into.input_mean.to(double)
    out = _inverse_of_input(into)

    def to_target(rows: Tensor) -> Tensor:
        rows = rows / into.target_scale.to(double)
        return rows if into.target_whiten is None else rows @ into.target_whiten.to(double)

    values = {"w_enc": raw.w_enc @ out, "b_enc": raw.b_enc + raw.w_enc @ m, "w_dec": to_target(raw.w_dec)}
    bias = raw.b_dec - into.target_mean.to(double)
    if raw.w_skip is not None:
        values["w_skip"] = (out @ to_target(raw.w_skip.T)).T
        bias = bias + raw.w_skip @ m
    values["b_dec"] = to_target(bias.unsqueeze(0)).squeeze(0)
    if into.config.subtract_decoder_bias:
        values["b_enc"] = values["b_enc"] + values["w_enc"] @ values["b_dec"]
    elif isinstance(source, Gated):  # its magnitude reads e^r (u·w) + b_mag, without b_enc
        shift = raw.w_enc @ (m - source.input_mean.to(double))
        values["b_mag"] = source.b_mag.to(double) + source.log_scale.to(double).exp() * shift
    return values


def _inverse_of_input(coder: Coder) -> Tensor:
    """W⁻¹ [d_in, d_in] of the input's normalisation, float64."""
    double = torch.float64
    into = torch.eye(coder.d_in, dtype=double) / coder.input_scale.to(double).unsqueeze(-1)
    inverse: Tensor = torch.linalg.inv(into if coder.input_whiten is None else into @ coder.input_whiten.to(double))
    return inverse
