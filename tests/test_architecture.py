"""The import rules and the other promises that docs/architecture.md makes about the source as a whole."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("harvest", "train", "analyze", "shared")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
PYTHON = [*SOURCES, *sorted(set(ROOT.glob("*.py")) - {ROOT / "setup.py"})]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

ALLOWED = {
    "harvest": {"harvest", "shared"},
    "train": {"train", "shared"},
    "analyze": {"analyze", "shared"},
    "shared": {"shared"},
}
KEPT_OUT = {
    # who may not see what: training and the shared code know nothing of where activations come from
    "train": {"transformers", "datasets", "tokenizers"},
    "shared": {"transformers", "datasets", "tokenizers", "wandb", "click"},
    "analyze": {"datasets", "wandb", "click"},  # transformers is seen by analyze/splice.py, which runs the model
    "harvest": {"wandb", "click"},
}
LET_IN = {"shared/text.py": {"tokenizers"}}  # token ids as text, for samples and reports; imported when first asked


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path) -> Iterator[tuple[int, str, int]]:
    """(line, imported module, level of a relative import), wherever in the file it stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, node.module or "", node.level


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_packages_import_only_what_they_may(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    for line, module, level in imports(path):
        top = module.partition(".")[0]
        where = f"{name_of(path)}:{line}"
        assert level == 0, f"{where}: imports are absolute"
        assert top not in set(PACKAGES) - ALLOWED[package], f"{where}: {package} may not import {top}"
        assert top != "pipeline", f"{where}: the front door is not for the rooms"
        assert top not in KEPT_OUT[package] - LET_IN.get(name_of(path), set()), (
            f"{where}: {package} may not import {top}"
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
    r"\btorch\.load\(": "a pickle runs code: safetensors",
    r"^\s*(import|from) pickle\b": "a pickle runs code",
    r"allow_pickle\s*=\s*True": "a pickle runs code",
    r"trust_remote_code\s*=\s*True": "runs code from a hub",
    r"\byaml\.(load|unsafe_load|full_load)\(": "shared.yaml reads YAML",
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


ONE_FILE = "a report is one file: settings, collector, figures, charts and tables"
FRONT_DOOR = "the front door is one module: every command, its errors and exit codes, and the Python API"
LONGER = {
    "pipeline.py": FRONT_DOOR,
    **{f"analyze/reports/{name}.py": ONE_FILE for name in ("correlation", "position", "top_activations")},
}


@pytest.mark.parametrize("path", PYTHON, ids=name_of)
def test_modules_stay_readable(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    limit = 700 if name_of(path) in LONGER else 600
    assert lines <= limit, f"{name_of(path)} has {lines} lines: more than 600 need a reason (a line in LONGER)"


def test_what_is_imported_is_declared_and_what_is_declared_is_imported() -> None:
    declared = {re.split(r"[<>=!~ ]", line)[0] for line in PROJECT["project"]["dependencies"]}
    imported = {module.partition(".")[0] for path in PYTHON for _, module, level in imports(path) if level == 0}
    third_party = imported - sys.stdlib_module_names - set(PACKAGES) - {"pipeline"}
    optional = {"triton"}  # comes with PyTorch where there is CUDA, and is imported only there
    named = {"google_crc32c": "google-crc32c", "huggingface_hub": "huggingface-hub", "yaml": "pyyaml"}
    assert {named.get(name, name) for name in third_party - optional} == declared
    table = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    explained = {name for row in re.findall(r"^\| ([a-z0-9, -]+) \|", table, re.MULTILINE) for name in row.split(", ")}
    assert explained - {"package"} == declared
