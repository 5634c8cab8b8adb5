"""A coder in place of what it reconstructs: the language model's loss with the target site replaced.

The replacement is made where the cache was read. A site that is a module's output is exchanged there. One that is a
module's input is overwritten in place, so that a residual stream that passes by the module (`residual = x;
x = norm(x)`) carries the replacement too: both names stand for one tensor. What only attention or the MLP reads
(`attn_in`, `mlp_in`) is exchanged for that module alone: where no norm stands before it (OLMo-2), its input is the
residual stream itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ....shared.cache import Cache, SiteSpec, positions
from ....shared.cache.documents import document_positions
from ....shared.cache.rows import text_rows
from ....shared.errors import DataError, UsageError
from ...subject.language_model import model_folder

Replace = Callable[[Tensor, Tensor], Tensor]
"""(source activations [B, T, d_in], target activations [B, T, d_out]) → what stands in the target's place."""

READ_BY_ONE = ("attn_in", "mlp_in")
"""Kinds of sites that one module reads, and the residual stream does not carry on."""

TOLERANCE = 0.05
"""Largest relative difference between a cached sequence and what the model says of it now."""

_MODEL = RLock()
"""Runs are finalised by several threads and share the model: one loads it, one at a time is spliced into it."""


@dataclass(frozen=True)
class Loss:
    """Sums over next-token predictions, by the position they are made at.

    Attributes:
        ce: [T] cross-entropy in nats. kl: [T] KL(clean ‖ this). tokens: [T].
    """

    ce: NDArray[np.float64]
    kl: NDArray[np.float64]
    tokens: NDArray[np.int64]

    def __add__(self, other: Loss) -> Loss:
        return Loss(self.ce + other.ce, self.kl + other.kl, self.tokens + other.tokens)

    def mean(self, which: str, first: int) -> float | None:
        """Mean of "ce" or "kl" over the predictions made from position `first` on."""
        tokens = int(self.tokens[first:].sum())
        return float(getattr(self, which)[first:].sum() / tokens) if tokens else None


@lru_cache(maxsize=1)
def load_model(folder: Path, attention: str | None, device: str) -> nn.Module:
    """The causal language model in a folder, from local files only.

    Raises:
        UsageError: it is not a causal language model that `transformers` can build.
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
        raise UsageError(f"{folder} is not a causal language model that can be loaded: {error}") from None
    finally:
        if shown:
            logging.enable_progress_bar()
    return model.to(device).eval()


def model_of(cache: Cache, device: str) -> nn.Module:
    """The model that a cache was harvested from.

    Raises:
        UsageError: it is not on this machine.
    """
    harvest, resolved = cache.config.get("harvest", {}), cache.config.get("resolved", {})
    name = harvest.get("model")
    folder = model_folder(name, resolved.get("model_revision") or harvest.get("model_revision"))
    if folder is None:
        raise UsageError(
            f"cross-entropy needs the model of {cache.path} ({name}), which is not on this machine",
            "leave the cross_entropy report out, or bring the model's folder back",
        )
    with _MODEL:
        return load_model(folder, resolved.get("attention"), device)


def _tensor(value: Any) -> Tensor:
    tensor: Tensor = value[0] if isinstance(value, tuple) else value
    return tensor


@contextmanager
def spliced(model: nn.Module, source: SiteSpec, target: SiteSpec, replace: Replace) -> Iterator[dict[str, Tensor]]:
    """Inside, every forward pass has replace(source, target) at the target site; yields what the source site held.

    Other threads wait for their turn: hooks act on whoever calls the model.
    """
    seen: dict[str, Tensor] = {}

    def keep(x: Tensor) -> None:
        seen["source"] = x.clone()

    def new(y: Tensor) -> Tensor:
        if source.name == target.name:
            keep(y)
        return replace(seen["source"], y).to(y.dtype)

    def pre_source(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        keep(_first(args, kwargs))

    def post_source(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        keep(_tensor(output))

    def pre_target(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        held = _first(args, kwargs)
        changed = new(held)
        if target.kind in READ_BY_ONE:
            return ((changed, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": changed})
        held.copy_(changed)
        return None

    def post_target(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        changed = new(_tensor(output))
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    with _MODEL, ExitStack() as stack:
        if source.name != target.name:
            module = model.get_submodule(source.module_path)
            if source.io == "in":
                stack.callback(module.register_forward_pre_hook(pre_source, with_kwargs=True).remove)
            else:
                stack.callback(module.register_forward_hook(post_source).remove)
        module = model.get_submodule(target.module_path)
        if target.io == "in":
            stack.callback(module.register_forward_pre_hook(pre_target, with_kwargs=True).remove)
        else:
            stack.callback(module.register_forward_hook(post_target).remove)
        yield seen


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    value: Tensor = args[0] if args else kwargs["hidden_states"]
    return value


def choose_sequences(
    cache: Cache, shards: tuple[int, ...], n: int, only: NDArray[np.bool_] | None = None
) -> NDArray[np.int64]:
    """At most n sequences of those shards, spread evenly; with `only` [n_rows], those with at least one such row."""
    seqs = np.concatenate([np.arange(s.start, s.stop) for s in map(cache.layout.seqs_of, shards)])
    if only is not None:
        seqs = seqs[only.reshape(-1, cache.ctx)[seqs].any(1)]
    return seqs[np.unique(np.linspace(0, len(seqs) - 1, min(n, len(seqs))).round().astype(np.int64))]


@torch.inference_mode()
def losses(
    model: nn.Module,
    cache: Cache,
    source: str,
    target: str,
    sequences: NDArray[np.int64],
    batch: int,
    replacements: dict[str, Replace],
    only: NDArray[np.bool_] | None = None,
) -> dict[str, Loss]:
    """Loss of the model as it is ("clean") and under each replacement, over the same sequences.

    The model is called as in the harvest. Where that kept the documents of a sequence apart, positions and attention
    begin anew with each, and no prediction is counted from one document to the next.

    Args:
        only: [n_rows] rows at which predictions count (the token they are made at and the next one); None: all but
            padding.

    Returns:
        "clean", and for each replacement its name (position 0 left as it is) and its name with "_all". A BOS further on
        in its sequence is at position 0 as well.

    Raises:
        DataError: the model's activations are not the cached ones: it is not the model that was harvested.
    """
    device = next(model.parameters()).device
    sites = cache.sites[source], cache.sites[target]
    apart = _apart(cache)
    totals: dict[str, Loss] = {}

    def add(name: str, loss: Loss) -> None:
        totals[name] = totals[name] + loss if name in totals else loss

    for start in range(0, len(sequences), batch):
        part = sequences[start : start + batch]
        ids = torch.from_numpy(cache.tokens[part].astype(np.int64)).to(device)
        real = torch.from_numpy(text_rows(cache.flags[part])).to(device)
        position = torch.from_numpy(positions(np.arange(cache.ctx), cache.flags[part], cache.ctx)).to(device)
        rows = real
        if only is not None:
            rows = real & torch.from_numpy(only.reshape(-1, cache.ctx)[part]).to(device)
        counted = rows[:, :-1] & rows[:, 1:]
        told: dict[str, Any] = {"attention_mask": None if bool(real.all()) else real.long()}
        if apart:
            within = torch.from_numpy(document_positions(cache.doc_id[part], ~real.cpu().numpy())).to(device)
            counted &= within[:, 1:] > 0
            # Positions say where a document begins only where there is neither a mask nor a cache of keys and values.
            told = {"attention_mask": None, "position_ids": within, "use_cache": False}
        with spliced(model, *sites, lambda _, y: y) as seen:
            clean = model(input_ids=ids, **told).logits.float().log_softmax(-1)
        _check(cache, source, int(part[0]), seen["source"][0], real[0])
        add("clean", _loss(clean, clean, ids, counted, position))
        for name, replace in replacements.items():
            for named, used in ((name, _leaving(position == 0, replace)), (f"{name}_all", replace)):
                with spliced(model, *sites, used):
                    logits = model(input_ids=ids, **told).logits.float().log_softmax(-1)
                add(named, _loss(logits, clean, ids, counted, position))
    return totals


def _apart(cache: Cache) -> bool:
    """Whether documents shared sequences in the harvest and did not see one another."""
    harvest = cache.config.get("harvest", {})
    return harvest.get("packing", "concat") == "concat" and not harvest.get("cross_document_attention", True)


def _leaving(rows: Tensor, replace: Replace) -> Replace:
    """The same replacement with some rows [B, T] left as they are."""
    return lambda x, y: torch.where(rows[..., None], y, replace(x, y).to(y.dtype))


def _loss(logits: Tensor, clean: Tensor, ids: Tensor, counted: Tensor, position: Tensor) -> Loss:
    """Sums by position [B, T] of log-probabilities [B, T, V] over the predictions that count [B, T - 1]."""
    ce = -logits[:, :-1].gather(-1, ids[:, 1:, None]).squeeze(-1)
    kl = (clean[:, :-1].exp() * (clean[:, :-1] - logits[:, :-1])).sum(-1)
    n, place = ids.shape[1], position[:, :-1][counted].cpu().numpy()

    def by_position(values: Tensor) -> NDArray[np.float64]:
        return np.bincount(place, values[counted].double().cpu().numpy(), minlength=n).astype(np.float64)

    return Loss(by_position(ce), by_position(kl), np.bincount(place, minlength=n))


def _check(cache: Cache, source: str, sequence: int, found: Tensor, real: Tensor) -> None:
    rows = np.arange(sequence * cache.ctx, (sequence + 1) * cache.ctx)
    cached = cache.rows(source, rows).float().to(found.device)
    off = float((found.float() - cached)[real].norm() / cached[real].norm().clamp_min(1e-12))
    if not off <= TOLERANCE:
        raise DataError(
            f"the model gives other activations at {source} than {cache.path} holds: {100 * off:.1f}% off in sequence "
            f"{sequence}, expected at most {100 * TOLERANCE:.0f}%",
            "splice into the model that the cache was harvested from",
        )
