"""The figures of a coder before and after tuning, on sequences with held-out rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from ..models.sequences import choose_sequences
from ..models.splice import by_reconstruction, by_zero
from ..models.spliced_loss import losses
from ..shared.coders import Coder
from ..shared.fvu import FVU
from .plan import TunePlan

ROWS_AT_ONCE = 4096


@torch.no_grad()
def figures(plan: TunePlan, coder: Coder, model: nn.Module) -> dict[str, Any]:
    """The figures of `shared.runs.tuned`, of a coder as it is in use.

    FVU, L0 and dead latents come from the cached activations of the measured rows; cross-entropy and KL from the model,
    over its predictions at them, while the coder replaces the rows that it may.

    Raises:
        DataError: the model's activations differ from the cached ones.
    """
    was_training = coder.training
    coder.eval()
    try:
        return _from_cache(plan, coder) | _from_model(plan, coder, model)
    finally:
        coder.train(was_training)


def measured_sequences(plan: TunePlan) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The sequences that the figures come from."""
    return choose_sequences(plan.cache, tuple(plan.cache.shards), plan.config.eval_sequences, plan.rows.measured)


def _from_cache(plan: TunePlan, coder: Coder) -> dict[str, Any]:
    cache, device = plan.cache, coder.w_enc.device
    of = (measured_sequences(plan)[:, None] * cache.ctx + np.arange(cache.ctx)).reshape(-1)
    rows = of[plan.rows.measured[of]]
    fvu = FVU(torch.from_numpy(cache.stats(plan.target).rest.mean))
    fired = torch.zeros(coder.n_latents, dtype=torch.bool, device=device)
    active = 0
    for start in range(0, len(rows), ROWS_AT_ONCE):
        some = rows[start : start + ROWS_AT_ONCE]
        x, y = (cache.rows(site, some).to(device) for site in (plan.source, plan.target))
        codes = coder.encode(x)
        fvu.update(y, coder.decode(codes, x))
        fired |= codes.fired()
        active += int(codes.l0().sum())
    return {
        "rows": len(rows),
        "fvu": fvu.value,
        "fvu_dims": fvu.mean_over_dimensions,
        "l0": active / len(rows),
        "dead": int((~fired).sum()),
    }


def _from_model(plan: TunePlan, coder: Coder, model: nn.Module) -> dict[str, Any]:
    found = losses(
        model,
        plan.cache,
        measured_sequences(plan),
        source=plan.source,
        target=plan.target,
        batch=plan.config.sequences,
        replacements={"coder": by_reconstruction(coder), "zero": by_zero},
        only=plan.rows.measured,
        kept=~plan.rows.replaced,
        position_0=False,
    )
    clean, spliced, zero = (found[name].mean("ce", 1) for name in ("clean", "coder", "zero"))
    recovered = None
    if clean is not None and spliced is not None and zero is not None and zero > clean:
        recovered = (zero - spliced) / (zero - clean)
    return {
        "predictions": int(found["clean"].tokens[1:].sum()),
        "ce_clean": clean,
        "ce": spliced,
        "ce_zero": zero,
        "ce_recovered": recovered,
        "kl": found["coder"].mean("kl", 1),
    }
