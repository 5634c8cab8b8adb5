"""The language model's loss with something else at one of its sites (models/splice.py says how)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import replace as replace_field
from threading import RLock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..shared.cache import Cache
from ..shared.errors import DataError
from .sequences import Inputs, inputs_of
from .splice import Replace, spliced

TOLERANCE = 0.05
"""Largest relative difference between a sequence's cached activations and the model's."""

ONE_MODEL = RLock()
"""Several threads share one model: one at a time loads it or splices into it."""


@dataclass(frozen=True)
class Loss:
    """Sums over next-token predictions, by the position at which they are made.

    Attributes:
        ce: [T] cross-entropy in nats.
        kl: [T] KL(clean ‖ this) in nats.
        tokens: [T] number of predictions.
    """

    ce: NDArray[np.float64]
    kl: NDArray[np.float64]
    tokens: NDArray[np.int64]

    def __add__(self, other: Loss) -> Loss:
        return Loss(self.ce + other.ce, self.kl + other.kl, self.tokens + other.tokens)

    def mean(self, which: str, first: int) -> float | None:
        """Mean of "ce" or "kl" over the predictions at positions ≥ `first`; None if there are none."""
        tokens = int(self.tokens[first:].sum())
        return float(getattr(self, which)[first:].sum() / tokens) if tokens else None


@torch.inference_mode()
def losses(
    model: nn.Module,
    cache: Cache,
    sequences: NDArray[np.int64],
    *,
    source: str,
    target: str,
    batch: int,
    replacements: dict[str, Replace],
    only: NDArray[np.bool_] | None = None,
    massive: NDArray[np.bool_] | None = None,
    kept: NDArray[np.bool_] | None = None,
    position_0: bool = True,
) -> dict[str, Loss]:
    """Loss of the model as it is ("clean") and under each replacement, over the same sequences (:func:`inputs_of`).

    Args:
        model: the one that was harvested.
        cache: of the sequences.
        sequences: their numbers.
        source: site that the coder reads.
        target: site that is replaced.
        batch: sequences in one forward pass.
        replacements: name → replacement.
        only: [n_rows] rows at which predictions count (the row of the prediction and the next one); None: all rows
            except padding.
        massive: [n_rows] massive rows of the cache; None: there are none.
        kept: [n_rows] rows that keep their activations besides position 0; None: no others.
        position_0: also run with position 0 replaced.

    Returns:
        "clean", and for each replacement its name (position 0 keeps its activations) and, with `position_0`, its name
        with "_all" (nothing keeps its activations). A BOS inside a sequence is at position 0 as well. With massive
        rows, each name with "_ordinary" too: massive rows keep their activations like position 0, and their predictions
        do not count.

    Raises:
        DataError: the model's activations differ from the cached ones: it is not the model that was harvested.
    """
    sites = cache.sites[source], cache.sites[target]
    totals: dict[str, Loss] = {}

    def add(name: str, loss: Loss) -> None:
        totals[name] = totals[name] + loss if name in totals else loss

    for start in range(0, len(sequences), batch):
        some, device = sequences[start : start + batch], next(model.parameters()).device
        part = inputs_of(cache, some, only, device)
        ordinary = None if massive is None else _ordinary(part, massive.reshape(-1, cache.ctx)[some])
        with ONE_MODEL, spliced(model, *sites, lambda _, y: y) as seen:
            clean = part.log_probabilities(model)
        _check(cache, source, int(sequences[start]), found=seen["source"][0], real=part.real[0])
        add("clean", _loss(clean, clean, part))
        if ordinary is not None:
            add("clean_ordinary", _loss(clean, clean, ordinary.part))
        keeping = _keeping(part, None if kept is None else kept.reshape(-1, cache.ctx)[some])
        for named, used, counted in _variants(replacements, part, ordinary, kept=keeping, position_0=position_0):
            with ONE_MODEL, spliced(model, *sites, used):
                add(named, _loss(part.log_probabilities(model), clean, counted))
    return totals


def _keeping(part: Inputs, kept: NDArray[np.bool_] | None) -> Tensor:
    """[B, T]: rows that keep their activations: position 0, and those of `kept` [B, T]."""
    first = part.position == 0
    return first if kept is None else first | torch.from_numpy(kept).to(first.device)


def _variants(
    replacements: dict[str, Replace], part: Inputs, ordinary: _Ordinary | None, *, kept: Tensor, position_0: bool
) -> Iterator[tuple[str, Replace, Inputs]]:
    """(name, what replaces, predictions that count) of each forward pass: `kept` rows kept, with `position_0` nothing
    kept, and, where there are massive rows, those kept too."""
    for name, replace in replacements.items():
        yield name, leaving(kept, replace), part
        if position_0:
            yield f"{name}_all", replace, part
        if ordinary is not None:
            yield f"{name}_ordinary", leaving(kept | ordinary.massive, replace), ordinary.part


@dataclass(frozen=True)
class _Ordinary:
    """The same inputs, predictions of massive rows [B, T] not counted."""

    part: Inputs
    massive: Tensor


def _ordinary(part: Inputs, massive: NDArray[np.bool_]) -> _Ordinary:
    rows = torch.from_numpy(massive).to(part.ids.device)
    return _Ordinary(replace_field(part, counted=part.counted & ~rows[:, :-1]), rows)


def leaving(rows: Tensor, replace: Replace) -> Replace:
    """The same replacement, except that the given rows [B, T] keep their activations."""
    return lambda x, y: torch.where(rows[..., None], y, replace(x, y).to(y.dtype))


def _loss(spliced_in: Tensor, clean: Tensor, part: Inputs) -> Loss:
    """Sums by position over the predictions that count, from log-probabilities [B, T, V]."""
    ce = -spliced_in[:, :-1].gather(-1, part.ids[:, 1:, None]).squeeze(-1)
    kl = (clean[:, :-1].exp() * (clean[:, :-1] - spliced_in[:, :-1])).sum(-1)
    n, place = part.ids.shape[1], part.position[:, :-1][part.counted].cpu().numpy()

    def by_position(values: Tensor) -> NDArray[np.float64]:
        return np.bincount(place, values[part.counted].double().cpu().numpy(), minlength=n).astype(np.float64)

    return Loss(by_position(ce), by_position(kl), np.bincount(place, minlength=n))


def _check(cache: Cache, source: str, sequence: int, *, found: Tensor, real: Tensor) -> None:
    """Compares a sequence's activations [T, d] with the cached ones, excluding padding and rows that are not finite."""
    rows = np.arange(sequence * cache.ctx, (sequence + 1) * cache.ctx)
    cached = cache.rows(source, rows).float().to(found.device)
    real = real & cached.isfinite().all(dim=1)
    off = float((found.float() - cached)[real].norm() / cached[real].norm().clamp_min(1e-12))
    if not off <= TOLERANCE:
        raise DataError(
            f"the model's activations at {source} differ from those in {cache.path}: by {100 * off:.1f}% in sequence "
            f"{sequence}, expected at most {100 * TOLERANCE:.0f}%",
            "restore the model that the cache was harvested from",
        )
