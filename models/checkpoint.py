"""Loading a checkpoint, local or from the hub: safetensors only, and never the code in it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

from ..shared.errors import PipelineError, UsageError
from .files import refuse_damaged
from .quantised import quantisation, refuse_unloadable
from .weights import Weights, find_weights, require_gguf

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
class LoadSettings:
    """How a model is loaded by a command that runs it."""

    model: str
    model_revision: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    attention: str = "auto"
    ctx: int = 1  # the length of a text is checked where it is read


@dataclass(frozen=True)
class ModelCheckpoint:
    """A language model found on disk or on the hub, before any weight is read.

    Attributes:
        source: argument of `from_pretrained`: a folder or a hub name.
        config: the checkpoint's own configuration.
        auto_class: the class of `transformers` that loads it: ``AutoModelForCausalLM`` (so that module paths read
            ``model.layers.…``), ``AutoModelForImageTextToText``, or else ``AutoModel``.
        device, dtype, attention: resolved from the settings.
        revision: commit of a hub model, None for a folder.
        setting: name of the setting, for errors.
        weights: where the weights lie; None in a plan without the checkpoint.
        device_map: how accelerate spreads the model over devices; None: the whole model is on ``device``.
        max_memory: with it, the most that a device may take.
    """

    source: str
    config: PreTrainedConfig
    auto_class: str
    device: torch.device
    dtype: torch.dtype
    attention: str | None
    revision: str | None
    setting: str = "harvest.model"
    weights: Weights | None = None
    device_map: str | dict[str, int | str] | None = None
    max_memory: dict[int | str, str] | None = None

    @property
    def whole(self) -> bool:
        """Whether the model is loaded on the CPU and then moved to the device: neither spread nor quantised."""
        return self.device_map is None and quantisation(self.config) is None

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

    weights = find_weights(config.model, setting)
    source, extra = weights.source, {}
    if weights.gguf is not None:
        require_gguf(Path(source) / weights.gguf)
        extra["gguf_file"] = weights.gguf
    for folder in {weights.source, weights.adapter or weights.source}:
        if Path(folder).is_dir():
            refuse_damaged(Path(folder), setting)
    with explained(config.model, source, setting):
        found = AutoConfig.from_pretrained(source, revision=config.model_revision, trust_remote_code=False, **extra)
    revision = None if Path(source).is_dir() else getattr(found, "_commit_hash", None)
    ready = replace(settled(config, source, found, revision, device_setting), setting=setting, weights=weights)
    if weights.gguf is None:
        refuse_unloadable(found, config.model, setting, ready.dtype)
    ready = _spread(ready, config)
    return ready if weights.gguf is None else replace(ready, auto_class="AutoModelForCausalLM")


def _spread(checkpoint: ModelCheckpoint, config: ModelSettings) -> ModelCheckpoint:
    """The checkpoint with the settings of accelerate, if there are any.

    Raises:
        UsageError: accelerate is not installed, or the weights are made while they are loaded.
    """
    device_map = getattr(config, "device_map", None)
    if device_map is None:
        return checkpoint
    if find_spec("accelerate") is None:
        raise UsageError("harvest.device_map requires accelerate", "pip install 'sparse-coder-pipeline[offload]'")
    if checkpoint.weights is not None and (checkpoint.weights.gguf or checkpoint.weights.adapter):
        what = "a GGUF file" if checkpoint.weights.gguf else "an adapter"
        raise UsageError(
            f"harvest.device_map: {config.model} is {what}, whose weights are made in host memory",
            "save the dequantised or merged model as a checkpoint first, or --set harvest.device_map=null",
        )
    limits = {int(key) if key.isdigit() else key: value for key, value in getattr(config, "max_memory", {}).items()}
    return replace(checkpoint, device_map=device_map, max_memory=limits or None)


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
    longest = longest_context(found)
    if longest is not None and config.ctx > longest:
        raise UsageError(
            f"harvest.ctx: found {config.ctx}, but {config.model} takes at most {longest} tokens",
            hint=f"--set harvest.ctx={longest}",
        )
    device = _device(config.device, device_setting)
    return ModelCheckpoint(
        source=source,
        config=found,
        auto_class=_auto_class(found),
        device=device,
        dtype=_dtype(config.dtype, device, found),
        attention=_attention(config.attention, found),
        revision=revision,
    )


_LENGTHS = (
    "max_position_embeddings",
    "n_positions",
    "max_sequence_length",
    "max_seq_length",
    "max_seq_len",
    "n_ctx",
    "context_length",
    "seq_length",
    "max_encoder_position_embeddings",
    "max_source_positions",
    "max_target_positions",
)
"""Names that families give the length of their position table, the most usual first."""

_PADDED = (
    "roberta",
    "xlm-roberta",
    "xlm-roberta-xl",
    "camembert",
    "data2vec-text",
    "longformer",
    "mpnet",
    "esm",
    "ibert",
)
"""Families that number positions from behind the padding token's: their table is longer than a sequence may be."""


def longest_context(config: PreTrainedConfig) -> int | None:
    """Tokens that a model takes at most; None where its positions have no table (ALiBi, relative, recurrent)."""
    text = config.get_text_config()
    attention = getattr(text, "attn_config", None)
    alibi = getattr(text, "alibi", False) or getattr(attention, "alibi", False)
    if (
        alibi
        or getattr(text, "relative_attention_num_buckets", None)
        or text.model_type in ("bloom", "mamba", "mamba2")
    ):
        return None
    found = next(
        (value for name in _LENGTHS if isinstance(value := getattr(text, name, None), int) and value > 0), None
    )
    if found is not None and text.model_type in _PADDED:
        found -= int(text.pad_token_id or 0) + 1
    return found


def fingerprint(checkpoint: ModelCheckpoint) -> str | None:
    """sha256 over a local checkpoint's settings, tokenizer and weights; None for a hub model, which has a commit."""
    if not checkpoint.is_local:
        return None
    digest = hashlib.sha256()
    parts = {".json", ".safetensors", ".model", ".txt"}
    for path in _files_of(checkpoint, parts):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _files_of(checkpoint: ModelCheckpoint, parts: set[str]) -> list[Path]:
    weights = checkpoint.weights or Weights(checkpoint.source)
    if weights.gguf is not None:
        files = [Path(weights.source) / weights.gguf]
    else:
        files = sorted(path for path in Path(weights.source).iterdir() if path.suffix in parts)
    if weights.adapter not in (None, weights.source):
        files += sorted(path for path in Path(str(weights.adapter)).iterdir() if path.suffix in parts)
    return files


def _auto_class(config: PreTrainedConfig) -> str:
    from transformers.models.auto import modeling_auto as names

    architectures = set(config.architectures or [])
    if architectures.intersection(names.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()):
        return "AutoModelForCausalLM"
    if architectures.intersection(names.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values()):
        return "AutoModelForImageTextToText"
    return "AutoModel"


def _device(wanted: str, setting: str) -> torch.device:
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(wanted)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"{setting}: found {wanted}, but this machine has {torch.cuda.device_count()} CUDA devices",
            hint=f"{setting} auto" if setting.startswith("-") else f"--set {setting}=auto",
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
