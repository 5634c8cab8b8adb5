"""The kernels of a whole step compile for a device that is not here."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed (the extra `kernels`)")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_every_kernel_compiles_for_hopper(root: Path, tmp_path: Path, dtype: str) -> None:
    command = [sys.executable, "-W", "ignore", "benchmarks/kernel_resources.py", "--dtype", dtype]
    command += ["--width", "768", "--latents", "3072", "--k", "32"]
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    kernels = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line.startswith("_")}
    assert {"_row_candidates", "_row_top", "_nested_decode", "_mark", "_rank", "_place", "_rows"} <= kernels.keys()
    for name, (_, _, registers, spilled, *_) in kernels.items():
        assert int(registers) <= 255, name
        assert int(spilled) <= 64, f"{name} spills {spilled} bytes per thread"
