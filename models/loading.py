"""Loading a checkpoint's weights, and cutting the model to what its sites need."""

from __future__ import annotations

import atexit
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..shared.errors import DataError, UsageError
from .bodies import body_of, drop_later_layers
from .capture import SiteReader
from .checkpoint import ModelCheckpoint, explained
from .site_names import Site
from .sites import resolve_sites
from .weights import Weights, merged

_PROBE_TOKENS = 8


@dataclass(frozen=True)
class CutModel:
    """A model without the layers that its sites do not need.

    Attributes:
        model: what the paths of the sites start from.
        body: the part of it to call.
        sites: in the order of their names in the settings.
    """

    model: nn.Module
    body: nn.Module
    sites: list[Site]


def load_model(checkpoint: ModelCheckpoint, name: str) -> nn.Module:
    """The whole model with its weights, on the CPU, in evaluation mode.

    Raises:
        UsageError: the weights cannot be loaded (not safetensors, an attention path the model lacks, …).
        DataError: the checkpoint lacks weights of its model class; they would be random numbers.
    """
    model, missing = _load(checkpoint, name)
    if missing:
        raise _incomplete(name, missing, f"parameters of {type(model).__name__}")
    return model


def load_cut(checkpoint: ModelCheckpoint, name: str, sites: tuple[str, ...]) -> CutModel:
    """As :func:`load_model`, without the layers above the last site; only weights that the sites need must exist.

    Raises:
        UsageError: as :func:`load_model`, or a site was not found.
        DataError: the checkpoint lacks weights that the forward pass reads before its last site.
    """
    model, missing = _load(checkpoint, name)
    found = resolve_sites(sites, model)
    names = {parameter: name for name, parameter in model.named_parameters(remove_duplicate=False)}
    drop_later_layers(model, found)
    body = body_of(model)
    if missing and checkpoint.device_map is not None:  # weights come and go, so which are read cannot be seen
        raise _incomplete(name, missing, f"parameters of {type(model).__name__}")
    if missing:
        read = {names[parameter] for parameter in _parameters_read(model, body, found) if parameter in names}
        if needed := sorted(read.intersection(missing)):
            raise _incomplete(name, needed, "parameters that its sites need")
    return CutModel(model, body, found)


def empty_model(checkpoint: ModelCheckpoint) -> nn.Module:
    """The same modules without memory for the weights; call it, and the result, under FakeTensorMode."""
    from transformers.initialization import no_init_weights

    with (
        explained(checkpoint.source, checkpoint.source, checkpoint.setting),
        no_init_weights(),
    ):  # some would read values that do not exist
        model: nn.Module = _auto_class(checkpoint).from_config(
            checkpoint.config,
            dtype=checkpoint.dtype,
            trust_remote_code=False,
            experts_implementation="batched_mm",  # shapes that do not depend on the tokens; others have no fake kernel
            **_attention_argument(checkpoint),
        )
    return model.eval().requires_grad_(False)


def _load(checkpoint: ModelCheckpoint, name: str) -> tuple[nn.Module, set[str]]:
    weights = checkpoint.weights or Weights(checkpoint.source)
    how = {"use_safetensors": True} if weights.gguf is None else {"gguf_file": weights.gguf}
    with (
        explained(name, checkpoint.source, checkpoint.setting),
        _without_progress_bar(),
        _without_adapter(weights) as source,
    ):
        model, info = _auto_class(checkpoint).from_pretrained(
            source,
            revision=checkpoint.revision,
            dtype=checkpoint.dtype,
            trust_remote_code=False,
            output_loading_info=True,
            **how,
            **_placement(checkpoint),
            **_attention_argument(checkpoint),
        )
    if isinstance(checkpoint.device_map, dict):
        _refuse_uncovered(model, checkpoint.device_map)
    if weights.adapter is not None:
        model = merged(model, weights.adapter, checkpoint.setting)
    loaded: nn.Module = model.eval().requires_grad_(False)
    return loaded, set(info["missing_keys"])


@contextmanager
def _without_adapter(weights: Weights) -> Iterator[str]:
    """The source to load; a view of it without the adapter that lies beside the weights. `transformers` would add that
    as modules of their own, or ignore it where peft is not installed."""
    if weights.adapter != weights.source:
        yield weights.source
        return
    with TemporaryDirectory(prefix="base-") as view:
        for path in Path(weights.source).resolve().iterdir():
            if not path.name.startswith("adapter_"):
                (Path(view) / path.name).symlink_to(path)
        yield view


class _Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes which of some parameters an operation takes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._of = {id(parameter): parameter for parameter in model.parameters()}
        self.found: set[nn.Parameter] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in torch.utils._pytree.tree_leaves((args, kwargs or {})):
            if isinstance(value, torch.Tensor) and id(value) in self._of:
                self.found.add(self._of[id(value)])
        return func(*args, **(kwargs or {}))


def _parameters_read(model: nn.Module, body: nn.Module, sites: Sequence[Site]) -> set[nn.Parameter]:
    """The parameters that a forward pass reads until its last site."""
    ids = torch.ones(1, _PROBE_TOKENS, dtype=torch.long)
    reads = _Reads(model)
    with SiteReader(model, body, sites) as reader, reads:
        reader.read(ids, None, lambda _name, _value: None)
    return reads.found


def _incomplete(name: str, missing: Sequence[str] | set[str], what: str) -> DataError:
    return DataError(
        f"{name} has no weights for {len(missing)} {what}, such as {min(missing)}",
        hint="download or save the checkpoint again",
    )


def placed(body: nn.Module, checkpoint: ModelCheckpoint) -> nn.Module:
    """The part of a model that is called, on its device; accelerate and quantised weights were placed when loaded."""
    return body.to(checkpoint.device) if checkpoint.whole else body


def _placement(checkpoint: ModelCheckpoint) -> dict[str, Any]:
    """Arguments of `from_pretrained` that place weights while they are loaded."""
    if checkpoint.device_map is not None:
        folder = TemporaryDirectory(prefix="offload-")  # for weights that are converted; others are read where they lie
        atexit.register(folder.cleanup)
        limits = {} if checkpoint.max_memory is None else {"max_memory": checkpoint.max_memory}
        return {"device_map": checkpoint.device_map, "offload_folder": folder.name, **limits}
    if not checkpoint.whole and checkpoint.device.type == "cuda":
        return {"device_map": {"": str(checkpoint.device)}}
    return {}


def _refuse_uncovered(model: nn.Module, device_map: Mapping[str, int | str]) -> None:
    """Raises UsageError for a map that names no device for some weights: `transformers` would place them somewhere."""
    names = [name for name, _ in model.named_parameters()]
    lost = [name for name in names if not any(key == "" or f"{name}.".startswith(f"{key}.") for key in device_map)]
    if lost:
        raise UsageError(
            f"harvest.device_map: no device for {len(lost)} of {len(names)} weights, such as {lost[0]}",
            "name modules that hold all weights, or '' for the rest: --set 'harvest.device_map={\"\": cpu}'",
        )


def _attention_argument(checkpoint: ModelCheckpoint) -> dict[str, str]:
    return {} if checkpoint.attention is None else {"attn_implementation": checkpoint.attention}


def _auto_class(checkpoint: ModelCheckpoint) -> Any:
    import transformers

    return getattr(transformers, checkpoint.auto_class)


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
