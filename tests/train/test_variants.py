from __future__ import annotations

import re
from pathlib import Path

import pytest

from sparse_pipeline.shared.coders import ARCHITECTURES
from sparse_pipeline.shared.config.settings import load_yaml, merge, presets, to_dict, validate
from sparse_pipeline.train.config import TrainConfig
from sparse_pipeline.train.penalties import PENALTIES

ROOT = Path(__file__).parents[2]
VARIANTS = sorted((ROOT / "train" / "variants").glob("*.yaml"))


@pytest.mark.parametrize("path", VARIANTS, ids=lambda path: path.stem)
def test_every_variant_lies_over_the_defaults(path: Path) -> None:
    settings = merge(to_dict(TrainConfig()), {"variant": path.stem, **load_yaml(path)}, TrainConfig)
    config = validate(TrainConfig, settings, "train")
    assert config.run_name == path.stem
    assert validate(TrainConfig, to_dict(config)) == config


def test_every_architecture_and_every_penalty_has_a_variant() -> None:
    variants = [load_yaml(path) for path in VARIANTS]
    # cross-layer needs a source for each layer, which only a preset can name: demo-cross-layer
    of_one_site = set(ARCHITECTURES) - {"cross-layer"}
    assert {path.stem for path in VARIANTS} >= of_one_site
    assert {variant["coder"]["architecture"] for variant in variants} == of_one_site
    alone = {
        name
        for variant in variants
        for name in variant.get("penalties", {})
        if variant["coder"]["architecture"] == "topk" and len(variant["penalties"]) == 1
    }
    assert alone == set(PENALTIES), "each penalty alone over TopK"


def test_the_first_line_says_what_it_is_and_the_docs_list_it() -> None:
    for path in VARIANTS:
        assert path.read_text(encoding="utf-8").startswith("# ")
    table = (ROOT / "docs" / "architectures.md").read_text(encoding="utf-8").partition("## Variants")[2]
    rows = re.findall(r"^\| `([a-z0-9][a-z0-9-]*)` \|", table.partition("## Presets")[0], re.MULTILINE)
    assert sorted(rows) == sorted(path.stem for path in VARIANTS)
    rows = re.findall(r"^\| `([a-z0-9][a-z0-9-]*)` \|", table.partition("## Presets")[2], re.MULTILINE)
    assert sorted(rows) == sorted(presets())


def test_names_are_words_with_hyphens() -> None:
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", path.stem) for path in VARIANTS)


def test_a_variant_leaves_the_penalties_of_a_preset_in_place() -> None:
    base = merge(to_dict(TrainConfig()), {"penalties": {"ortsae": {"weight": 0.5}}}, TrainConfig)
    merged = merge(base, load_yaml(ROOT / "train/variants/topk-tracked-pairs.yaml"), TrainConfig)
    assert merged["penalties"].keys() == {"ortsae", "tracked_pairs"}


def test_a_variant_changes_architecture_without_dragging_old_keys_along() -> None:
    base = to_dict(TrainConfig())
    assert base["coder"]["architecture"] == "matryoshka"
    merged = merge(base, load_yaml(VARIANTS[0].parent / "topk.yaml"), TrainConfig)
    assert "groups" not in merged["coder"]
    assert merged["coder"]["k"] == base["coder"]["k"]
