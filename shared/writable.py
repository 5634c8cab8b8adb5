"""A temporary place for the caches of libraries, for a user without a home that can be written to."""

from __future__ import annotations

import getpass
import os
import tempfile
from collections.abc import MutableMapping
from pathlib import Path

VARIABLES = {
    "NUMBA_CACHE_DIR": "numba",
    "MPLCONFIGDIR": "matplotlib",
    "HF_HOME": "huggingface",
    "TORCHINDUCTOR_CACHE_DIR": "torchinductor",
    "TRITON_CACHE_DIR": "triton",
    "WANDB_CACHE_DIR": "wandb/cache",
    "WANDB_CONFIG_DIR": "wandb/config",
    "WANDB_DATA_DIR": "wandb/data",
}
"""Environment variable → folder of that library's cache. numba has none where neither the home nor the package can be
written to, and its compiled functions fail."""


def provide(environment: MutableMapping[str, str]) -> str | None:
    """Sets the variables that are not set, where the home cannot be written to; returns what to tell the user, if any.

    Hugging Face's folder is left alone if the home has one: the models in it can be read.
    """
    if "LOGNAME" not in environment and "USER" not in environment:
        try:
            getpass.getuser()
        except (KeyError, OSError):  # a container's user that has a number and no name
            environment["LOGNAME"] = f"uid{os.getuid()}"
    home = Path(environment.get("HOME") or os.path.expanduser("~"))  # noqa: PTH111 (Path.home raises without a home)
    if home.is_dir() and os.access(home, os.W_OK | os.X_OK):
        return None
    if home == Path("~"):  # a number without an account: libraries that look up its home fail
        environment["HOME"] = str(_folder())
    missing = [name for name in VARIABLES if name not in environment]
    if (home / ".cache" / "huggingface").is_dir():
        missing = [name for name in missing if name != "HF_HOME"]
        environment.setdefault("HF_DATASETS_CACHE", str(_folder() / "huggingface" / "datasets"))
    if not missing:
        return None
    folder = _folder()
    for name in missing:
        place = folder / VARIABLES[name]
        place.mkdir(parents=True, exist_ok=True)
        environment[name] = str(place)
    what = "this user has no home" if home == Path("~") else f"the home {home} cannot be written to"
    return f"{what}: libraries keep their caches in {folder} (HOME=FOLDER changes that)"


def _folder() -> Path:
    """A folder of this user's own in the place for temporary files, the same in every run."""
    folder = Path(tempfile.gettempdir()) / f"sparse-pipeline-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.is_symlink() or folder.stat().st_uid != os.getuid():
            raise PermissionError
    except OSError:  # someone else's
        folder = Path(tempfile.mkdtemp(prefix="sparse-pipeline-"))
    return folder
