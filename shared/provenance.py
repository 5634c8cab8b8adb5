"""What produced a cache or run besides its settings: program, packages, commit, machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

PACKAGES = ("torch", "transformers", "datasets", "tokenizers", "safetensors", "numpy", "sparse-coder-pipeline")


def provenance() -> dict[str, object]:
    """Python, package versions, platform and the git commit of the checkout (None when installed elsewhere)."""
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": versions,
        "git_commit": git_commit(),
    }


def machine() -> str:
    """The processor, the cores this process may use, and the versions that affect speed."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        named = re.search(r"^model name\s*: (.+)$", info.read_text(encoding="utf-8"), re.MULTILINE)
        name = named[1] if named else name
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    torch = importlib.metadata.version("torch")
    return f"{name}, {cores} core{'' if cores == 1 else 's'}, Python {sys.version.split()[0]}, torch {torch}"


def git_commit() -> str | None:
    """The commit of this file's checkout, with "+" if files differ from it."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return commit + ("+" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()
