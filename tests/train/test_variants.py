from __future__ import annotations

from pathlib import Path

import pytest

from shared.config import load_yaml, merge, to_dict, validate
from train.config import TrainConfig

VARIANTS = sorted((Path(__file__).parents[2] / "train" / "variants").glob("*.yaml"))


@pytest.mark.parametrize("path", VARIANTS, ids=lambda path: path.stem)
def test_every_variant_lies_over_the_defaults(path: Path) -> None:
    settings = merge(to_dict(TrainConfig()), {"variant": path.stem, **load_yaml(path)}, TrainConfig)
    config = validate(TrainConfig, settings, "train")
    assert config.run_name == path.stem
    assert validate(TrainConfig, to_dict(config)) == config


def test_the_first_line_says_what_it_is() -> None:
    assert {path.stem for path in VARIANTS} >= {"topk", "matryoshka", "frozen_random_decoder"}
    for path in VARIANTS:
        assert path.read_text(encoding="utf-8").startswith("# ")


def test_a_variant_changes_architecture_without_dragging_old_keys_along() -> None:
    base = to_dict(TrainConfig())
    assert base["coder"]["architecture"] == "matryoshka"
    merged = merge(base, load_yaml(VARIANTS[0].parent / "topk.yaml"), TrainConfig)
    assert "groups" not in merged["coder"]
    assert merged["coder"]["k"] == base["coder"]["k"]
