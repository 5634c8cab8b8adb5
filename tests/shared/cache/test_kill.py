from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def quick_folder(tmp_path: Path) -> Iterator[Path]:
    """In memory where there is such a file system: a few hundred writers sync a few thousand files."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


@pytest.mark.parametrize("step", [11, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_any_moment_the_finished_cache_is_byte_identical(quick_folder: Path, root: Path, step: int) -> None:
    """SIGKILL before, in and after the writes, syncs and renames of a writer; another run finishes the cache."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.shared.cache.kill", str(quick_folder), str(step)],
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)
    assert result["wrong"] == []
    # 2 shards of 5 chunk files and a commit; the plan twice, the manifest; metadata of the group and 5 arrays; the lock
    assert result["files"] == 2 * 6 + 3 + 6 + 1
    assert result["kills"] > 150 // step
