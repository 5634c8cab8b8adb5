"""The language model that a cache was harvested from, for the loss with a coder spliced in."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

from ....models.folder import model_folder
from ....models.spliced_loss import ONE_MODEL
from ....shared.cache import Cache
from ....shared.errors import UsageError
from ...subject.harvested import is_made, made_model


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
        with ONE_MODEL:
            return made_model(cache, device)
    harvest, resolved = cache.config.get("harvest", {}), cache.config.get("resolved", {})
    name = harvest.get("model")
    folder = model_folder(name, resolved.get("model_revision") or harvest.get("model_revision"))
    if folder is None:
        raise UsageError(
            f"the cross_entropy report needs the model of {cache.path}, but {name} is not on this machine",
            "restore the model's folder, or analyze without the cross_entropy report",
        )
    with ONE_MODEL:
        return load_model(folder, resolved.get("attention"), device)
