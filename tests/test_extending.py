"""What CONTRIBUTING promises: an architecture, a penalty or a variant is one new file and one registry line."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

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
}
REGISTERED = {  # file: (the registry, its new entry, the import of what it names)
    "shared/coders/registry.py": (
        "ARCHITECTURES: dict[str, type[Coder]] = {",
        '    "toy": Toy,',
        "from .toy import Toy",
    ),
    "train/penalties/__init__.py": (
        "PENALTIES: dict[str, type[Penalty]] = {",
        '    "loudness": Loudness,',
        "from .toy import Loudness",
    ),
}
BEFORE = "\nfrom shared.registry import"


def test_a_toy_of_each_kind_trains_from_the_command_line(workshop: Path, tmp_path: Path) -> None:
    source, here = tmp_path / "source/sparse_pipeline", tmp_path / "here"
    for package in ("harvest", "train", "analyze", "shared"):
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__", "model"))
    for module in ROOT.glob("*.py"):
        shutil.copy(module, source)
    shutil.copytree(workshop, here)
    for name, text in NEW.items():
        assert not (source / name).exists()
        (source / name).write_text(text, encoding="utf-8")
    for name, (opening, entry, imported) in REGISTERED.items():
        text = (source / name).read_text(encoding="utf-8")
        assert text.count(opening) == text.count(BEFORE) == 1
        text = text.replace(opening, f"{opening}\n{entry}").replace(BEFORE, f"\n{imported}{BEFORE}")
        (source / name).write_text(text, encoding="utf-8")

    found = subprocess.run(
        [sys.executable, "-m", "sparse_pipeline", "train", "--variant", "toy", "--json"],
        cwd=here,
        env={**os.environ, "PYTHONPATH": str(source.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    (run,) = json.loads(found.stdout)["runs"]
    assert (run["name"], run["variant"]) == ("toy", "toy")
    assert 0 < run["fvu"] < run["fvu_untrained"]
    line = json.loads((here / "runs/toy/metrics.jsonl").read_text().splitlines()[-1])
    assert line["loudness/weight"] == 0.05
    assert line["loss"] - line["reconstruction"] - line.get("aux", 0) > 0.04 * line["loudness"] > 0
    frozen = (here / "runs/toy/config.yaml").read_text()
    assert "architecture: toy" in frozen
    assert "margin: 0.2" in frozen
