"""What CONTRIBUTING promises: an architecture, penalty, variant or report is one new file and one registry line."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).resolve().parent.parent


def example(page: str, holds: str) -> str:
    """The Python block of a page that holds this text."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    (found,) = (block for block in blocks if holds in block)
    return f'"""A toy: mean squared code."""\n\n{found}'


NEW = {
    "shared/coders/toy.py": '''"""A toy: ReLU with a margin."""

from dataclasses import dataclass
from typing import Literal

import torch

from .base import CoderConfig
from .dense import DenseCoder, DenseCodes


@dataclass(frozen=True, kw_only=True)
class ToyConfig(CoderConfig):
    """Toy."""

    architecture: Literal["toy"] = "toy"
    margin: float = 0.1
    """What is cut off."""


class Toy(DenseCoder):
    """z = ReLU(π − margin)."""

    config_class = ToyConfig

    def encode_normalised(self, u):
        pre = self.pre(u)
        return DenseCodes(torch.relu(pre - self.config.margin), None, self.n_latents, pre=pre)

    def losses(self, u, t, codes):
        return self.fit(u, t, codes)
''',
    # The example of docs/training.md: imported before all others, it must not ask the package for its own base.
    "train/penalties/toy.py": example("docs/training.md", "class Loudness"),
    "train/variants/toy.yaml": """# A toy.
coder: {architecture: toy, margin: 0.2}
penalties: {loudness: {weight: 0.05}}
""",
    "analyze/reports/toy/__init__.py": '"""A toy."""\n',
    "analyze/reports/toy/config.py": '''"""Settings of the toy."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from ..base import ReportConfig


@dataclass(frozen=True, kw_only=True)
class ToyReportConfig(ReportConfig):
    """Toy."""

    kind: Literal["toy"] = "toy"
    by_default: ClassVar[bool] = False
''',
    "analyze/reports/toy/report.py": '''"""A toy: how often latents fire."""

import numpy as np

from ...result import Aim, Figure, ReportResult
from ..base import Report
from .config import ToyReportConfig


class ToyReport(Report[ToyReportConfig]):
    """Counts firings."""

    config_class = ToyReportConfig
    title = "Toy"

    def __init__(self, config, subject):
        super().__init__(config, subject)
        self.fired = np.zeros(subject.n_latents, np.int64)

    def update(self, batch):
        self.fired += np.bincount(batch.codes.latents, minlength=len(self.fired))

    def merge(self, other):
        self.fired += other.fired

    def finalise(self):
        mean, most = float(self.fired.mean()), int(self.fired.max())
        figure = Figure(
            "toy_firings",
            "toy firings per latent",
            mean,
            "Rows on which a latent fires, mean over latents.",
            with_bos=most,
            short="toy",
            aim=Aim(1e9, "≤ 1e9"),
            terminal=True,
            before_after=True,
            sweep=True,
            show_twin=True,
        )
        table = {"latent": np.arange(len(self.fired)), "toy_fired": self.fired}
        return ReportResult("toy", self.title, "A toy.", [figure], tables_on_disk={"toy": table})
''',
}
REGISTERED = {  # file: (the registry, its new entry, the import of what it names)
    "shared/coders/registry.py": (
        "ARCHITECTURES: Registry[type[Coder]] = Registry(\n    __package__,\n    {",
        '        "toy": Toy,',
        "from .toy import Toy",
    ),
    "train/penalties/__init__.py": (
        "PENALTIES: Registry[type[Penalty]] = Registry(\n    __package__,\n    {",
        '        "loudness": Loudness,',
        "from .toy import Loudness",
    ),
    "analyze/reports/__init__.py": (
        "REPORTS: Registry[type[AnyReport]] = Registry(\n    __package__,\n    {",
        '        "toy": (ToyReportConfig, "toy.report.ToyReport"),',
        "from .toy.config import ToyReportConfig",
    ),
}
FIRST = "from __future__ import annotations\n"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source tree with the toys in it, and with the loops that earlier tests have compiled."""
    source = tmp_path_factory.mktemp("source") / "sparse_pipeline"
    for package in ("harvest", "train", "analyze", "shared"):
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("*.pyc", "model"))
    for module in ROOT.glob("*.py"):
        shutil.copy(module, source)
    for name, text in NEW.items():
        assert not (source / name).exists()
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(text, encoding="utf-8")
    for name, (opening, entry, imported) in REGISTERED.items():
        text = (source / name).read_text(encoding="utf-8")
        assert text.count(opening) == text.count(FIRST) == 1
        text = text.replace(opening, f"{opening}\n{entry}").replace(FIRST, f"{FIRST}\n{imported}\n")
        (source / name).write_text(text, encoding="utf-8")
    return source


@pytest.fixture(scope="module")
def here(workshop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("extending") / "here"
    shutil.copytree(workshop, folder)
    return folder


SWEEP = """
sweep: {name: one, variants: {plain: topk}, plots: []}
analyze: {controls: false, reports: {toy: {}, position: null, top_activations: null, correlation: null}}
"""
RUNS = ("topk", "matryoshka")
COMMANDS = {
    "train": ["train", "--variant", "toy", "--json"],
    "analyze": ["analyze", *RUNS, "--only", "global", "--only", "toy"],
    "sweep": ["sweep", "one.yaml"],
    "sweep again": ["sweep", "one.yaml"],
}
PROGRAM = """
import contextlib, hashlib, io, json, pathlib, sys
from sparse_pipeline import pipeline

found = {}
for name, words in json.loads(sys.argv[1]).items():
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert pipeline.run(words) == 0, name
    files = pathlib.Path("sweeps").rglob("*.*")
    found[name] = [out.getvalue(), {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def told(source: Path, here: Path) -> dict[str, tuple[str, dict[str, str]]]:
    """What each command of the copied tree prints on stdout, and the files of the sweep after it: one process, since
    its imports take longer than the commands."""
    (here / "one.yaml").write_text(SWEEP, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(COMMANDS)],
        cwd=here,
        env={**os.environ, "PYTHONPATH": str(source.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {name: (out, files) for name, (out, files) in json.loads(done.stdout).items()}


Told = dict[str, tuple[str, dict[str, str]]]


def test_a_toy_of_each_kind_trains_from_the_command_line(told: Told, here: Path) -> None:
    (run,) = json.loads(told["train"][0])["runs"]
    assert (run["name"], run["variant"]) == ("toy", "toy")
    assert 0 < run["fvu"] < run["fvu_untrained"]
    line = json.loads((here / "runs/toy/metrics.jsonl").read_text().splitlines()[-1])
    assert line["loudness/weight"] == 0.05
    assert line["loss"] - line["reconstruction"] - line.get("aux", 0) > 0.04 * line["loudness"] > 0
    frozen = (here / "runs/toy/config.yaml").read_text()
    assert "architecture: toy" in frozen
    assert "margin: 0.2" in frozen


def test_the_figure_of_a_toy_report_is_shown_everywhere(told: Told, here: Path) -> None:
    """A report in one folder and one registry line: every table and file finds its figure by itself."""
    printed = told["analyze"][0]
    header = re.split(r"  +", printed.splitlines()[0])
    assert header[0] == "run"
    assert header[header.index("toy") + 1] == "incl. pos. 0"

    (folder,) = (path.parent for path in (here / "reports").glob("*/report.json"))
    document = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    figures = [entry["reports"]["toy"]["figures"]["toy_firings"] for entry in document["runs"]]
    first = document["runs"][0]
    assert figures[0]["aim"] == {"at_most": 1e9, "text": "≤ 1e9"}
    table = pq.read_table(folder / first["folder"] / "toy.parquet")
    assert table.schema.names == ["latent", "toy_fired"]
    assert figures[0]["value"] == pytest.approx(np.mean(table["toy_fired"].to_numpy()))
    assert first["summary"]["toy_firings"] == figures[0]["value"]
    assert "| toy firings per latent |" in (folder / "report.md").read_text(encoding="utf-8")
    assert "toy firings per latent" in (folder / "index.html").read_text(encoding="utf-8")

    (changes,) = (table for table in document["comparison"]["tables"] if table["key"] == "before_after")
    rows = {row[0]: row for row in changes["rows"]}
    assert rows["toy firings per latent"][1] == "≤ 1e9"
    assert "✓" in rows["toy firings per latent"][2]
    assert set(document["comparison"]["data"]["before_after"]["toy_firings"]) == set(RUNS)


def test_the_figure_of_a_toy_report_is_a_column_of_a_sweep(told: Told, here: Path) -> None:
    printed, written = told["sweep"]
    (header,) = (line for line in printed.splitlines() if line.startswith("setting"))
    assert re.split(r"  +", header) == ["setting", "seeds", "held-out FVU", "L0", "toy", "dead"]
    folder = here / "sweeps/one"
    (row,) = csv.DictReader((folder / "comparison.csv").read_text(encoding="utf-8").splitlines())
    assert 0 < float(row["toy_firings"]) < float(row["toy_firings_with_bos"])
    markdown = (folder / "comparison.md").read_text(encoding="utf-8")
    assert "| toy | toy incl. pos. 0 |" in markdown
    assert "- **toy**: Rows on which a latent fires, mean over latents." in markdown
    assert {str(path.relative_to(here)) for path in folder.iterdir()} == set(written)
    assert told["sweep again"][1] == written, "what was measured is kept with its figures"
