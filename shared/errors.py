"""The errors a user sees: what was found, what was expected, and the command to run next."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import ClassVar


class PipelineError(Exception):
    """Something a user can act on.

    Args:
        message: what was found and what was expected.
        hint: the command (or the setting) to try next.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


LOST = "lost contact with another process"


class LostContactError(PipelineError):
    """Another process is gone without which this one cannot go on (exit code 1); its message has the words of LOST."""


class UsageError(PipelineError):
    """A flag or a value that cannot be used (exit code 2)."""

    exit_code = 2


class ConfigError(UsageError):
    """Invalid settings, with all problems at once (exit code 2)."""

    def __init__(self, problems: list[str], hint: str | None = None) -> None:
        super().__init__("\n".join(problems), hint)
        self.problems = problems


class DataError(PipelineError):
    """A cache or run that is missing, incomplete, damaged, or has different settings (exit code 3)."""

    exit_code = 3


class OtherSettingsError(DataError):
    """A run of that name exists with different settings (exit code 3)."""


class VersionError(DataError):
    """A cache or run that another version of the program wrote: whole, but not for this one (exit code 3)."""


class DamagedError(DataError):
    """A file that is missing, or is not what it was when it was written (exit code 3)."""


def command(*words: object) -> str:
    """A `pipeline` command that can be pasted into a shell."""
    return shlex.join(["pipeline", *map(str, words)])


MIRROR = ".mirror"
"""In the folder of copies of a cache in a bucket: what is known of the bucket, ``address`` among it."""

_PARTS = ("plan.json", "acts.zarr", "commits", "config.yaml", "checkpoints", "final")


def repair_command(path: Path) -> str:
    """The command that repairs the cache or run that a file is in (or whose folder ``path`` is)."""
    folders = (path, *path.parents[:4])
    found = next((folder for folder in folders if any((folder / name).exists() for name in _PARTS)), path)
    if (address := found / MIRROR / "address").is_file():
        return command("verify", address.read_text(errors="replace").strip()[:1000])
    return command("verify", found, "--repair")
