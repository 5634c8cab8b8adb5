"""What is shipped: sdist → wheel → an environment of its own, in which the commands work away from the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("harvest", "train", "tune", "analyze", "exchange", "explain", "live", "transfer", "models", "shared")
ROOT_MODULES = tuple(sorted(path.name for path in ROOT.glob("*.py") if path.name != "setup.py"))
SHIPPED = [*PACKAGES, *ROOT_MODULES, "setup.py", "pyproject.toml", "README.md", "LICENSE"]


def run(*command: str | Path, cwd: Path) -> str:
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command} exited with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def files_of_packages() -> set[str]:
    """Every file of the packages that git knows or would add."""
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", *PACKAGES, cwd=ROOT)
    return {name for name in listed.splitlines() if (ROOT / name).is_file()}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is shipped, so that building and installing leave nothing in the repository."""
    folder = tmp_path_factory.mktemp("build") / "source"
    folder.mkdir()
    for name in SHIPPED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path) -> Path:
    dist = source.parent / "dist"
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", dist, source, cwd=source.parent)
    (found,) = dist.glob("*.whl")
    return found


def environment(folder: Path, *what: str | Path) -> Path:
    """The `bin` folder of a new environment with the project in it.

    The dependencies come from this environment, through a path in a .pth file: gigabytes need not be installed twice.
    An editable install of the project here is not seen there, because the .pth files of that path are not read.
    """
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    binaries = folder / ("Scripts" if sys.platform == "win32" else "bin")
    (site,) = folder.glob("[Ll]ib/**/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", binaries / "python", "install")
    options = ("--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--ignore-installed")
    run(*pip, *options, *what, cwd=folder)
    return binaries


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environment(tmp_path_factory.mktemp("venv"), wheel)


@pytest.fixture(scope="module", params=["wheel", "editable"])
def either(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of an environment with the wheel, and of one with an editable install."""
    if request.param == "wheel":
        binaries: Path = request.getfixturevalue("installed")
        return binaries
    return environment(tmp_path_factory.mktemp("venv"), "--editable", request.getfixturevalue("source"))


@pytest.fixture
def research(tmp_path: Path) -> Path:
    """A folder with modules named like folders of ours; each raises when it is imported."""
    for name in (*PACKAGES, *(Path(module).stem for module in ROOT_MODULES if not module.startswith("__"))):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('the user's {name}.py was imported')\n")
    return tmp_path


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
    assert run(installed / "pipeline", "--version", cwd=tmp_path).startswith("pipeline, version ")
    where = run(installed / "python", "-c", "import sparse_pipeline as sp; print(sp.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(installed.parent)


USE = """
import sys
import sparse_pipeline as sp

cache = sp.open_cache(sys.argv[1] + "/cache/demo")
coder = sp.load_coder(sys.argv[1] + "/runs/topk")
print(cache.n_rows, coder.n_latents)
"""


def test_commands_work_beside_modules_of_the_same_names(either: Path, research: Path) -> None:
    assert "pipeline demo" in run(either / "pipeline", "--help", cwd=research)
    assert run(either / "pipeline", "config", "validate", cwd=research) == "valid\n"
    assert "pipeline demo" in run(either / "python", "-m", "sparse_pipeline", "--help", cwd=research)


def test_a_script_works_beside_modules_of_the_same_names(either: Path, research: Path, workshop: Path) -> None:
    (research / "mine.py").write_text(USE)
    assert run(either / "python", "mine.py", workshop, cwd=research) == "12288 128\n"


def test_a_notebook_works_beside_modules_of_the_same_names(either: Path, research: Path, workshop: Path) -> None:
    """A kernel puts '' first on sys.path, the folder of the notebook, and so does `python -c`."""
    cells = f"import sys\nassert sys.path[0] == ''\n{USE}"
    assert run(either / "python", "-c", cells, workshop, cwd=research) == "12288 128\n"


def test_torchrun_starts_the_command(installed: Path, research: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1")
    out = run(installed / "python", *launcher, "-m", "sparse_pipeline", "config", "validate", "--json", cwd=research)
    assert '"valid": true' in out


def test_presets_are_installed(installed: Path, tmp_path: Path) -> None:
    """All of them by name, and one read; tests/test_docs.py validates each in the repository."""
    names = sorted(path.stem for path in (ROOT / "shared/presets").glob("*.yaml"))
    program = (
        "from sparse_pipeline.pipeline import run; from sparse_pipeline.shared.config.settings import presets;"
        f"print(*sorted(presets())); run(['config', 'validate', '-c', {names[-1]!r}])"
    )
    assert run(installed / "python", "-c", program, cwd=tmp_path) == f"{' '.join(names)}\nvalid\n"
