"""The folder of a model's files, on this machine."""

from __future__ import annotations

from pathlib import Path

DEMO_MODEL = Path(__file__).parents[1] / "harvest" / "demo" / "model"
"""The embedded model."""


def model_folder(name: str | None, revision: str | None = None) -> Path | None:
    """The local folder of a model's files; None where not found. Nothing is downloaded.

    Args:
        name: `demo` (the embedded model), a folder, or a name on the hub; None: no model.
        revision: of a name on the hub; None: the default branch.
    """
    if name is None:
        return None
    if name == "demo":
        return DEMO_MODEL if (DEMO_MODEL / "config.json").is_file() else None
    path = Path(name).expanduser()
    if (path / "config.json").is_file():
        return path
    if path.is_absolute() or name.count("/") > 1 or name.startswith("."):
        return None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None
