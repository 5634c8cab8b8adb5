"""Where the weights of a model lie: a checkpoint's folder or hub name, a GGUF file, an adapter over another model."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..shared.errors import UsageError
from ..shared.untrusted import read_object
from .folder import DEMO_MODEL
from .gguf_header import check_gguf

if TYPE_CHECKING:
    from torch import nn

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True)
class Weights:
    """The files of a model.

    Attributes:
        source: folder of the checkpoint or of the GGUF file, or a hub name.
        gguf: name of the GGUF file in it; None: safetensors.
        adapter: folder of an adapter that is merged into the weights.
    """

    source: str
    gguf: str | None = None
    adapter: str | None = None


def find_weights(name: str, setting: str) -> Weights:
    """What a setting names: `demo`, a folder with a checkpoint, a GGUF file or an adapter, a GGUF file, or a hub name.

    Raises:
        UsageError: nothing of the kind was found there, or more than one GGUF file.
    """
    if name == "demo":
        return Weights(str(DEMO_MODEL))
    path = Path(name).expanduser()
    if path.is_file() and path.suffix.lower() == ".gguf":
        return Weights(str(path.parent), gguf=path.name)
    if path.is_dir():
        return _in_folder(path, setting)
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UsageError(f"{setting}: folder not found: {name}", hint="give demo, a checkpoint's folder, or a hub name")
    return Weights(name)


def _in_folder(path: Path, setting: str) -> Weights:
    adapter = str(path) if (path / ADAPTER_CONFIG).is_file() else None
    if (path / "config.json").is_file():
        return Weights(str(path), adapter=adapter)
    if adapter is not None:
        base = adapter_facts(path)["base_model_name_or_path"]
        if not base:
            raise UsageError(f"{setting}: {path / ADAPTER_CONFIG} does not name the model that the adapter belongs to")
        beside = path / base
        found = find_weights(str(beside) if beside.exists() else str(base), f"{setting}: base model of {path}")
        if found.adapter is not None:
            raise UsageError(f"{setting}: {path} is an adapter over another adapter, {base}; merge that one first")
        return Weights(found.source, found.gguf, adapter)
    files = sorted(file.name for file in path.glob("*.gguf"))
    if len(files) > 1:
        raise UsageError(
            f"{setting}: {len(files)} GGUF files in {path}: {', '.join(files)}",
            hint=f"--set {setting}={path / files[0]}",
        )
    if files:
        return Weights(str(path), gguf=files[0])
    raise UsageError(
        f"{setting}: no config.json in {path}; expected a transformers checkpoint, an adapter or a GGUF file"
    )


def adapter_facts(folder: Path) -> dict[str, Any]:
    """Base model and kind of an adapter, as its adapter_config.json says."""
    found = read_object(folder / ADAPTER_CONFIG, "save the adapter again")
    names = ("base_model_name_or_path", "peft_type")
    return {name: value if isinstance(value := found.get(name), str) else None for name in names}


def merged(model: nn.Module, adapter: str, setting: str) -> nn.Module:
    """The model with an adapter merged into its weights.

    Raises:
        UsageError: peft is not installed, the adapter is not stored as safetensors, lacks weights, cannot be merged, or
            belongs to another model.
    """
    import warnings

    folder = Path(adapter)
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise UsageError(
            f"{setting}: no {ADAPTER_WEIGHTS} in the adapter {folder}; a pickle (.bin) is never loaded",
            hint="save the adapter again with safe_serialization=True",
        )
    try:
        from peft import PeftModel
    except ImportError:
        raise UsageError(
            f"{setting}: {folder} holds an adapter ({ADAPTER_CONFIG}), which requires peft to be merged",
            hint="pip install 'sparse-coder-pipeline[peft]', or remove the adapter's files to harvest the base model",
        ) from None
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)  # peft's own use of transformers
            warnings.filterwarnings("error", message=".*missing adapter keys.*")
            wrapped = PeftModel.from_pretrained(model, adapter, is_trainable=False, local_files_only=True)
            if not hasattr(wrapped, "merge_and_unload"):
                raise ValueError(f"an adapter of type {adapter_facts(folder)['peft_type']} has no weights to merge")
            result: nn.Module = wrapped.merge_and_unload(safe_merge=True)
    except (ValueError, RuntimeError, KeyError, UserWarning) as error:
        raise UsageError(
            f"{setting}: the adapter {folder} cannot be merged into its model: {' '.join(str(error).split())[:300]}",
            hint=f"check base_model_name_or_path in {folder / ADAPTER_CONFIG}, or merge it with peft yourself",
        ) from None
    return result


def identity_of_weights(weights: Weights) -> dict[str, Any]:
    """What a manifest says of a GGUF file and of an adapter; empty for a plain checkpoint."""
    found: dict[str, Any] = {}
    if weights.gguf is not None:
        found["gguf"] = gguf_facts(Path(weights.source) / weights.gguf)
    if weights.adapter is not None:
        folder = Path(weights.adapter)
        digest = hashlib.sha256()
        for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
            if (folder / name).is_file():
                digest.update((folder / name).read_bytes())
        found["adapter"] = adapter_facts(folder) | {"sha256": digest.hexdigest()}
    return found


def gguf_numbers(path: Path) -> int:
    """How many numbers the tensors of a GGUF file have."""
    return sum(int(tensor.n_elements) for tensor in _gguf_reader(path).tensors)


def _gguf_reader(path: Path) -> Any:
    require_gguf(path)
    from gguf import GGUFReader

    try:
        return GGUFReader(path)
    except Exception as error:  # the library raises what its parsing runs into
        raise UsageError(
            f"{path} is not a whole GGUF file: {' '.join(str(error).split())[:200]}", hint="download it again"
        ) from None


def gguf_facts(path: Path) -> dict[str, Any]:
    """Quantisation of a GGUF file, and how many tensors are stored in which type."""
    reader = _gguf_reader(path)
    from collections import Counter

    from gguf import LlamaFileType

    kind = reader.get_field("general.file_type")
    types = Counter(tensor.tensor_type.name for tensor in reader.tensors)
    name = LlamaFileType(int(kind.contents())).name if kind is not None else types.most_common(1)[0][0]
    return {
        "file": path.name,
        "quantisation": name.removeprefix("MOSTLY_").removeprefix("ALL_"),
        "tensors": dict(types),
    }


def require_gguf(path: Path) -> None:
    """Raises UsageError where the package that reads GGUF files is not installed, or the file is none."""
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise UsageError(f"{path} requires the gguf package", "pip install 'sparse-coder-pipeline[gguf]'") from None
    check_gguf(path)
