"""Studies: every file resolves in every size, has its controls, and its committed results are what the code makes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from sparse_pipeline.analyze.sweep.files import to_csv
from sparse_pipeline.analyze.sweep.markdown import to_markdown
from sparse_pipeline.resolve import resolve_sweep
from sparse_pipeline.shared.config.yaml import load_yaml

ROOT = Path(__file__).resolve().parent.parent
STUDIES = [path for path in sorted((ROOT / "studies").glob("*.yaml")) if "name" in load_yaml(path)["sweep"]]
SIZES = [(path, size) for path in STUDIES for size in (None, *load_yaml(path)["sweep"].get("sizes", {}))]
RESULTS = sorted((ROOT / "studies/results").glob("*/*/comparison.json"))


def name_of(value: Any) -> str:
    return str(value.relative_to(ROOT)) if isinstance(value, Path) else str(value)


@pytest.mark.parametrize(("path", "size"), SIZES, ids=name_of)
def test_every_study_resolves_in_every_size(path: Path, size: str | None) -> None:
    whole, cells = resolve_sweep(str(path), size=size)
    assert path.read_text(encoding="utf-8").startswith("# ")
    assert whole.sweep.name == path.stem
    assert len(whole.sweep.seeds) >= 3
    assert whole.sweep.baseline in {cell.setting for cell in cells}
    assert whole.analyze.documents == "heldout"
    assert whole.analyze.controls, "the untrained coder stands beside"
    assert all(cell.config.data.heldout > 0 for cell in cells)
    embedded = size is None and path.stem != REAL
    assert whole.sweep.harvest == embedded, "only the embedded model's cache is written on the way"
    assert all(cell.config.runs == Path("runs") for cell in cells)
    if path.stem == REAL:
        layer = "layer_09" if size is None else size.replace("-", "_", 1)[:8]
        assert {cell.config.source for cell in cells} == {f"{layer}.resid_mid"}
        transcoder = size is not None and "transcoder" in size
        assert {cell.config.target for cell in cells} == {f"{layer}.mlp_out" if transcoder else None}
        width = 16_384 if size is not None and size.endswith("16k") else 4096
        coders = [cell.config.coder for cell in cells]
        assert {(one.latents, getattr(one, "k", 0) or one.l0_target) for one in coders} == {(width, 32)}
    elif size is not None:
        expected = "layer_03.resid_mid", 2048 if path.stem == "anti-duplication" else 1024, 16
        for cell in cells:
            k = getattr(cell.config.coder, "k", 16)
            assert (cell.config.source, cell.config.coder.latents, k) == expected
        assert {cell.config.target for cell in cells} <= {None, "layer_03.mlp_out"}


REAL = "gemma-3-270m"
"""The study of a real model, whose cache takes an hour: it has no size that trains on the embedded one."""

SOURCES = ("anti-duplication", "layer8-transcoder", "self-contrastive", "topk-pairs")


@pytest.mark.parametrize("name", SOURCES)
def test_the_studies_of_the_sources_have_their_controls_and_their_reports(name: str) -> None:
    whole, cells = resolve_sweep(str(ROOT / f"studies/{name}.yaml"))
    frozen = [cell for cell in cells if "w_dec" in cell.config.freeze]
    assert {cell.setting for cell in frozen} == {"frozen-random-decoder"}
    assert {"global", "correlation", "position", "absorption", "probing"} <= whole.analyze.reports.keys()
    assert "Claimed by the source" in whole.sweep.about


def settings(name: str) -> dict[str, Any]:
    return {cell.setting: cell.config for cell in resolve_sweep(str(ROOT / f"studies/{name}.yaml"))[1]}


def test_what_each_study_varies() -> None:
    pairs = settings("topk-pairs")
    shares = [pairs[f"share={share}%"].penalties["topk_pairs"].share for share in ("0.01", "0.1", "1")]
    assert shares == [0.0001, 0.001, 0.01]
    assert pairs["adaptive"].penalties["topk_pairs"].threshold == "adaptive"
    assert pairs["decoder"].penalties["topk_pairs"].on == "decoder"
    contrastive = {
        name: (one.projection, one.threshold_start, one.threshold_end, one.contrastive_weight)
        for name, config in settings("self-contrastive").items()
        if (one := config.penalties.get("self_contrastive"))
    }
    assert contrastive["exact"] == (None, 0.3, 0.05, 0.3)
    assert contrastive["d=64"] == (64, 0.3, 0.05, 0.3)
    assert contrastive["d=128"] == (128, 0.3, 0.05, 0.3)
    assert contrastive["d=128-threshold=0.2"] == (128, 0.2, 0.05, 0.3)
    assert contrastive["d=128-contrastive=0.1"] == (128, 0.3, 0.05, 0.1)
    everything = settings("anti-duplication")
    assert set(everything["antidup"].penalties) == {
        "decoder_orthogonality", "activation_correlation", "position_diversity"
    }  # fmt: skip
    assert everything["antidup"].sampler.max_bos_share == 0.2
    alone = [config.penalties for config in everything.values() if len(config.penalties) == 1]
    assert {next(iter(penalties.values())).kind for penalties in alone} == {
        "decoder_orthogonality", "ortsae", "activation_correlation", "position_diversity", "topk_pairs",
        "self_contrastive", "tracked_pairs",
    }  # fmt: skip


@pytest.mark.parametrize("path", RESULTS, ids=name_of)
def test_committed_results_are_whole(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    document = json.loads(text)
    assert (path.parent / "comparison.md").read_text(encoding="utf-8") == to_markdown(document)
    assert (path.parent / "comparison.csv").read_text(encoding="utf-8") == to_csv(document)
    for plot in ("curves.png", "bars.png"):
        assert (path.parent / plot).read_bytes().startswith(b"\x89PNG")
    assert not re.search(r"/(tmp|home|work|root|data)/", text), "a folder of one machine"
    assert all(run["steps"] > 0 and run["fvu"] is not None for run in document["runs"])
    roles = {row["role"] for row in document["settings"]}
    assert roles == {"run", "control"}
    study, size = path.parent.parent.name, path.parent.name
    sizes = load_yaml(ROOT / f"studies/{study}.yaml")["sweep"].get("sizes", {})
    _, cells = resolve_sweep(str(ROOT / f"studies/{study}.yaml"), size=size if size in sizes else None)
    known = {cell.setting for cell in cells}
    assert {run["setting"] for run in document["runs"]} <= known, "the file has these settings no more"
