"""What is shipped: sdist → wheel → an environment of its own, in which the commands work away from the repository."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("harvest", "train", "analyze", "shared")
ROOT_MODULES = ("__init__.py", "__main__.py", "commands.py", "pipeline.py", "resolve.py")
SHIPPED = [*PACKAGES, *ROOT_MODULES, "setup.py", "pyproject.toml", "README.md", "LICENSE"]


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command} exited with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def files_of_packages() -> set[str]:
    """Every file of the four packages that git knows or would add."""
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", *PACKAGES, cwd=ROOT)
    return {name for name in listed.splitlines() if (ROOT / name).is_file()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("build")
    source = folder / "source"
    source.mkdir()
    for name in SHIPPED:  # a copy, so that building leaves nothing in the repository
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        copy(ROOT / name, source / name)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", source, cwd=folder)
    (found,) = (folder / "dist").glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of a new environment with the wheel in it.

    The dependencies come from this environment, through a path in a .pth file: gigabytes need not be installed twice.
    An editable install of the project is not seen that way, because the .pth files of that path are not read.
    """
    folder = tmp_path_factory.mktemp("venv")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    binaries = folder / ("Scripts" if sys.platform == "win32" else "bin")
    (site,) = folder.glob("[Ll]ib/**/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    pip = (sys.executable, "-m", "pip", "--python", binaries / "python")
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check", wheel, cwd=folder)
    return binaries


def test_wheel_holds_every_file_of_the_packages(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == {f"sparse_pipeline/{name}" for name in [*files_of_packages(), *ROOT_MODULES]}


def test_sdist_holds_what_the_wheel_is_built_from(wheel: Path) -> None:
    (sdist,) = wheel.parent.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert files_of_packages() | set(SHIPPED) - set(PACKAGES) <= names


def test_commands_work_in_a_clean_environment(installed: Path, tmp_path: Path) -> None:
    assert "pipeline demo" in run(installed / "pipeline", "--help", cwd=tmp_path)
    assert run(installed / "pipeline", "--version", cwd=tmp_path).startswith("pipeline, version ")
    assert run(installed / "pipeline", "config", "validate", cwd=tmp_path) == "valid\n"
    where = run(installed / "python", "-c", "import sparse_pipeline as sp; print(sp.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(installed.parent)


def test_presets_are_installed(installed: Path, tmp_path: Path) -> None:
    presets = sorted(path.stem for path in (ROOT / "shared/presets").glob("*.yaml"))
    every = (
        "import sys; from sparse_pipeline.pipeline import run;"
        "sys.exit(any(run(['config', 'validate', '-c', name]) for name in sys.argv[1:]))"
    )
    assert run(installed / "python", "-c", every, *presets, cwd=tmp_path) == "valid\n" * len(presets)
