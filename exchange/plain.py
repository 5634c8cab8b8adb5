"""A coder as plain weights on raw activations: the form that every format is written from and read into.

    π = x W_encᵀ + b_enc,   z = activation(π),   ŷ = z W_dec + b_dec (+ x W_skipᵀ)

x is the activation as cached, or divided by its root mean square (`rms`). Training's normalisation is folded into the
weights (Coder.fold), so that a code here is the code of the trained coder.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from ..shared.coders import Coder, CoderConfig, build_coder
from ..shared.coders.base import RMS_EPS
from ..shared.coders.batchtopk import BatchTopK
from ..shared.coders.configs.batchtopk import BatchTopKConfig
from ..shared.coders.configs.gated import GatedConfig
from ..shared.coders.configs.jumprelu import JumpReLUConfig
from ..shared.coders.configs.matryoshka import MatryoshkaConfig
from ..shared.coders.configs.matryoshka_jumprelu import MatryoshkaJumpReLUConfig
from ..shared.coders.configs.nested import NestedConfig
from ..shared.coders.configs.relu import ReLUConfig
from ..shared.coders.configs.topk import TopKConfig
from ..shared.coders.cross_layer import CrossLayer
from ..shared.coders.gated import Gated
from ..shared.coders.jumprelu import JumpReLU
from ..shared.coders.topk import TopK
from ..shared.errors import UsageError


@dataclass(frozen=True)
class Relu:
    """z = max(π, 0)."""

    def __call__(self, pre: Tensor, plain: Plain) -> Tensor:
        return torch.relu(pre)


@dataclass(frozen=True)
class KLargest:
    """z = the k largest π of each row, then ReLU.

    Attributes:
        signed: without the ReLU, as circuit-tracer applies it: a row with fewer than k positive π keeps negative ones.
    """

    k: int
    signed: bool = False

    def __call__(self, pre: Tensor, plain: Plain) -> Tensor:
        values, latents = pre.topk(self.k, dim=1)
        return torch.zeros_like(pre).scatter(1, latents, values if self.signed else torch.relu(values))


@dataclass(frozen=True)
class Above:
    """z = π·[π > θ], θ [F] ≥ 0.

    Attributes:
        log: ln θ as a JumpReLU of ours keeps it, if it came from one: exp of it is θ to the bit.
        k: the mean number of codes of a BatchTopK, whose θ is one number for all latents; None: another coder's.
    """

    theta: Tensor
    log: Tensor | None = None
    k: int | None = None

    def __call__(self, pre: Tensor, plain: Plain) -> Tensor:
        return pre * (pre > self.theta.to(pre.dtype))


@dataclass(frozen=True)
class Gate:
    """z = [π > 0] · ReLU(e^r ⊙ (x W_encᵀ) + b_mag), with r = `log_scale` and `b_mag`, both [F]."""

    log_scale: Tensor
    b_mag: Tensor

    def __call__(self, pre: Tensor, plain: Plain) -> Tensor:
        scale, bias, gate_bias = (v.to(pre.dtype) for v in (self.log_scale.exp(), self.b_mag, plain.b_enc))
        return torch.relu((pre - gate_bias) * scale + bias) * (pre > 0)


Activation = Relu | KLargest | Above | Gate


@dataclass(frozen=True)
class Plain:
    """Weights on raw activations.

    Attributes:
        w_enc: [F, d_in]. b_enc: [F]. w_dec: [F, d_out]. b_dec: [d_out]. w_skip: [d_out, d_in], or None.
        activation: what makes codes of the pre-activations.
        rms: the input is divided by its root mean square, √(mean x² + 1e-6), without a gain.
        tied: an SAE (one site); otherwise a transcoder.
        groups: sizes of a nested dictionary's groups, in order; None: not nested.
    """

    w_enc: Tensor
    b_enc: Tensor
    w_dec: Tensor
    b_dec: Tensor
    w_skip: Tensor | None
    activation: Activation
    rms: bool = False
    tied: bool = True
    groups: tuple[int, ...] | None = None

    @property
    def n_latents(self) -> int:
        return int(self.w_enc.shape[0])

    @property
    def d_in(self) -> int:
        return int(self.w_enc.shape[1])

    @property
    def d_out(self) -> int:
        return int(self.w_dec.shape[1])

    def to(self, dtype: torch.dtype) -> Plain:
        """The same with weights, thresholds and gates of another dtype."""
        changed = {f.name: _cast(getattr(self, f.name), dtype) for f in fields(self)}
        act = {f.name: _cast(getattr(self.activation, f.name), dtype) for f in fields(self.activation)}
        if isinstance(self.activation, Above):
            act["log"] = self.activation.log  # not a number to compute with
        return replace(self, **{**changed, "activation": replace(self.activation, **act)})

    def pre(self, x: Tensor) -> Tensor:
        """π [B, F] of raw activations [B, d_in]."""
        return torch.nn.functional.linear(self._input(x), self.w_enc, self.b_enc)

    def encode(self, x: Tensor) -> Tensor:
        """Codes [B, F] of raw activations [B, d_in]."""
        return self.activation(self.pre(x), self)

    def decode(self, codes: Tensor, x: Tensor) -> Tensor:
        """Reconstructions [B, d_out] from codes [B, F] and, for the skip connection, raw activations [B, d_in]."""
        y = codes @ self.w_dec + self.b_dec
        return y if self.w_skip is None else y + self._input(x) @ self.w_skip.T

    def _input(self, x: Tensor) -> Tensor:
        x = x.to(self.w_enc.dtype)
        return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + RMS_EPS) if self.rms else x


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) else value


# our coders → plain


def plain_of(coder: Coder) -> Plain:
    """The coder on raw activations, in float64.

    Raises:
        UsageError: a BatchTopK that has never been trained has no threshold.
    """
    folded = coder.fold()
    groups = coder.config.group_sizes() if isinstance(coder.config, NestedConfig) else None
    return Plain(
        folded.w_enc,
        folded.b_enc,
        folded.w_dec,
        folded.b_dec,
        folded.w_skip,
        _activation_of(coder, folded.b_enc),
        rms=coder.config.input_transform == "rms",
        tied=coder.tied,
        groups=groups,
    )


@torch.no_grad()
def _activation_of(coder: Coder, b_enc: Tensor) -> Activation:
    if isinstance(coder, CrossLayer) and coder.config.selects_over == "row":
        raise UsageError("k latents of each layer are kept: thresholds are needed", "coder.selection: batchtopk")
    if isinstance(coder, CrossLayer):
        if not bool((coder.threshold > 0).all()):
            raise UsageError("this coder has no threshold in some layer: it has not been trained", "pipeline train")
        return Above(coder.threshold.double().repeat_interleave(coder.per_layer))
    if isinstance(coder, BatchTopK) and coder.selection == "batch":
        if not float(coder.threshold) > 0:
            raise UsageError("this BatchTopK coder has no threshold: it has not been trained", "pipeline train")
        return Above(coder.thresholds.double(), k=coder.config.k)
    if isinstance(coder, TopK):
        return KLargest(coder.config.k)
    if isinstance(coder, JumpReLU):
        return Above(coder.log_threshold.exp().double(), log=coder.log_threshold.detach())
    if isinstance(coder, Gated):
        scale = coder.log_scale.double()
        # the magnitude's bias in raw space: its direction is the gate's, so the folded mean is scaled with it
        return Gate(scale, coder.b_mag.double() + scale.exp() * (b_enc - coder.b_enc.double()))
    return Relu()


# plain → our coders


@torch.no_grad()
def coder_of(plain: Plain) -> Coder:
    """A coder of ours with these weights, on the CPU, in evaluation mode; its normalisation is the identity.

    Thresholds that differ between latents become those of a JumpReLU, which keeps their logarithm: they agree to a few
    units in the last place of float32.
    """
    config = config_of(plain)
    coder = build_coder(config, plain.d_in, plain.d_out, tied=plain.tied)
    state = {name: getattr(plain, name) for name in ("w_enc", "b_enc", "w_dec", "b_dec", "w_skip")}
    for name, value in state.items():
        if value is not None:
            getattr(coder, name).copy_(value)
    act = plain.activation
    if isinstance(coder, BatchTopK) and coder.selection == "batch" and isinstance(act, Above):
        coder.threshold.copy_(act.theta[0])
    elif isinstance(coder, JumpReLU) and isinstance(act, Above):
        # θ = 0 is a ReLU; the smallest normal number stands for it
        tiny = torch.finfo(torch.float32).tiny
        coder.log_threshold.copy_(act.theta.double().clamp_min(tiny).log() if act.log is None else act.log)
    elif isinstance(coder, Gated) and isinstance(act, Gate):
        coder.log_scale.copy_(act.log_scale)
        coder.b_mag.copy_(act.b_mag)
    return coder.eval()


def config_of(plain: Plain) -> CoderConfig:
    """The settings of the coder that `coder_of` builds."""
    common: dict[str, Any] = {
        "latents": plain.n_latents,
        "decoder_norm": "free",
        "normalise": "scalar",  # the identity: whatever normalisation there was is in the weights
        "skip": plain.w_skip is not None,
        "input_transform": "rms" if plain.rms else "raw",
    }
    act = plain.activation
    if isinstance(act, KLargest):
        k = min(act.k, plain.n_latents)
        if plain.groups is not None:
            return MatryoshkaConfig(**common, k=k, selection="topk", groups=plain.groups)
        return TopKConfig(**common, k=k)
    if isinstance(act, Above) and act.k is not None:
        if plain.groups is not None:
            return MatryoshkaConfig(**common, k=act.k, selection="batchtopk", groups=plain.groups)
        return BatchTopKConfig(**common, k=act.k)
    if isinstance(act, Above):
        if plain.groups is not None:
            return MatryoshkaJumpReLUConfig(**common, groups=plain.groups)
        return JumpReLUConfig(**common)
    if isinstance(act, Gate):
        return GatedConfig(**common)
    return ReLUConfig(**common)


def is_uniform(theta: Tensor) -> bool:
    """Whether all thresholds are one positive number."""
    return bool((theta == theta[0]).all()) and float(theta[0]) > 0 and math.isfinite(float(theta[0]))
