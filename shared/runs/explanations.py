"""Explanations of a run's latents: `runs/<name>/explanations/<judge>/explanations.json`, written by `pipeline explain`.

A label says in one line what a latent fires on; its scores say how well a judge who has only the label tells where it
fires. The file is sealed, and names the coder by its sha256: explanations of another coder are none of this one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cache.files import make_folder, read_sealed, sync_folder, write_sealed
from ..errors import DataError, command
from ..schemas import ExplanationsFile, checked

if TYPE_CHECKING:
    import pandas as pd

FOLDER = "explanations"
FILE = "explanations.json"
FORMAT_VERSION = 1
SCORES = ("detection", "fuzzing")
"""The scores of a label, in the order in which they are shown."""


@dataclass(frozen=True)
class Explanations:
    """The labels of one judge on one run.

    Attributes:
        path: the file.
        document: its content.
    """

    path: Path
    document: dict[str, Any] = field(repr=False)

    @property
    def judge(self) -> str:
        """Who gave the labels and was scored with them: "rule", or a model's name."""
        return str(self.document["judge"]["name"])

    @property
    def digest(self) -> str:
        """sha256 of the file: what a report that shows these labels was made with."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    @property
    def by_latent(self) -> dict[int, Mapping[str, Any]]:
        """Latent → its entry: `label`, and `detection` and `fuzzing` (each `value`, `low`, `high`, or None)."""
        return {int(one["latent"]): one for one in self.document["latents"]}

    @property
    def labels(self) -> dict[int, str]:
        """Latent → its label."""
        return {latent: str(one["label"]) for latent, one in self.by_latent.items()}

    def frame(self) -> pd.DataFrame:
        """One row for each explained latent, by its number.

        Columns: label, and for each score its value, `_low` and `_high` (95 % interval), `_shuffled` and `_random` (the
        controls). What was not scored is NaN.
        """
        import pandas as pd

        rows = []
        for latent, one in self.by_latent.items():
            row: dict[str, Any] = {"latent": latent, "label": one["label"]}
            for score in SCORES:
                found = one[score] or {}
                row |= {score: found.get("value"), f"{score}_low": found.get("low"), f"{score}_high": found.get("high")}
                for control, scores in one["controls"].items():
                    row[f"{score}_{control}"] = (scores[score] or {}).get("value")
            rows.append(row)
        frame = pd.DataFrame(rows, columns=list(rows[0]) if rows else ["latent", "label"])
        numbers = [name for name in frame.columns if name not in ("latent", "label")]
        return frame.astype(dict.fromkeys(numbers, "float64")).set_index("latent")


def write_explanations(run: Path, judge: str, document: Mapping[str, Any]) -> Path:
    """Writes the explanations of a judge, in place of its earlier ones; returns the file."""
    folder = run / FOLDER / judge
    make_folder(folder, "explain.name")
    write_sealed(folder / FILE, {"format_version": FORMAT_VERSION, **document})
    for one in (folder, folder.parent, run):
        sync_folder(one)
    return folder / FILE


def read_explanations(file: Path) -> Explanations:
    """One file of explanations.

    Raises:
        DataError: it is missing, damaged, or of another format.
    """
    hint = command("explain", file.parents[2])
    return Explanations(file, checked(ExplanationsFile, read_sealed(file, hint, FORMAT_VERSION), file, hint))


def explanation_files(run: Path) -> list[Path]:
    """The files of explanations of a run, the newest first."""
    found = [file for file in run.glob(f"{FOLDER}/*/{FILE}") if file.is_file()]
    return sorted(found, key=lambda file: (-file.stat().st_mtime_ns, str(file)))


def explanations_of(run: Path, coder_sha256: str | None, judge: str | None = None) -> Explanations | None:
    """The newest explanations of a run's coder; None where there are none.

    Args:
        coder_sha256: of the coder's tensors (final/config.json); None: of any coder.
        judge: only this folder of explanations.

    Raises:
        DataError: they are damaged.
    """
    for file in explanation_files(run):
        if judge is None or file.parent.name == judge:
            found = read_explanations(file)
            if coder_sha256 is None or found.document["coder_sha256"] == coder_sha256:
                return found
    return None


def some_explanations(run: Path, coder_sha256: str, judge: str | None = None) -> Explanations:
    """As :func:`explanations_of`. Raises DataError where there are none."""
    found = explanations_of(run, coder_sha256, judge)
    if found is None:
        known = ", ".join(file.parent.name for file in explanation_files(run))
        held = f"; it has {known}" if known else ""
        raise DataError(f"{run} has no explanations{f' by {judge}' if judge else ''}{held}", command("explain", run))
    return found
