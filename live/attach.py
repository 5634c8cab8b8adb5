"""A coder attached to a language model: every forward pass has its reconstruction, or an edit of it, at its target.

With x the activations at the source site, y those at the target site, z = encode(x) the codes, d_i the decoder row of
latent i in raw activation space, and z' the codes with those of the chosen latents multiplied by `strength`:

    replace    y ← decode(z')
    add error  y ← decode(z') + (y − decode(z))
    ablate     y ← decode(z') + (y − decode(z)) with strength 0, which is y − Σ z_i d_i
    steer      y ← y + Σ strength_i d_i

Position 0 keeps its activations unless requested otherwise: its state is the same in every text, of a norm that no
other token has, and reports exclude it too.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..models.held import body_of, names_of, rooted, sites_of
from ..models.splice import spliced
from ..shared.coders import Coder, Codes
from ..shared.config.registry import did_you_mean
from ..shared.errors import UsageError

Mode = Literal["replace", "add error", "ablate", "steer"]
MODES: tuple[str, ...] = get_args(Mode)


@dataclass
class Attached:
    """What an attached coder saw in the last forward pass.

    Attributes:
        source, target: the sites.
        last: codes of its B·T rows, before any edit; None before the first pass.
        shape: (B, T) of that pass.
    """

    source: str
    target: str
    last: Codes | None = None
    shape: tuple[int, int] = (0, 0)

    @property
    def codes(self) -> Tensor:
        """Codes of the last forward pass, [B, T, F]. Raises UsageError before the first one."""
        if self.last is None:
            raise UsageError("the model has not run since the coder was attached")
        return self.last.dense().detach().reshape(*self.shape, -1)


@contextmanager
def attach(
    model: nn.Module,
    coder: Coder,
    source: str | None = None,
    target: str | None = None,
    *,
    mode: Mode = "replace",
    latents: Sequence[int] | int | None = None,
    strength: Sequence[float] | float | None = None,
    include_position_0: bool = False,
) -> Iterator[Attached]:
    """A context in which the model runs with the coder at its target site; afterwards the model is as before.

    Several coders may be attached at once, one `with` inside the other. Generation with a KV cache works too.

    Args:
        model: of `transformers`, of a family with named sites, or of any family if the sites are module paths.
        coder: on the model's device; it runs in its own dtype, the result has the model's.
        source: site that the coder reads; None: the one it was trained on.
        target: site that changes; None: the one it was trained on. An SAE's is its source.
        mode: what the target becomes, see the formulas of this module.
        latents: whose codes change (replace, add error), are removed (ablate), or are added (steer).
        strength: factor on the codes of `latents` (replace, add error), or the code that is added (steer): one number,
            or one for each latent.
        include_position_0: change position 0 as well.

    Yields:
        The codes of the last forward pass.

    Raises:
        UsageError: an unknown site or mode, latents or strength that the mode lacks or does not take, or a coder that
            does not fit the site's width or the model's device.
    """
    read, written = names_of(coder, source, target)
    site_read, site_written = sites_of(model, read, written)
    edit = _edit(coder, mode, latents, strength)
    seen = Attached(read, written)
    positions = _Positions()

    def change(x: Tensor, y: Tensor) -> Tensor:
        _check_fit(coder, x, y, seen)
        rows = x.flatten(0, -2)
        codes = coder.encode(rows)
        seen.last, seen.shape = codes, (x.shape[0], x.shape[1])
        new = edit(codes, rows, y.flatten(0, -2).to(coder.w_dec.dtype)).reshape(y.shape).to(y.dtype)
        first = None if include_position_0 else positions.first(y)
        return new if first is None else torch.where(first[..., None], y, new)

    handle = body_of(model).register_forward_pre_hook(positions.note, with_kwargs=True)
    try:
        with spliced(rooted(model), site_read, site_written, change):
            yield seen
    finally:
        handle.remove()


Edit = Callable[[Codes, Tensor, Tensor], Tensor]
"""(codes of the rows, source rows [N, d_in], target rows [N, d_out]) → new target rows."""


def _edit(
    coder: Coder, mode: str, latents: Sequence[int] | int | None, strength: Sequence[float] | float | None
) -> Edit:
    """The edit of a mode. Raises UsageError for arguments that do not fit it."""
    if mode not in MODES:
        raise UsageError(f"mode: found {mode!r}{did_you_mean(mode, MODES)}", f"one of: {', '.join(MODES)}")
    chosen = _chosen(coder, latents)
    if mode == "ablate" and strength is not None:
        raise UsageError("mode ablate takes no strength: it removes the latents", 'mode="add error" with a strength')
    if mode in ("ablate", "steer") and chosen is None:
        raise UsageError(f"mode {mode} requires latents", "latents=[3, 17]")
    if mode != "ablate" and (chosen is None) != (strength is None):
        missing = "latents" if chosen is None else "strength"
        raise UsageError(f"mode {mode}: found {'strength' if chosen is None else 'latents'} without {missing}")
    if chosen is None:
        if mode == "replace":
            return lambda codes, x, _: coder.decode(codes, x)
        return lambda codes, x, y: (whole := coder.decode(codes, x)) + (y - whole)
    factors = _strengths(chosen, 0.0 if mode == "ablate" else strength)
    if mode == "steer":
        with torch.no_grad():
            added = factors.to(coder.w_dec) @ coder.raw_directions(coder.w_dec.detach()[chosen])
        return lambda _codes, _x, y: y + added.to(y.device)
    factor = torch.ones(coder.n_latents).scatter(0, chosen, factors)

    def edited(codes: Codes) -> Codes:
        by_latent = factor.to(codes.values)
        return replace(codes, values=codes.values * (by_latent if codes.latents is None else by_latent[codes.latents]))

    if mode == "replace":
        return lambda codes, x, _: coder.decode(edited(codes), x)
    return lambda codes, x, y: coder.decode(edited(codes), x) + (y - coder.decode(codes, x))


def _chosen(coder: Coder, latents: Sequence[int] | int | None) -> Tensor | None:
    """The latents [n] int64. Raises UsageError if one does not exist or is given twice."""
    if latents is None:
        return None
    ids = [latents] if isinstance(latents, int) else [int(one) for one in latents]
    wrong = [one for one in ids if not 0 <= one < coder.n_latents]
    if wrong or not ids:
        raise UsageError(f"latents: found {wrong or 'none'}, expected some of 0 … {coder.n_latents - 1}")
    if len(set(ids)) < len(ids):
        raise UsageError(f"latents: found one of them twice: {ids}")
    return torch.tensor(ids)


def _strengths(chosen: Tensor, strength: Sequence[float] | float | None) -> Tensor:
    """One number for each latent."""
    if isinstance(strength, Sequence):
        if len(strength) != len(chosen):
            raise UsageError(f"strength: found {len(strength)} numbers for {len(chosen)} latents")
        return torch.tensor([float(one) for one in strength])
    return torch.full((len(chosen),), float(strength or 0.0))


def _check_fit(coder: Coder, x: Tensor, y: Tensor, sites: Attached) -> None:
    """Raises UsageError where the coder's widths or device are not the model's."""
    for name, found, expected in ((sites.source, x, coder.d_in), (sites.target, y, coder.d_out)):
        if found.shape[-1] != expected:
            raise UsageError(f"{name} has width {found.shape[-1]} in this model, the coder expects {expected}")
    if coder.w_enc.device != x.device:
        raise UsageError(
            f"the coder is on {coder.w_enc.device}, {sites.source} on {x.device}", f'coder.to("{x.device}")'
        )


class _Positions:
    """Which tokens of a forward pass are at position 0, from the arguments of the call."""

    def __init__(self) -> None:
        self._called: Mapping[str, Any] = {}

    def note(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Forward pre-hook of the model's body."""
        named = dict(zip(inspect.signature(module.forward).parameters, args, strict=False))
        self._called = {name: value for name, value in {**named, **kwargs}.items() if value is not None}

    def first(self, y: Tensor) -> Tensor | None:
        """[B, T] true at position 0; None if no token is there. y is [B, T, d]."""
        positions = self._called.get("position_ids")
        if isinstance(positions, Tensor):
            first = (positions == 0).to(y.device)
            return first.expand(y.shape[:2]) if bool(first.any()) else None
        for name in ("past_key_values", "cache"):
            past = self._called.get(name)
            if past is not None and past.get_seq_length() > 0:
                return None
        mask = self._called.get("attention_mask")
        if isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape == y.shape[:2]:
            real = mask.to(y.device).bool()  # padding on the left: the text begins later
            return real & (real.cumsum(1) == 1)
        first = torch.zeros(y.shape[:2], dtype=torch.bool, device=y.device)
        first[:, 0] = True
        return first
