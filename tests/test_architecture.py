"""The import contracts of pyproject.toml, and the other rules that hold for the source as a whole."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import grimp
import numpy as np
import pytest
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("harvest", "train", "tune", "analyze", "exchange", "explain", "live", "transfer", "models", "shared")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
PYTHON = [*SOURCES, *sorted(set(ROOT.glob("*.py")) - {ROOT / "setup.py"})]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path) -> Iterator[tuple[int, str, int]]:
    """(line, imported module, level of a relative import), wherever in the file it stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, node.module or "", node.level


# --- imports --------------------------------------------------------------------------------------------------------


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The sources in a folder named after the package, to break contracts in. PYTHONPATH puts it before any install."""
    folder = tmp_path / "sparse_pipeline"
    for path in PYTHON:
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    shutil.copy2(ROOT / "pyproject.toml", tmp_path)
    return folder


def lint_imports(copy: Path) -> tuple[bool, str]:
    """Whether the contracts are kept in a copy, and the report."""
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run(
        [sys.executable, "-c", program, "--no-cache", "--no-logo"],
        cwd=copy.parent,
        env={**os.environ, "PYTHONPATH": str(copy.parent), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode == 0, done.stdout + done.stderr


def test_contracts_are_kept(copy: Path) -> None:
    kept, report = lint_imports(copy)
    assert kept, report


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("models/site_names.py", "from . import sites", "No circle"),
        ("shared/errors.py", "if 0:\n    from .config import settings", "No circle"),
        ("train/loop.py", "from ..harvest import config", "eight stages"),
        ("shared/errors.py", "from ..analyze import result", "eight stages"),
        ("analyze/result.py", "from ..pipeline import main", "eight stages"),
        ("train/loop.py", "def late() -> None:\n    import transformers", "Training"),
        ("shared/errors.py", "from click import echo", "Shared code"),
        ("analyze/result.py", "import pickle", "No pickle"),
    ],
)
def test_a_broken_contract_is_found(file: str, line: str, contract: str, copy: Path) -> None:
    with (copy / file).open("a", encoding="utf-8") as source:
        source.write(f"\n\n{line}\n")
    kept, report = lint_imports(copy)
    assert not kept
    assert re.search(rf"^.*{contract}.* BROKEN", report, re.MULTILINE), report


def circles(package: str) -> list[list[str]]:
    """Groups of modules that import one another, packages' own `__init__` among them."""
    graph = grimp.build_graph(package, cache_dir=None, exclude_type_checking_imports=False)
    modules = sorted(graph.modules)
    number = {module: index for index, module in enumerate(modules)}
    edges = [
        (number[module], number[found])
        for module in modules
        for found in graph.find_modules_directly_imported_by(module)
    ]
    start, end = np.array(edges).T
    matrix = coo_array((np.ones(len(edges)), (start, end)), shape=(len(modules), len(modules)))
    _, group = connected_components(matrix, directed=True, connection="strong")
    groups = [[module for module in modules if group[number[module]] == one] for one in np.unique(group)]
    return [found for found in groups if len(found) > 1]


def test_no_circle_of_files() -> None:
    """The contract compares files and folders side by side; this also finds circles through a package's `__init__`."""
    assert circles("sparse_pipeline") == []


def test_every_source_is_seen_by_the_contracts() -> None:
    graph = grimp.build_graph("sparse_pipeline", cache_dir=None)
    files = {path.relative_to(ROOT).with_suffix("").parts for path in PYTHON}
    modules = {".".join(("sparse_pipeline", *(part for part in parts if part != "__init__"))) for parts in files}
    assert graph.modules - {"sparse_pipeline.setup"} == modules


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_inside_the_packages_are_relative(path: Path) -> None:
    for line, module, level in imports(path):
        top = module.partition(".")[0]
        assert level or top not in {"sparse_pipeline", *PACKAGES, "pipeline"}, (
            f"{name_of(path)}:{line}: import {module}"
        )


def test_every_folder_of_sources_is_a_package() -> None:
    missing = {path.parent for path in SOURCES if not (path.parent / "__init__.py").is_file()}
    assert not missing, f"no __init__.py in {sorted(map(name_of, missing))}: the wheel would leave it out"


@pytest.mark.parametrize("path", PYTHON, ids=name_of)
def test_annotations_are_not_evaluated(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if tree.body and not (len(tree.body) == 1 and isinstance(tree.body[0], ast.Expr)):
        futures = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module == "__future__"]
        assert futures, f"{name_of(path)} has no `from __future__ import annotations`"


UNSAFE = {
    r"\btorch\.load\((?!.*weights_only=True)": "a pickle runs code: safetensors, or weights_only=True",
    r"^\s*(import|from) pickle\b": "a pickle runs code",
    r"allow_pickle\s*=\s*True": "a pickle runs code",
    r"trust_remote_code\s*=\s*True": "runs code from a hub",
    r"\bYAML\(\)|^\s*(import|from) yaml\b": "shared/config/yaml.py reads YAML, as plain data only",
    r"^\s*except( Base)?( Exception)?:\s*(pass)?$": "swallows every error",
}


@pytest.mark.parametrize("path", PYTHON, ids=name_of)
def test_nothing_unsafe_and_nothing_unfinished(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for number, line in enumerate(text.splitlines(), 1):
        for pattern, why in UNSAFE.items():
            assert not re.search(pattern, line), f"{name_of(path)}:{number}: {why}"
        assert not re.search(r"\b(TODO|FIXME|XXX)\b|raise NotImplementedError", line), f"{name_of(path)}:{number}"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ExceptHandler) and len(node.body) == 1 and isinstance(node.body[0], ast.Pass):
            raise AssertionError(f"{name_of(path)}:{node.lineno}: say with contextlib.suppress(Error) what is expected")


@pytest.mark.parametrize("path", PYTHON, ids=name_of)
def test_modules_say_what_they_are_for(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not tree.body or ast.get_docstring(tree), f"{name_of(path)} has no docstring"


@pytest.mark.parametrize("path", PYTHON, ids=name_of)
def test_modules_stay_readable(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= 600, f"{name_of(path)} has {lines} lines, at most 600"


LONGER_FUNCTIONS = {
    "shared/codes/met_pairs.py:scan_met": "one compiled loop whose state is local; half of it is the signature",
    "shared/codes/pairs.py:scan_rows": "one compiled loop whose state is local; half of it is the signature",
    "train/kernels/update.py:_rows": "one Triton kernel: row, moments and gradient stay in registers",
}
"""file:function → why it is over 60 lines."""


def functions(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, int]]:
    """(dotted name, lines without decorators) of every function below a node."""
    for child in ast.iter_child_nodes(node):
        name = f"{prefix}{child.name}." if isinstance(child, ast.FunctionDef | ast.ClassDef) else prefix
        if isinstance(child, ast.FunctionDef):
            yield name[:-1], (child.end_lineno or 0) - child.lineno + 1
        yield from functions(child, name)


def test_functions_stay_readable() -> None:
    long = {
        f"{name_of(path)}:{name}": lines
        for path in PYTHON
        for name, lines in functions(ast.parse(path.read_text(encoding="utf-8")))
        if lines > 60
    }
    assert long.keys() == LONGER_FUNCTIONS.keys(), "over 60 lines: shorten it, or say why in LONGER_FUNCTIONS"


def test_what_is_imported_is_declared_and_what_is_declared_is_imported() -> None:
    declared = {re.split(r"[<>=!~ ]", line)[0] for line in PROJECT["project"]["dependencies"]}
    imported = {module.partition(".")[0] for path in PYTHON for _, module, level in imports(path) if level == 0}
    third_party = imported - sys.stdlib_module_names
    # triton comes with PyTorch where there is CUDA; for the others an error says what to install
    optional = {"triton", "zarr", "gguf", "peft", "obstore"}
    named = {"google_crc32c": "google-crc32c", "huggingface_hub": "huggingface-hub", "ruamel": "ruamel.yaml"}
    named["typing_extensions"] = "typing-extensions"
    assert {named.get(name, name) for name in third_party - optional} == declared
    table = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    explained = {name for row in re.findall(r"^\| ([a-z0-9., -]+) \|", table, re.MULTILINE) for name in row.split(", ")}
    assert explained - {"package"} == declared


@pytest.mark.skipif(not (ROOT / ".git").exists() or shutil.which("git") is None, reason="no git checkout")
def test_no_large_file_is_committed() -> None:
    """The demo's model is the largest; a cache, a run or what a killed benchmark leaves does not belong here."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    files = [ROOT / name.decode() for name in listed.split(b"\0") if name]
    large = {name_of(path): path.stat().st_size for path in files if path.is_file() and path.stat().st_size > 500_000}
    assert set(large) == {"harvest/demo/model/model.safetensors"}
