"""Turns one activation into another that a format knows: exactly where that is possible, else fitted on rows.

ReLU    → threshold   exact (θ = 0)             ReLU      → TopK   exact (k = F)
gated   → threshold   exact (see `_ungated`)    gated     → TopK   as a threshold
TopK    → threshold   fitted: one θ with the same mean number of codes on the rows
threshold → TopK      fitted: k = the mean number of codes on the rows
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..shared.errors import UsageError
from ..shared.memory import rows_within
from .plain import Above, Gate, KLargest, Plain, Relu

BATCH = 1024
"""Rows whose codes are formed at once."""

CANDIDATES = 8
"""A threshold is searched among the CANDIDATES·k largest pre-activations of each row."""

HINT = "--cache PATH, the cache that the coder reads"


@dataclass(frozen=True)
class Converted:
    """The coder in another form.

    Attributes:
        plain: the coder.
        fitted: what was fitted and on what; None: the conversion is exact.
    """

    plain: Plain
    fitted: str | None = None


def to_known(plain: Plain, known: tuple[type, ...], rows: Tensor | None) -> Converted:
    """The coder with an activation among `known`.

    Args:
        known: classes of exchange/plain.py, in the order of preference.
        rows: [n, d_in] raw activations to fit on; None: there are none.

    Raises:
        UsageError: the conversion needs rows.
    """
    if isinstance(plain.activation, known):
        return Converted(plain)
    if isinstance(plain.activation, Gate):
        return to_known(_ungated(plain), known, rows)
    if Above in known:
        if isinstance(plain.activation, Relu):
            zero = torch.zeros(plain.n_latents, dtype=plain.b_enc.dtype)
            return Converted(replace(plain, activation=Above(zero)))
        return _with_threshold(plain, rows)
    if isinstance(plain.activation, Relu):
        return Converted(replace(plain, activation=KLargest(plain.n_latents)))
    return _with_k(plain, rows)


def _ungated(plain: Plain) -> Plain:
    """A gated coder as thresholds over its magnitudes m = e^r (x w) + b_mag: [π > 0] = [m > b_mag − e^r b_enc]."""
    gate = plain.activation
    assert isinstance(gate, Gate)
    scale = gate.log_scale.exp()
    theta = (gate.b_mag - scale * plain.b_enc).clamp_min(0)
    return replace(plain, w_enc=plain.w_enc * scale[:, None], b_enc=gate.b_mag, activation=Above(theta))


def _with_threshold(plain: Plain, rows: Tensor | None) -> Converted:
    """TopK → the θ above which, over the rows, as many pre-activations lie as TopK keeps."""
    act = plain.activation
    assert isinstance(act, KLargest)
    if rows is None or not len(rows):
        raise UsageError(f"a TopK coder needs rows to fit a threshold on (k = {act.k})", HINT)
    width = min(CANDIDATES * act.k, plain.n_latents)
    single = plain.to(torch.float32)
    step = rows_within(4 * plain.n_latents, BATCH)
    pool = torch.cat([single.pre(part).topk(width, dim=1).values.flatten() for part in torch.split(rows, step)])
    wanted = act.k * len(rows)
    largest = pool.clamp_min(0).topk(min(wanted + 1, pool.numel())).values
    theta = float(largest[-2:].double().mean()) if len(largest) > wanted else 0.0
    uniform = torch.full((plain.n_latents,), max(theta, 0.0), dtype=plain.b_enc.dtype)
    return Converted(
        replace(plain, activation=Above(uniform)),
        f"TopK with k = {act.k} as one threshold θ = {theta:.6g}: as many codes on average over {len(rows):,} rows, "
        "but not on each row",
    )


def _with_k(plain: Plain, rows: Tensor | None) -> Converted:
    """Thresholds → TopK with their mean number of codes."""
    if rows is None or not len(rows):
        raise UsageError("a coder with thresholds needs rows to choose k on", HINT)
    single = plain.to(torch.float32)
    step = rows_within(4 * plain.n_latents, BATCH)
    active = sum([int((single.encode(part) > 0).sum()) for part in torch.split(rows, step)])
    k = min(max(1, round(active / len(rows))), plain.n_latents)
    return Converted(
        replace(plain, activation=KLargest(k)),
        f"thresholds as TopK with k = {k}: the mean number of codes over {len(rows):,} rows, but on every row",
    )
