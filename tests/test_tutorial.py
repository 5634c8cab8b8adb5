"""The notebook runs from the first cell to the last, in a folder with a cache, and is stored without outputs."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK: dict[str, Any] = json.loads((ROOT / "docs/tutorial.ipynb").read_text(encoding="utf-8"))
CODE = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def test_it_is_stored_without_outputs() -> None:
    for cell in NOTEBOOK["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
    assert NOTEBOOK["nbformat"] == 4


def test_every_cell_runs(workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "here"
    shutil.copytree(workshop, folder)
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {"__name__": "notebook"}
    shown = []
    for number, source in enumerate(CODE):
        tree = ast.parse(source)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, f"cell {number}", "exec"), names)
        if isinstance(last, ast.Expr):
            shown.append(eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), names))
    # what the notebook claims: the latent fires on the text with its token, and removing it changes the model
    assert len(names["here"]) >= 1
    assert names["kl"](names["ablated"]) > 0
    assert names["run"].fvu < names["run"].fvu_untrained
    assert any(isinstance(value, list) and len(value) == 8 for value in shown)
