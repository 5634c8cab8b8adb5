"""The machine: versions, memory, and the limits that every rate is compared with."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import torch

from .record import Record
from .setting import Setting, steady

PACKAGES = ("torch", "triton", "transformers", "tokenizers", "numpy", "numba", "zarr", "pydantic", "google-crc32c")


def environment(record: Record, setting: Setting) -> None:
    """Versions, cores, memory, free space; on a device its name, copies and the bfloat16 matrix product."""
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            record.put(name, importlib.metadata.version(name))
    record.put("python", platform.python_version())
    record.put("cores", len(os.sched_getaffinity(0)))
    record.put("memory, GB", round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1))
    for place in (Path("/dev/shm"), setting.out):
        with suppress(OSError):
            record.put(f"free in {'memory' if place.name == 'shm' else 'out'}, GB", _free(place))
    record.put("seed", setting.seed)
    with record.part("imports"):
        for module in ("harvest.run", "train.loop", "analyze.run", "pipeline"):
            importlib.import_module(f"sparse_pipeline.{module}")
        record.check("the package imports", True)
    if not setting.toy:
        _device(record, setting)


def _free(place: Path) -> float:
    return round(shutil.disk_usage(place).free / 1e9, 1)


def _device(record: Record, setting: Setting) -> None:
    properties = torch.cuda.get_device_properties(0)
    record.put("device", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    with record.part("nvidia-smi"):
        query = "--query-gpu=driver_version,clocks.sm,clocks.mem,temperature.gpu,memory.used"
        command = ["nvidia-smi", query, "--format=csv,noheader"]
        record.put("nvidia-smi", subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip())
    with record.part("limits"):
        n = 1 << 32
        from_, to = (torch.zeros(n, dtype=torch.uint8, device="cuda") for _ in range(2))
        taken = steady(setting, lambda _, t=to, f=from_: t.copy_(f), 10)["ms"]  # type: ignore[misc]
        record.put("copies on the device, TB/s", round(2 * n / taken / 1e9, 2))
        del from_, to
        x, y = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        rate = 2 * 8192**3 / steady(setting, lambda _: x @ y, 20)["ms"] / 1e9
        record.put("bfloat16 products, TFLOP/s", round(rate))
        n, began = 1 << 28, time.perf_counter()
        host = torch.empty(n, dtype=torch.uint8, pin_memory=True)
        record.put("pinning 256 MiB, s", round(time.perf_counter() - began, 2))
        device = torch.empty(n, dtype=torch.uint8, device="cuda")
        for name, target, source in (("to the device", device, host), ("to the host", host, device)):
            taken = steady(setting, lambda _, t=target, s=source: t.copy_(s, non_blocking=True), 10)["ms"]  # type: ignore[misc]
            record.put(f"pinned copies {name}, GB/s", round(n / taken / 1e6, 1))
