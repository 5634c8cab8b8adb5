"""Where the checks run, at which size, and how they take times."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SITES = ("layer_08.resid_mid", "layer_08.mlp_out")
FULL_WIDTH, FULL_LATENTS, FULL_K = 2304, 18_432, 48


@dataclass(frozen=True)
class Setting:
    """Size and place of the checks.

    Attributes:
        out: folder for caches, runs and reports on the disk.
        memory: the same in memory (tmpfs), for what must not wait for a disk.
        toy: tiny shapes on a CPU, the kernels in Triton's interpreter: does the check itself run?
        seed: of all random inputs; another one every time, unless it is given.
    """

    out: Path
    memory: Path
    toy: bool
    seed: int

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.toy else "cuda")

    def of(self, toy: Any, full: Any) -> Any:
        """The value for this size."""
        return toy if self.toy else full


def memory_folder(out: Path, needed: float = 26e9) -> Path:
    """A folder in /dev/shm where that has room, else below `out`."""
    shm = Path("/dev/shm")
    roomy = shm.is_dir() and shutil.disk_usage(shm).free >= needed
    return shm / "pipeline_device_check" if roomy else out / "memory"


def synchronise(setting: Setting) -> None:
    if not setting.toy:
        torch.cuda.synchronize()


def free_device(setting: Setting) -> None:
    """Return cached memory to the device and start a new peak."""
    if not setting.toy:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def steady(setting: Setting, step: Callable[[int], object], n: int, warm: int = 6) -> dict[str, float]:
    """Milliseconds of one of `n` calls back to back: `ms` on the device, `host_ms` until the host has queued it."""
    warm = setting.of(0, warm)
    for i in range(warm):
        step(i)
    synchronise(setting)
    start, end = (None, None) if setting.toy else (torch.cuda.Event(enable_timing=True) for _ in range(2))
    if start is not None:
        start.record()
    began = time.perf_counter()
    for i in range(n):
        step(warm + i)
    host = 1e3 * (time.perf_counter() - began) / n
    if start is None or end is None:
        return {"ms": round(host, 4), "host_ms": round(host, 4)}
    end.record()
    torch.cuda.synchronize()
    return {"ms": round(start.elapsed_time(end) / n, 4), "host_ms": round(host, 4)}


def synced(setting: Setting, step: Callable[[int], object], n: int) -> float:
    """Median milliseconds of calls with a synchronisation after each."""
    times = []
    for i in range(n):
        synchronise(setting)
        began = time.perf_counter()
        step(i)
        synchronise(setting)
        times.append(1e3 * (time.perf_counter() - began))
    return round(statistics.median(times), 4)


def graphed(setting: Setting, work: Callable[[], object]) -> Callable[[int], object]:
    """The launches of `work` as a CUDA graph, so that the host's share is not timed."""
    if setting.toy:
        return lambda _: work()
    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return lambda _: graph.replay()


def relative_error(found: Tensor, expected: Tensor) -> float:
    """‖found − expected‖ / ‖expected‖ in float64."""
    a, b = found.detach().double(), expected.detach().double()
    return float((a - b).norm() / b.norm().clamp_min(1e-300))
