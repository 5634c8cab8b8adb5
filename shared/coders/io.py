"""A finished coder on disk: coder.safetensors beside config.json. No pickle."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from ..cache.files import read_file, read_sealed, sync_folder, write_file, write_sealed
from ..config.settings import to_dict, validate
from ..errors import ConfigError, DamagedError, DataError, command, repair_command
from ..schemas import Final, checked
from .configs.base import CoderConfig
from .registry import ARCHITECTURES, build_coder

if TYPE_CHECKING:
    from .base import Coder

FORMAT_VERSION = 2

_HEADER_BYTES = 1 << 20  # of safetensors, and of the vectors beside the matrices


def save_coder(coder: Coder, folder: Path, extra: Mapping[str, Any] | None = None) -> None:
    """Write `folder`/coder.safetensors, then config.json with its sha256 (written last: the pair is complete).

    Args:
        extra: more keys for config.json (source, target, cache, training, summary).
    """
    from safetensors.torch import save

    from .base import TRAINING_BUFFERS

    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.detach().cpu().contiguous() for k, v in coder.state_dict().items() if k not in TRAINING_BUFFERS}
    weights = save(state)
    write_file(folder / "coder.safetensors", [weights])
    document = {
        "format_version": FORMAT_VERSION,
        "architecture": coder.config.architecture,
        "coder": to_dict(coder.config),
        "d_in": coder.d_in,
        "d_out": coder.d_out,
        "tied": coder.tied,
        **_joint(coder),
        "sha256": hashlib.sha256(weights).hexdigest(),
        **(extra or {}),
    }
    sync_folder(folder)
    write_sealed(folder / "config.json", document)
    sync_folder(folder.parent)


def load_coder(folder: Path | str) -> Coder:
    """The coder in `folder` (a run folder, or the folder that holds coder.safetensors), on the CPU, in evaluation mode.

    Raises:
        DataError: missing, unreadable, written by a newer version, or weights that do not fit the settings.
    """
    from safetensors.torch import load

    from .base import TRAINING_BUFFERS

    folder = Path(folder)
    if not (folder / "config.json").is_file() and (folder / "final" / "config.json").is_file():
        folder = folder / "final"
    document = read_coder_config(folder)
    config = coder_config(document, folder)
    widths = (document.get(f"{side}_widths") for side in ("source", "target"))
    d_in, d_out = (
        tuple(parts) if parts else document[key] for parts, key in zip(widths, ("d_in", "d_out"), strict=True)
    )
    _check_size(config.latents, (d_in, d_out), folder / "coder.safetensors")
    coder = build_coder(config, d_in, d_out, tied=document["tied"])
    path = folder / "coder.safetensors"
    weights = read_file(path, _remedy(folder))
    found_sum = hashlib.sha256(weights).hexdigest()
    if found_sum != document["sha256"]:
        raise DamagedError(
            f"{path} is damaged: sha256 {found_sum}, config.json has {document['sha256']}", _remedy(folder)
        )
    try:
        state = load(weights)
    except (SafetensorError, ValueError, KeyError) as error:
        raise DamagedError(f"{path} cannot be read: {error}", _remedy(folder)) from None
    expected = {name: tuple(value.shape) for name, value in coder.state_dict().items() if name not in TRAINING_BUFFERS}
    found = {name: tuple(value.shape) for name, value in state.items()}
    if found != expected:
        wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        lines = [
            f"{name}: found {found.get(name, 'nothing')}, expected {expected.get(name, 'nothing')}" for name in wrong
        ]
        message = f"{path} does not hold the coder that config.json describes:\n" + "\n".join(lines)
        raise DataError(message, _remedy(folder))
    coder.load_state_dict(state, strict=False)
    coder.source, coder.target = document.get("source"), document.get("target")
    return coder.eval()


def _joint(coder: Coder) -> dict[str, Any]:
    """The widths of the parts of joint sites, for config.json; nothing for a coder of one site."""
    if coder.n_sources == coder.n_targets == 1:
        return {}
    return {"source_widths": list(coder.source_widths), "target_widths": list(coder.target_widths)}


def _check_size(latents: int, widths: Sequence[int | tuple[int, ...]], path: Path) -> None:
    """Raises DamagedError where the file of weights is missing, or its size is beyond what config.json describes: the
    coder is built, and the file read, only if both can be."""
    try:
        n_bytes = path.stat().st_size
    except OSError:
        raise DamagedError(f"{path} is missing", _remedy(path.parent)) from None
    numbers = latents * sum(sum(one) if isinstance(one, tuple) else one for one in widths)
    if not numbers // 2 <= n_bytes <= _HEADER_BYTES + 32 * (numbers + latents):
        raise DamagedError(
            f"{path} has {n_bytes:,} bytes, which cannot be the {latents:,} latents of config.json",
            _remedy(path.parent),
        )


def read_coder_config(folder: Path) -> dict[str, Any]:
    """config.json of a finished coder. Raises DataError when absent, damaged or of another format."""
    path = folder / "config.json"
    if not path.exists():
        raise DataError(f"{folder} holds no finished coder (no config.json)", command("status"))
    document = read_sealed(path, _remedy(folder), FORMAT_VERSION)
    return checked(Final, document, path, _remedy(folder))


def _remedy(folder: Path) -> str:
    """What to do about a damaged coder: that of a run is written again, an exported one must come from its source."""
    if "final" in (folder.name, folder.parent.name):
        return repair_command(folder)
    return f"copy {folder} again from where it came: nothing in it can repair it"


def coder_config(document: Mapping[str, Any], where: Path | str) -> CoderConfig:
    """The coder's settings in a config.json document."""
    settings = document["coder"]
    name = settings.get("architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise DataError(f"{where}: unknown architecture {name!r} (known: {', '.join(ARCHITECTURES)})")
    try:
        config: CoderConfig = validate(ARCHITECTURES.configs()[name], settings, "coder")
    except ConfigError as error:
        raise DataError(f"{where}: {error}") from None
    return config
