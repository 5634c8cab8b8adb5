"""The page of a report of two runs whose tokens are an attack."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparse_pipeline.analyze.config import AnalyzeConfig
from sparse_pipeline.analyze.run import analyze
from tests.analyze.planted import planted
from tests.analyze.test_run import HOSTILE, nested


@pytest.fixture(scope="session")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs on one cache."""
    from tokenizers import Tokenizer, models

    folder = tmp_path_factory.mktemp("page")
    made = planted(folder / "cache")
    pieces = {f"▁word{i}": i for i in range(50)}
    for n, text in enumerate(HOSTILE):
        del pieces[f"▁word{n + 5}"]
        pieces[text] = n + 5
    tokenizer = Tokenizer(models.WordLevel(pieces, unk_token="▁word0"))
    tokenizer.add_special_tokens(["▁word2"])
    tokenizer.save(str(folder / "cache" / "tokenizer.json"))
    return [made.run(folder / "runs").path, nested(made, folder / "runs", "nested <i>")]


@pytest.fixture(scope="session")
def page(attacked: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their report: one file."""
    return analyze(attacked, AnalyzeConfig(out=tmp_path_factory.mktemp("one"))).report
