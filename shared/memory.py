"""How much memory is free: of the host, in a container too, or of a device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    import torch


BLOCK_BYTES = 256 << 20
"""What one block of a large computation may take: rows of it times all latents, say."""


def rows_within(row_bytes: int, at_most: int, limit: int = BLOCK_BYTES) -> int:
    """Rows of a block that stays below `limit` bytes, at least 1.

    Args:
        row_bytes: of one row: what a block holds for it, 4 bytes for each of F latents.
        at_most: the rows that a block has where they are small.
    """
    return max(1, min(at_most, limit // max(1, row_bytes)))


def free_host_memory() -> int:
    """Bytes that are free on the machine and within the process's control group."""
    free = int(psutil.virtual_memory().available)
    limit, used = _read_int("/sys/fs/cgroup/memory.max"), _read_int("/sys/fs/cgroup/memory.current")
    if limit is not None and used is not None:
        # pages of files count as used, but the kernel frees them when memory runs short
        free = min(free, limit - used + (_inactive_file() or 0))
    return max(free, 0)


def free_memory(device: torch.device, processes: int = 1) -> int:
    """Bytes that are free on the device; on the CPU, within the process's control group too, and for each of
    `processes`."""
    if device.type == "cuda":
        import torch

        # the driver counts what torch has reserved as used; what no tensor uses of it is free for the next one
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + held
    return free_host_memory() // processes


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
