"""The language model that a coder was trained on: found through its run's cache, and checked before it is used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..shared.cache import Cache, open_cache
from ..shared.cache.rows import text_rows
from ..shared.coders.io import read_coder_config
from ..shared.errors import DataError, UsageError
from .capture import SiteReader
from .checkpoint import LoadSettings, ModelCheckpoint, find_checkpoint, fingerprint
from .families import family_of
from .held import body_of, rooted, sites_of
from .loading import load_model
from .tokenizer import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOLERANCE = 0.05
"""Largest relative difference between cached activations and the model's; storage in 8 bits stays below it."""


@dataclass(frozen=True)
class Origin:
    """Where a coder comes from.

    Attributes:
        cache: the cache of its run; None if its folder names none, or it was not found.
        missing: why there is no cache.
        model: the model that an imported coder's metadata name; None: none.
    """

    cache: Cache | None
    missing: str = ""
    model: str | None = None

    @property
    def bos(self) -> str:
        """`harvest.bos` of the cache."""
        harvest: Mapping[str, Any] = {} if self.cache is None else self.cache.config.get("harvest", {})
        return str(harvest.get("bos", "auto"))

    @property
    def settings(self) -> LoadSettings:
        """The model as the harvest loaded it.

        Raises:
            UsageError: it is not known.
        """
        harvest: Mapping[str, Any] = {} if self.cache is None else self.cache.config.get("harvest", {})
        resolved: Mapping[str, Any] = {} if self.cache is None else self.cache.config.get("resolved", {})
        if not harvest.get("model") and self.model:
            return LoadSettings(self.model)
        if not harvest.get("model"):
            why = self.missing or f"{self.cache.path if self.cache else 'the cache'} does not say which"
            raise UsageError(f"the coder's language model is not known: {why}", "--model FOLDER with its checkpoint")
        attention = resolved.get("attention", "default")
        return LoadSettings(
            model=str(harvest["model"]),
            model_revision=resolved.get("model_revision") or harvest.get("model_revision"),
            dtype=str(harvest.get("dtype", "auto")),
            attention="auto" if attention == "default" else attention,
        )


@dataclass(frozen=True)
class Loaded:
    """A language model, ready to run.

    Attributes:
        checked: how it was found to be the right one; "" where nothing could tell.
        bos: what a text begins with, as the harvest set it (`harvest.bos`).
    """

    name: str
    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    checked: str = ""
    bos: str = "auto"


def _document(folder: Path) -> dict[str, Any]:
    final = folder / "final"
    return read_coder_config(final if (final / "config.json").is_file() else folder)


def coder_sha256(folder: Path) -> str:
    """The sha256 of the tensors of the coder in a run's folder, or in a folder with its config.json."""
    return str(_document(folder)["sha256"])


def origin_of(folder: Path) -> Origin:
    """The origin of the coder in a run's folder, or in a folder with its config.json."""
    document = _document(folder)
    known, model = document.get("cache") or {}, document.get("imported", {}).get("model")
    if "path" not in known:
        return Origin(None, f"{folder} does not name its cache", model)
    try:
        return Origin(open_cache(Path(known["path"]), identity=known.get("identity")), model=model)
    except DataError as error:
        return Origin(None, error.message, model)


def open_model(origin: Origin, name: str | None = None, *, device: str = "auto", source: str | None = None) -> Loaded:
    """Loads the coder's model, or another checkpoint of it, and checks that it is the one that was harvested.

    The checksum of the files, or the commit on the hub, decides if it agrees. Otherwise the activations at the source
    do: those of the first document in the cache, as cached and as computed now.

    Args:
        name: a checkpoint's folder, a hub name or `demo`, in place of the one that the cache names.
        source: site at which activations are compared.

    Raises:
        UsageError: the model is not known or cannot be loaded.
        DataError: it is another model.
    """
    found, checkpoint = find_model(origin, name, device=device)
    model = load_model(checkpoint, found).to(checkpoint.device)
    tokenizer = load_tokenizer(checkpoint, found)
    return Loaded(found, model, tokenizer, check_model(origin.cache, checkpoint, model, source), origin.bos)


def find_model(
    origin: Origin,
    name: str | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    device_setting: str = "--device",
) -> tuple[str, ModelCheckpoint]:
    """The name of the coder's model, or of another checkpoint of it, and where its files are; no weight is read.

    Args:
        name: as for :func:`open_model`.
        dtype: auto: as the harvest loaded it.
        device_setting: what errors call the device.

    Raises:
        UsageError: the model is not known, or it or the device was not found.
    """
    base = LoadSettings(name) if name is not None else origin.settings
    if name is not None and origin.cache is not None and origin.cache.config.get("harvest", {}).get("model"):
        base = replace(origin.settings, model=name, model_revision=None)
    settings = replace(base, device=device, dtype=base.dtype if dtype == "auto" else dtype)
    setting = "--model" if name is not None else "the coder's model"
    return settings.model, find_checkpoint(settings, setting, device_setting)


def tokenizer_of(model: nn.Module) -> PreTrainedTokenizerBase:
    """The tokenizer beside the checkpoint that a model was loaded from. Raises UsageError where there is none."""
    name = str(getattr(getattr(model, "config", None), "name_or_path", ""))
    if not name:
        raise UsageError("the model does not say where its tokenizer is", "give tokenizer=…")
    return load_tokenizer(find_checkpoint(LoadSettings(name, device="cpu"), "model"), name)


def check_model(cache: Cache | None, checkpoint: ModelCheckpoint, model: nn.Module, source: str | None) -> str:
    """How the model was found to be the cache's; "" where nothing could tell. Raises DataError if it is not."""
    if cache is None:
        return ""
    resolved = cache.config.get("resolved", {})
    expected = resolved.get("model_sha256")
    if expected is not None and fingerprint(checkpoint) == expected:
        return f"sha256 {expected[:12]}"
    if expected is None and checkpoint.revision is not None and checkpoint.revision == resolved.get("model_revision"):
        return f"commit {checkpoint.revision[:12]}"
    if source not in cache.sites:
        return ""
    off = _difference(cache, model, str(source))
    if not off <= TOLERANCE:
        raise DataError(
            f"{checkpoint.source} is not the model of {cache.path}: at {source} the activations of its first document "
            f"differ by {off:.1%}, expected at most {TOLERANCE:.0%}",
            f"give the model that was harvested: {cache.config.get('harvest', {}).get('model') or 'see its manifest'}",
        )
    return f"activations at {source} within {off:.1e}"


def _difference(cache: Cache, model: nn.Module, source: str) -> float:
    """Relative difference of cached and computed activations, ‖a − b‖ / ‖b‖, over the first document of the cache.

    Attention that looks ahead sees the whole first sequence, as in the harvest.
    """
    ids, documents = cache.tokens[0].astype(np.int64), cache.doc_id[0]
    real = text_rows(cache.flags[0])
    causal = family_of(model.config) is not None
    rows = np.flatnonzero(real & (documents == documents[0])) if causal else np.flatnonzero(real)
    sequence = torch.from_numpy(ids[rows])[None].to(next(model.parameters()).device)
    held: list[Tensor] = []
    with SiteReader(rooted(model), body_of(model), sites_of(model, source)) as reader:
        reader.read(sequence, None, lambda _, value: held.append(value[0].float().cpu().clone()))
    cached = cache.rows(source, rows).float()
    if held[0].shape != cached.shape:
        return float("inf")
    return float((held[0] - cached).norm() / cached.norm().clamp_min(1e-12))
