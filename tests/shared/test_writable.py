"""Caches of libraries for a user without a home."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
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


@pytest.mark.slow
def test_libraries_work_for_an_unknown_user_in_folders_that_are_read_only(root: Path) -> None:
    """As in a container with `--user`: a number without a name or home, which may read everything and write nowhere but
    in the place for temporary files. numba compiles and caches, matplotlib draws, wandb logs, a tokenizer loads."""
    become = ["setpriv", "--reuid", "54321", "--regid", "54321", "--clear-groups"]
    become += ["--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"]
    if not shutil.which("setpriv") or subprocess.run([*become, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this process may not become another user")
    program = """
import os, pathlib, sys
package = pathlib.Path(sys.argv[1])
try:
    (package / "written").touch()
    raise SystemExit("the package can be written to")
except PermissionError:
    pass
import sparse_pipeline.pipeline as pipeline
try:
    pipeline.main(["status"])
except SystemExit as stop:
    assert not stop.code
import numpy as np
from sparse_pipeline.shared.codes.pairs import suffixes
rows, entry, indptr = np.array([0, 0], np.int32), np.array([0, 1]), np.array([0, 2])
assert suffixes(rows, entry, indptr)[1].tolist() == [2, 1]
import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt
plt.plot([1, 2]); plt.savefig("drawn.png")
import wandb
os.environ["WANDB_MODE"] = "offline"
with wandb.init(project="p", dir=".", settings=wandb.Settings(silent=True)) as run:
    run.log({"a": 1})
from transformers import AutoTokenizer
from sparse_pipeline.models.folder import DEMO_MODEL
assert AutoTokenizer.from_pretrained(DEMO_MODEL)("a")["input_ids"]
made = pathlib.Path(os.environ["NUMBA_CACHE_DIR"])
assert list(made.rglob("*.nbi")), "nothing was cached"
assert made.stat().st_uid == 54321
"""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        kept = ("PATH", "PYTHONPATH", "VIRTUAL_ENV")
        environment = {key: os.environ[key] for key in kept if key in os.environ} | {"TMPDIR": folder}
        done = subprocess.run(
            [*become, sys.executable, "-c", program, str(root)],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        subprocess.run(["chmod", "-R", "777", folder], check=True)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("this user has no home: libraries keep their caches in") == 1
        assert (Path(folder) / "drawn.png").is_file()
