"""A norm's output without its gain: what Gemma Scope's transcoders read (TransformerLens: `ln2.hook_normalized`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..shared.errors import UsageError

_SAME = 0.02  # relative; bfloat16 rounds to 0.4 %
_PROBE = 8

Normalise = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class NormParts:
    """A norm in two steps.

    Attributes:
        normalise: its input → what it computes before gain and bias, [..., d] each, in the input's dtype.
        scale: that → its output.
    """

    normalise: Normalise
    scale: Normalise


def norm_parts(norm: nn.Module, path: str) -> NormParts:
    """The two steps of a norm.

    Which one it is (RMSNorm or LayerNorm; a gain of w or 1 + w) is found by comparing with the module itself, so that a
    norm of another form is refused instead of being read wrongly. Weights without memory (plans) are not compared.

    Raises:
        UsageError: the module is no such norm.
    """
    names = ("variance_epsilon", "eps", "epsilon", "norm_eps")
    epsilon = next((float(getattr(norm, name)) for name in names if getattr(norm, name, None) is not None), 1e-6)
    gain, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    if isinstance(gain, Tensor) and gain.ndim == 1:
        if _imagined(gain):
            form = _centred if isinstance(norm, nn.LayerNorm) else _rms
            return NormParts(form(epsilon), _scaled(gain, bias))
        x = torch.randn(_PROBE, len(gain), generator=torch.Generator().manual_seed(0)) + 0.5
        x = x.to(gain.device, gain.dtype)
        with torch.no_grad():
            expected = norm.forward(x).float()  # past the hooks of sites
            for normalise in (_rms(epsilon), _centred(epsilon)):
                for factor in (gain.float(), 1 + gain.float()):
                    parts = NormParts(normalise, _scaled(factor, bias))
                    if (parts.scale(parts.normalise(x.float())) - expected).norm() <= _SAME * expected.norm():
                        return parts
    raise UsageError(
        f"{path}:nogain: {type(norm).__name__} is not a norm with a gain for each dimension",
        hint="use :in or :out of the module",
    )


def _imagined(gain: Tensor) -> bool:
    from torch._subclasses.fake_tensor import FakeTensor

    return gain.is_meta or isinstance(gain.data, FakeTensor)


def _scaled(factor: Tensor, bias: Tensor | None) -> Normalise:
    def scale(x: Tensor) -> Tensor:
        wide = x.float() * factor
        return (wide if bias is None else wide + bias.float()).to(x.dtype)

    return scale


def _rms(epsilon: float) -> Normalise:
    def normalise(x: Tensor) -> Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)).to(x.dtype)

    return normalise


def _centred(epsilon: float) -> Normalise:
    def normalise(x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide - wide.mean(-1, keepdim=True)
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)).to(x.dtype)

    return normalise
