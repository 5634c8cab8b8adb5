"""A finished coder on disk: coder.safetensors beside config.json. No pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from ..cache.files import sync_folder, write_file, write_json
from ..config.settings import to_dict, validate
from ..errors import ConfigError, DataError
from .configs.base import CoderConfig
from .registry import ARCHITECTURES, build_coder

if TYPE_CHECKING:
    from .base import Coder

FORMAT_VERSION = 1


def save_coder(coder: Coder, folder: Path, extra: Mapping[str, Any] | None = None) -> None:
    """Write `folder`/coder.safetensors, then config.json (written last, it marks the pair as complete).

    Args:
        extra: more keys for config.json (source, target, cache, training, summary).
    """
    from safetensors.torch import save

    from .base import TRAINING_BUFFERS

    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.detach().cpu().contiguous() for k, v in coder.state_dict().items() if k not in TRAINING_BUFFERS}
    write_file(folder / "coder.safetensors", [save(state)])
    document = {
        "format_version": FORMAT_VERSION,
        "architecture": coder.config.architecture,
        "coder": to_dict(coder.config),
        "d_in": coder.d_in,
        "d_out": coder.d_out,
        "tied": coder.tied,
        **(extra or {}),
    }
    sync_folder(folder)
    write_json(folder / "config.json", document)


def load_coder(folder: Path | str) -> Coder:
    """The coder in `folder` (a run folder, or the folder that holds coder.safetensors), on the CPU, in evaluation mode.

    Raises:
        DataError: missing, unreadable, written by a newer version, or weights that do not fit the settings.
    """
    from safetensors.torch import load_file

    from .base import TRAINING_BUFFERS

    folder = Path(folder)
    if not (folder / "config.json").is_file() and (folder / "final" / "config.json").is_file():
        folder = folder / "final"
    document = read_coder_config(folder)
    config = coder_config(document, folder)
    coder = build_coder(config, document["d_in"], document["d_out"], tied=document["tied"])
    path = folder / "coder.safetensors"
    try:
        state = load_file(path)
    except FileNotFoundError:
        raise DataError(f"{path} is missing", "pipeline train --resume writes it again") from None
    except SafetensorError as error:
        raise DataError(f"{path} cannot be read: {error}", "pipeline train --resume writes it again") from None
    expected = {name: tuple(value.shape) for name, value in coder.state_dict().items() if name not in TRAINING_BUFFERS}
    found = {name: tuple(value.shape) for name, value in state.items()}
    if found != expected:
        wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        lines = [
            f"{name}: found {found.get(name, 'nothing')}, expected {expected.get(name, 'nothing')}" for name in wrong
        ]
        raise DataError(f"{path} does not hold the coder that config.json describes:\n" + "\n".join(lines))
    coder.load_state_dict(state, strict=False)
    coder.source, coder.target = document.get("source"), document.get("target")
    return coder.eval()


def read_coder_config(folder: Path) -> dict[str, Any]:
    """config.json of a finished coder. Raises DataError when absent, unreadable or of a newer format."""
    path = folder / "config.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"{folder} holds no finished coder (no config.json)", "pipeline status lists runs and their state"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    if not isinstance(document, dict) or not {"format_version", "coder", "d_in", "d_out", "tied"} <= document.keys():
        raise DataError(f"{path} is not the config.json of a coder")
    if document["format_version"] > FORMAT_VERSION:
        raise DataError(
            f"{path} has format version {document['format_version']}, this program reads up to {FORMAT_VERSION}",
            "install a newer version of the program",
        )
    return document


def coder_config(document: Mapping[str, Any], where: Path | str) -> CoderConfig:
    """The coder's settings in a config.json document."""
    settings = document["coder"]
    name = settings.get("architecture")
    if name not in ARCHITECTURES:
        raise DataError(f"{where}: unknown architecture {name!r} (known: {', '.join(ARCHITECTURES)})")
    try:
        config: CoderConfig = validate(ARCHITECTURES.configs()[name], settings, "coder")
    except ConfigError as error:
        raise DataError(f"{where}: {error}") from None
    return config
