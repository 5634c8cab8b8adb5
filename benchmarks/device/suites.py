"""The tests that are marked `gpu`, and the runs of the fused step, on the device."""

from __future__ import annotations

import os
import subprocess
import sys

from .record import Record
from .setting import Setting

SUITES = {
    "gpu": [
        "-m",
        "gpu",
        "tests/train/kernels/test_fused_step.py",
        "tests/train/data/test_stream.py",
    ],
    "runs": ["tests/train/kernels/test_training.py"],
}


def suites(record: Record, setting: Setting, which: str) -> None:
    """Run one of them with pytest; at toy size, only collect it."""
    environment = os.environ | {"PIPELINE_TEST_DEVICE": "cuda", "PYTHONDONTWRITEBYTECODE": "1"}
    common = ["-q", "-W", "default", "-p", "no:cacheprovider", "--no-header", "--tb=short"]
    common += ["-o", "addopts=--import-mode=importlib", *(["--collect-only"] if setting.toy else [])]
    command = [sys.executable, "-m", "pytest", *common, *SUITES[which]]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as running:
        assert running.stdout is not None
        lines = []
        for line in running.stdout:  # into the log at once: a time limit then hides nothing
            print(line, end="", flush=True)
            lines.append(line.strip())
    last = next((line for line in reversed(lines) if line), "")
    record.check(f"pytest, {which}", running.returncode == 0, last)
