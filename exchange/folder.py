"""Folders that are complete or absent: written beside their place under a temporary name, then renamed."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..shared.cache.files import PARTIAL, sync_folder
from ..shared.errors import UsageError

MARK = "export.json"
"""The file of every export that says what is in it."""


@contextmanager
def new_folder(out: Path, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder that becomes `out` when the block ends without an error.

    Raises:
        UsageError: `out` exists and may not be replaced, or cannot be made.
    """
    check_new(out, overwrite)
    partial = out.with_name(f".{out.name}{PARTIAL}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if partial.exists():
            shutil.rmtree(partial)  # left by an interrupted writer
        partial.mkdir()
    except OSError as error:
        raise UsageError(f"cannot write {out}: {error.strerror}", "choose another folder") from None
    try:
        yield partial
        for folder in [partial, *(path for path in partial.rglob("*") if path.is_dir())]:
            sync_folder(folder)
        if out.exists():
            old = out.with_name(f".{out.name}.old{PARTIAL}")
            out.rename(old)
            partial.rename(out)
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        else:
            partial.rename(out)
        sync_folder(out.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def check_new(out: Path, overwrite: bool) -> None:
    """Raises UsageError where `out` exists and may not be replaced: only an earlier export may, and only if told so."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / MARK).is_file():
        raise UsageError(f"{out} already exists and is not an export (no {MARK})", "choose another folder")
    if not overwrite:
        raise UsageError(f"{out} already exists", f"choose another folder, or --overwrite to replace {out}")


def hashes(folder: Path) -> dict[str, str]:
    """sha256 of every file below a folder, by its path in it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): sha256(path) for path in files}


def sha256(path: Path) -> str:
    """sha256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
