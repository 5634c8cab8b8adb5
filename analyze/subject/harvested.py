"""The language model of a cache whose weights are no plain checkpoint: an adapter merged, a GGUF file dequantised."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from threading import RLock

from torch import nn

from ...models.checkpoint import LoadSettings, find_checkpoint
from ...models.loading import load_model
from ...models.weights import find_weights, identity_of_weights
from ...shared.cache import Cache
from ...shared.errors import DataError

MADE = ("adapter", "gguf")
"""Entries of a cache's resolved settings that name such weights (models.weights.identity_of_weights)."""

_LOADING = RLock()


def is_made(cache: Cache) -> bool:
    """Whether the model that was harvested was made from more than the files of a checkpoint."""
    return any(name in cache.config.get("resolved", {}) for name in MADE)


def made_model(cache: Cache, device: str) -> nn.Module:
    """The whole model as the harvest made it: on CUDA in bfloat16, on the CPU in float32.

    Raises:
        UsageError: its files are not here, or a package that reads them is not.
        DataError: an adapter or GGUF file is another one than that of the harvest.
    """
    harvest, resolved = cache.config.get("harvest", {}), cache.config.get("resolved", {})
    name, attention = str(harvest.get("model")), resolved.get("attention", "default")
    found = identity_of_weights(find_weights(name, "the model of the cache"))
    for kind in MADE:
        if found.get(kind) != resolved.get(kind):
            raise DataError(
                f"{name} holds another {kind} than the one that {cache.path} was harvested with",
                "restore it, or analyze without the cross_entropy report and the logit lens "
                "(--set analyze.reports.top_activations.lens=0)",
            )
    revision = resolved.get("model_revision") or harvest.get("model_revision")
    with _LOADING:
        return _loaded(name, revision, "auto" if attention == "default" else str(attention), device)


@lru_cache(maxsize=1)
def _loaded(name: str, revision: str | None, attention: str, device: str) -> nn.Module:
    dtype = "bfloat16" if device.startswith("cuda") else "float32"
    settings = LoadSettings(name, revision, device=device, dtype=dtype, attention=attention)
    checkpoint = find_checkpoint(settings, "the model of the cache", "analyze.device")
    return load_model(checkpoint, Path(name).name).to(device).eval()
