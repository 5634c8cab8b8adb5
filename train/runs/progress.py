"""Short reports in the course of a training (train.report_every): progress/step_<n>.json, and progress/index.html with
all of them so far."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...shared.cache.files import read_json, sync_folder, write_json
from ...shared.page import Column, Page, Section, Table, write_page
from ...shared.runs.curves import last_values
from ...shared.runs.folder import Run

FOLDER = "progress"

HELD_OUT = {
    "fvu": "Fraction of the target's variance left unexplained, excluding position 0.",
    "fvu_with_bos": "The same including position 0.",
    "fvu_dims": "Mean over dimensions of the FVU of each.",
    "l0": "Latents per row, excluding position 0.",
}

CURVES = {
    "loss": "The minimised loss.",
    "reconstruction": "Its reconstruction term.",
    "sparsity": "Its sparsity term.",
    "orthogonality": "What all penalties add to it.",
    "active": "Different latents that fired in the batch.",
    "unique": "Different latents in the pairs of a pair penalty.",
    "max_pair": "Largest correlation (or overlap) of a pair.",
    "mean_pair": "Mean of the same over pairs.",
}


def write_progress(run: Run, step: int, evaluation: Mapping[str, Any], evaluated_on: str) -> Path:
    """Writes the report of a step, and the page of all up to it; returns the page. Depends on that step alone.

    Args:
        evaluation: figures of the coder now (`Evaluation.to_dict`).
        evaluated_on: "heldout" or "train".
    """
    folder = run.path / FOLDER
    folder.mkdir(exist_ok=True)
    document = {
        "step": step,
        "evaluated_on": evaluated_on,
        "evaluation": dict(evaluation),
        "metrics": last_values(run.metrics()),
    }
    write_json(folder / f"step_{step:08d}.json", document)
    _write_page(run)
    return folder / "index.html"


def rewind_progress(run: Run, step: int) -> None:
    """Delete the reports of later steps, which a resumed run writes again, and write the page of the others."""
    for file in (run.path / FOLDER).glob("step_*.json"):
        if int(file.stem.removeprefix("step_")) > step:
            file.unlink()
    if (run.path / FOLDER).is_dir():
        _write_page(run)


def _write_page(run: Run) -> None:
    folder = run.path / FOLDER
    found = [read_json(file) for file in sorted(folder.glob("step_*.json"))]
    if found:
        write_page(folder / "index.html", _page(run.name, found))
    else:
        (folder / "index.html").unlink(missing_ok=True)
    sync_folder(folder)


def _page(name: str, reports: list[dict[str, Any]]) -> Page:
    where = "held-out" if reports[-1]["evaluated_on"] == "heldout" else "trained-on"
    held_out = [
        [f"{one['step']:,}", *(_shown(one["evaluation"].get(key)) for key in HELD_OUT)] for one in reversed(reports)
    ]
    logged = [key for key in CURVES if any(one["metrics"].get(key) is not None for one in reports)]
    curves = [[f"{one['step']:,}", *(_shown(one["metrics"].get(key)) for key in logged)] for one in reversed(reports)]
    columns = [Column(key, text) for key, text in HELD_OUT.items()]
    sections = [
        Section(f"On {where} rows", tables=(Table([Column("step"), *columns], held_out),)),
        Section(
            "Of the last logged batch",
            tables=(Table([Column("step"), *(Column(k, CURVES[k]) for k in logged)], curves),),
        ),
    ]
    return Page(f"{name} in training", f"after step {reports[-1]['step']:,}; the newest first", (), sections)


def _shown(value: float | None) -> str:
    return "–" if value is None else json.dumps(value) if isinstance(value, int) else f"{value:.4g}"
