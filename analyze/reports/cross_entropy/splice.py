"""The language model's loss with a coder spliced in at its target site (models/splice.py says how)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import replace as replace_field
from functools import lru_cache
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ....models.folder import model_folder
from ....models.splice import Replace, spliced
from ....shared.cache import Cache, positions
from ....shared.cache.documents import document_positions
from ....shared.cache.rows import counted_rows, text_rows
from ....shared.errors import DataError, UsageError
from ...subject.harvested import is_made, made_model

TOLERANCE = 0.05
"""Largest relative difference between a sequence's cached activations and the model's."""

_MODEL = RLock()
"""Runs are finalised by several threads that share one model: one thread at a time loads it or splices into it."""


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


@lru_cache(maxsize=1)
def load_model(folder: Path, attention: str | None, device: str) -> nn.Module:
    """The causal language model in a folder, from local files only.

    Args:
        folder: with config.json and weights.
        attention: the attention implementation of the harvest; None or "default": the model's own.
        device: to which it is moved; CUDA runs it in bfloat16, the CPU in float32.

    Raises:
        UsageError: `transformers` cannot load a causal language model from it.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    extra = {} if attention in (None, "default") else {"attn_implementation": attention}
    try:
        model: nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True, **extra)
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"cannot load a causal language model from {folder}: {error}") from None
    finally:
        if shown:
            logging.enable_progress_bar()
    return model.to(device).eval()


def model_of(cache: Cache, device: str) -> nn.Module:
    """The model that a cache was harvested from.

    Raises:
        UsageError: its files are not on this machine.
        DataError: its adapter or GGUF file has changed since the harvest.
    """
    if is_made(cache):
        with _MODEL:
            return made_model(cache, device)
    harvest, resolved = cache.config.get("harvest", {}), cache.config.get("resolved", {})
    name = harvest.get("model")
    folder = model_folder(name, resolved.get("model_revision") or harvest.get("model_revision"))
    if folder is None:
        raise UsageError(
            f"the cross_entropy report needs the model of {cache.path}, but {name} is not on this machine",
            "restore the model's folder, or analyze without the cross_entropy report",
        )
    with _MODEL:
        return load_model(folder, resolved.get("attention"), device)


def choose_sequences(
    cache: Cache, shards: tuple[int, ...], n: int, only: NDArray[np.bool_] | None = None
) -> NDArray[np.int64]:
    """At most n sequences of these shards, spread evenly. [≤ n], ascending.

    Args:
        cache: of the sequences.
        shards: to choose from.
        n: maximum number of sequences.
        only: [n_rows] choose sequences with at least one such row; None: all.
    """
    seqs = np.concatenate([np.arange(s.start, s.stop) for s in map(cache.layout.seqs_of, shards)])
    if only is not None:
        seqs = seqs[only.reshape(-1, cache.ctx)[seqs].any(1)]
    return seqs[np.unique(np.linspace(0, len(seqs) - 1, min(n, len(seqs))).round().astype(np.int64))]


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
) -> dict[str, Loss]:
    """Loss of the model as it is ("clean") and under each replacement, over the same sequences.

    The model is called as in the harvest. Where the harvest separated the documents of a sequence, positions and
    attention restart with each document, and a prediction across documents is not counted.

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

    Returns:
        "clean", and for each replacement its name (position 0 keeps its activations) and its name with "_all" (position
        0 is replaced too). A BOS inside a sequence is at position 0 as well. With massive rows, each name with
        "_ordinary" too: massive rows keep their activations like position 0, and their predictions do not count.

    Raises:
        DataError: the model's activations differ from the cached ones: it is not the model that was harvested.
    """
    sites = cache.sites[source], cache.sites[target]
    totals: dict[str, Loss] = {}

    def add(name: str, loss: Loss) -> None:
        totals[name] = totals[name] + loss if name in totals else loss

    for start in range(0, len(sequences), batch):
        some, device = sequences[start : start + batch], next(model.parameters()).device
        part = _inputs(cache, some, only, device)
        ordinary = None if massive is None else _ordinary(part, massive.reshape(-1, cache.ctx)[some])
        with _MODEL, spliced(model, *sites, lambda _, y: y) as seen:
            clean = part.log_probabilities(model)
        _check(cache, source, int(sequences[start]), found=seen["source"][0], real=part.real[0])
        add("clean", _loss(clean, clean, part))
        if ordinary is not None:
            add("clean_ordinary", _loss(clean, clean, ordinary.part))
        for named, used, counted in _variants(replacements, part, ordinary):
            with _MODEL, spliced(model, *sites, used):
                add(named, _loss(part.log_probabilities(model), clean, counted))
    return totals


def _variants(
    replacements: dict[str, Replace], part: _Inputs, ordinary: _Ordinary | None
) -> Iterator[tuple[str, Replace, _Inputs]]:
    """(name, what replaces, predictions that count) of each forward pass: position 0 kept, nothing kept, and, where
    there are massive rows, those kept too."""
    kept = part.position == 0
    for name, replace in replacements.items():
        yield name, _leaving(kept, replace), part
        yield f"{name}_all", replace, part
        if ordinary is not None:
            yield f"{name}_ordinary", _leaving(kept | ordinary.massive, replace), ordinary.part


@dataclass(frozen=True)
class _Inputs:
    """A batch of sequences as the harvest showed them to the model.

    Attributes:
        ids: [B, T] tokens.
        real: [B, T] not padding.
        position: [B, T], 0 at each BOS.
        counted: [B, T − 1] predictions that count, at the row that makes them.
        told: further arguments of the model.
    """

    ids: Tensor
    real: Tensor
    position: Tensor
    counted: Tensor
    told: dict[str, Any]

    def log_probabilities(self, model: nn.Module) -> Tensor:
        """[B, T, V] float32, of the next token."""
        logits: Tensor = model(input_ids=self.ids, **self.told).logits
        return logits.float().log_softmax(-1)


@dataclass(frozen=True)
class _Ordinary:
    """The same inputs, predictions of massive rows [B, T] not counted."""

    part: _Inputs
    massive: Tensor


def _ordinary(part: _Inputs, massive: NDArray[np.bool_]) -> _Ordinary:
    rows = torch.from_numpy(massive).to(part.ids.device)
    return _Ordinary(replace_field(part, counted=part.counted & ~rows[:, :-1]), rows)


def _inputs(
    cache: Cache, sequences: NDArray[np.int64], only: NDArray[np.bool_] | None, device: torch.device
) -> _Inputs:
    flags = cache.flags[sequences]
    ids = torch.from_numpy(cache.tokens[sequences].astype(np.int64)).to(device)
    real = torch.from_numpy(text_rows(flags)).to(device)
    position = torch.from_numpy(positions(np.arange(cache.ctx), flags, cache.ctx)).to(device)
    rows = torch.from_numpy(counted_rows(flags)).to(device)
    if only is not None:
        rows = rows & torch.from_numpy(only.reshape(-1, cache.ctx)[sequences]).to(device)
    counted = rows[:, :-1] & rows[:, 1:]
    told: dict[str, Any] = {"attention_mask": None if bool(real.all()) else real.long()}
    if _apart(cache):
        within = torch.from_numpy(document_positions(cache.doc_id[sequences], ~real.cpu().numpy())).to(device)
        counted &= within[:, 1:] > 0
        # `transformers` derives the documents from restarting positions only without a mask and without a KV cache.
        told = {"attention_mask": None, "position_ids": within, "use_cache": False}
    return _Inputs(ids, real, position, counted, told)


def _apart(cache: Cache) -> bool:
    """Whether the harvest packed documents into shared sequences without attention across them."""
    harvest = cache.config.get("harvest", {})
    return harvest.get("packing", "concat") == "concat" and not harvest.get("cross_document_attention", True)


def _leaving(rows: Tensor, replace: Replace) -> Replace:
    """The same replacement, except that the given rows [B, T] keep their activations."""
    return lambda x, y: torch.where(rows[..., None], y, replace(x, y).to(y.dtype))


def _loss(spliced_in: Tensor, clean: Tensor, part: _Inputs) -> Loss:
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
