"""Loading a checkpoint, local or from the hub: safetensors only, and never the code in it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import nn

from ..shared.errors import DataError, PipelineError, UsageError
from .folder import DEMO_MODEL
from .site_names import Site
from .sites import FAMILIES

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class ModelSettings(Protocol):
    """What is to be known of a model to load it: settings of a harvest, or of a command that runs the model."""

    @property
    def model(self) -> str: ...
    @property
    def model_revision(self) -> str | None: ...
    @property
    def ctx(self) -> int: ...
    @property
    def device(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def attention(self) -> str: ...


@dataclass(frozen=True)
class ModelCheckpoint:
    """A language model found on disk or on the hub, before any weight is read.

    Attributes:
        source: argument of `from_pretrained`: a folder or a hub name.
        config: the checkpoint's own configuration.
        causal: loaded by ``AutoModelForCausalLM`` (so that module paths read ``model.layers.…``), else ``AutoModel``.
        device, dtype, attention: resolved from the settings.
        revision: commit of a hub model, None for a folder.
        setting: name of the setting, for errors.
    """

    source: str
    config: PreTrainedConfig
    causal: bool
    device: torch.device
    dtype: torch.dtype
    attention: str | None
    revision: str | None
    setting: str = "harvest.model"

    @property
    def model_type(self) -> str:
        return str(self.config.model_type)

    @property
    def is_local(self) -> bool:
        return Path(self.source).is_dir()


def find_checkpoint(
    config: ModelSettings, setting: str = "harvest.model", device_setting: str = "harvest.device"
) -> ModelCheckpoint:
    """Reads the checkpoint's configuration and settles device, dtype and attention.

    Args:
        setting, device_setting: what errors call the model and the device.

    Raises:
        UsageError: the model or the device was not found, or ctx is longer than the model's context.
    """
    from transformers import AutoConfig

    source = _source(config.model, setting)
    with explained(config.model, source, setting):
        found = AutoConfig.from_pretrained(source, revision=config.model_revision, trust_remote_code=False)
    revision = None if Path(source).is_dir() else getattr(found, "_commit_hash", None)
    return replace(settled(config, source, found, revision, device_setting), setting=setting)


def settled(
    config: ModelSettings,
    source: str,
    found: PreTrainedConfig,
    revision: str | None,
    device_setting: str = "harvest.device",
) -> ModelCheckpoint:
    """A checkpoint with device, dtype and attention settled from the settings and its configuration.

    Raises:
        UsageError: the device was not found, or ctx is longer than the model's context.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    causal_names = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    architectures = found.architectures or []
    longest = getattr(found.get_text_config(), "max_position_embeddings", None)
    if longest is not None and config.ctx > longest:
        raise UsageError(
            f"harvest.ctx: found {config.ctx}, but {config.model} takes at most {longest} tokens",
            hint=f"--set harvest.ctx={longest}",
        )
    device = _device(config.device, device_setting)
    return ModelCheckpoint(
        source=source,
        config=found,
        causal=any(name in causal_names for name in architectures),
        device=device,
        dtype=_dtype(config.dtype, device, found),
        attention=_attention(config.attention, found),
        revision=revision,
    )


def load_model(checkpoint: ModelCheckpoint, name: str) -> nn.Module:
    """The model with its weights, on the CPU, in evaluation mode.

    Raises:
        UsageError: the weights cannot be loaded (not safetensors, an attention path the model lacks, …).
        DataError: the checkpoint lacks weights of its model class; they would be random numbers.
    """
    with explained(name, checkpoint.source, checkpoint.setting), _without_progress_bar():
        model, info = _auto_class(checkpoint).from_pretrained(
            checkpoint.source,
            revision=checkpoint.revision,
            dtype=checkpoint.dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **_attention_argument(checkpoint),
        )
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise DataError(
            f"{name} has no weights for {len(missing)} parameters of {type(model).__name__}, such as {missing[0]}",
            hint="download or save the checkpoint again",
        )
    loaded: nn.Module = model.eval().requires_grad_(False)
    return loaded


def empty_model(checkpoint: ModelCheckpoint) -> nn.Module:
    """The same modules without memory for the weights; call it, and the result, under FakeTensorMode."""
    with explained(checkpoint.source, checkpoint.source, checkpoint.setting):
        model: nn.Module = _auto_class(checkpoint).from_config(
            checkpoint.config, dtype=checkpoint.dtype, trust_remote_code=False, **_attention_argument(checkpoint)
        )
    return model.eval().requires_grad_(False)


def drop_later_layers(model: nn.Module, model_type: str, sites: Iterable[Site]) -> None:
    """Removes the layers above the last one with a site, so that they take no memory on the device.

    Keeps every layer if the family has no table of sites, or if a site is given by module path: then only the end
    of the forward pass in capture.py keeps the later ones from being computed.
    """
    layers = [site.layer for site in sites]
    if model_type in FAMILIES and None not in layers:
        blocks = cast(nn.ModuleList, model.get_submodule(FAMILIES[model_type].layers))
        del blocks[max(layer for layer in layers if layer is not None) + 1 :]


def body_of(model: nn.Module) -> nn.Module:
    """The model without its head: calling it reaches every site, and only it goes to the device."""
    body: nn.Module = model.base_model  # type: ignore[assignment]
    return body


def fingerprint(checkpoint: ModelCheckpoint) -> str | None:
    """sha256 over a local checkpoint's settings, tokenizer and weights; None for a hub model, which has a commit."""
    if not checkpoint.is_local:
        return None
    digest = hashlib.sha256()
    folder = Path(checkpoint.source)
    parts = {".json", ".safetensors", ".model", ".txt"}
    for path in sorted(path for path in folder.iterdir() if path.suffix in parts):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _source(name: str, setting: str) -> str:
    if name == "demo":
        return str(DEMO_MODEL)
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UsageError(f"{setting}: no config.json in {path}; expected a transformers checkpoint")
        return str(path)
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UsageError(f"{setting}: folder not found: {name}", hint="give demo, a checkpoint's folder, or a hub name")
    return name


def _device(wanted: str, setting: str) -> torch.device:
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(wanted)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"{setting}: found {wanted}, but this machine has {torch.cuda.device_count()} CUDA devices",
            hint="--set harvest.device=auto" if setting == "harvest.device" else f"{setting} auto",
        )
    return device


def _dtype(wanted: str, device: torch.device, config: PreTrainedConfig) -> torch.dtype:
    if wanted == "auto":
        # On a CPU bfloat16 is slower than float32 without matrix instructions for it, and rounds after every module.
        own = getattr(config.get_text_config(), "dtype", None) or torch.float32
        return own if device.type == "cuda" else torch.float32
    dtype: torch.dtype = getattr(torch, wanted)
    return dtype


def _attention(wanted: str, config: PreTrainedConfig) -> str | None:
    if wanted != "auto":
        return wanted
    text = config.get_text_config()
    soft_capped = config.model_type == "gemma2" or getattr(text, "attn_logit_softcapping", None) is not None
    return "eager" if soft_capped else None


def _attention_argument(checkpoint: ModelCheckpoint) -> dict[str, str]:
    return {} if checkpoint.attention is None else {"attn_implementation": checkpoint.attention}


def _auto_class(checkpoint: ModelCheckpoint) -> Any:
    from transformers import AutoModel, AutoModelForCausalLM

    return AutoModelForCausalLM if checkpoint.causal else AutoModel


@contextmanager
def _without_progress_bar() -> Iterator[None]:
    """Hides the progress bar of `transformers`; the harvest has its own."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def explained(name: str, source: str, setting: str) -> Iterator[None]:
    """Turns the errors of `from_pretrained` into a UsageError that names the model."""
    try:
        yield
    except PipelineError:
        raise
    except (OSError, ValueError, ImportError, KeyError) as error:
        text = " ".join(str(error).split())
        raise UsageError(
            f"{setting}: cannot load {name!r}: {text}",
            hint="demo, a checkpoint's folder, or a hub name (gated models: `hf auth login` first)",
        ) from error
