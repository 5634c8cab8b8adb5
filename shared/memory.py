"""How much host memory is free, in a container too."""

from __future__ import annotations

from pathlib import Path

import psutil


def free_host_memory() -> int:
    """Bytes that are free on the machine and within the process's control group."""
    free = int(psutil.virtual_memory().available)
    limit, used = _read_int("/sys/fs/cgroup/memory.max"), _read_int("/sys/fs/cgroup/memory.current")
    if limit is not None and used is not None:
        # pages of files count as used, but the kernel frees them when memory runs short
        free = min(free, limit - used + (_inactive_file() or 0))
    return max(free, 0)


def _read_int(path: str) -> int | None:
    try:
        text = Path(path).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _inactive_file() -> int | None:
    try:
        lines = Path("/sys/fs/cgroup/memory.stat").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), None)
