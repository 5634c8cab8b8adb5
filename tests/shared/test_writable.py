"""Caches of libraries for a user without a home."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sparse_pipeline.shared.writable import VARIABLES, provide


def test_a_home_that_can_be_written_to_is_left_alone(tmp_path: Path) -> None:
    environment = {"HOME": str(tmp_path), "USER": "someone"}
    assert provide(environment) is None
    assert environment == {"HOME": str(tmp_path), "USER": "someone"}


def test_without_a_home_the_caches_are_in_a_temporary_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    environment = {"HOME": str(tmp_path / "nowhere"), "USER": "someone", "MPLCONFIGDIR": "/chosen"}
    note = provide(environment)
    folder = tmp_path / f"sparse-pipeline-{os.getuid()}"
    assert note is not None
    assert str(folder) in note
    assert environment["MPLCONFIGDIR"] == "/chosen"
    for name in set(VARIABLES) - {"MPLCONFIGDIR"}:
        assert Path(environment[name]).is_dir()
        assert Path(environment[name]).is_relative_to(folder)
    assert folder.stat().st_mode & 0o077 == 0
    assert provide(environment) is None, "said once"
    folder.rename(tmp_path / "kept")
    folder.symlink_to(tmp_path / "kept")  # another user could have laid it there
    again = {"HOME": str(tmp_path / "nowhere"), "USER": "someone"}
    provide(again)
    assert not Path(again["NUMBA_CACHE_DIR"]).is_relative_to(folder)


def test_a_command_works_without_a_home_and_says_so_once(tmp_path: Path, root: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key not in VARIABLES}
    environment |= {"HOME": "/proc/nowhere", "TMPDIR": str(tmp_path)}
    program = (
        "import sys; from sparse_pipeline.pipeline import main\n"
        "try:\n    main(['status'])\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "import matplotlib, numba\nprint(matplotlib.get_configdir(), numba.config.CACHE_DIR)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / f"sparse-pipeline-{os.getuid()}"
    assert done.stderr.count("the home /proc/nowhere cannot be written to") == 1
    assert done.stdout.splitlines()[-1] == f"{folder}/matplotlib {folder}/numba"
