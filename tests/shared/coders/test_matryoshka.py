"""Matryoshka beyond fixed groups over TopK: random prefixes against their closed form, BatchTopK inside."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import chisquare

from sparse_pipeline.shared.coders import load_coder, save_coder
from sparse_pipeline.shared.coders.batchtopk import BatchTopK, BatchTopKConfig
from sparse_pipeline.shared.coders.configs.base import StepContext
from sparse_pipeline.shared.coders.matryoshka import Matryoshka, MatryoshkaConfig
from sparse_pipeline.shared.coders.nested import draw_prefixes
from sparse_pipeline.shared.config.settings import validate
from sparse_pipeline.shared.errors import ConfigError
from tests.shared.coders.test_batchtopk import literal
from tests.shared.coders.test_coders import make, rows


def probabilities(n_latents: int, power: float) -> NDArray[np.float64]:
    """P(⌊X⌋ = m) for m = 1 … n_latents − 1: differences of the truncated Pareto distribution function."""
    m = np.arange(1, n_latents + 1, dtype=np.float64)
    beyond = (m**-power - n_latents**-power) / (1 - n_latents**-power)
    return np.asarray(beyond[:-1] - beyond[1:])


@pytest.mark.parametrize("power", [0.5, 1.5])
def test_one_random_prefix_has_the_truncated_pareto_distribution(power: float) -> None:
    drawn = np.array([draw_prefixes(40, 2, power, 3, step)[0] for step in range(4000)])
    expected = probabilities(40, power)
    assert expected.sum() == pytest.approx(1)
    bins = np.array([1, 2, 3, 5, 9, 17, 40])
    found = np.histogram(drawn, bins)[0]
    assert found.sum() == 4000
    wanted = np.add.reduceat(expected, bins[:-1] - 1) * 4000
    assert chisquare(found, wanted).pvalue > 0.01


def test_several_are_drawn_without_replacement() -> None:
    p = probabilities(6, 0.5)
    pairs = {
        (a, b): p[a - 1] * p[b - 1] * (1 / (1 - p[a - 1]) + 1 / (1 - p[b - 1])) for a, b in combinations(range(1, 6), 2)
    }
    assert sum(pairs.values()) == pytest.approx(1)
    drawn = [draw_prefixes(6, 3, 0.5, 0, step) for step in range(4000)]
    assert {lengths[2] for lengths in drawn} == {6}
    found = [sum(lengths[:2] == pair for lengths in drawn) for pair in pairs]
    assert chisquare(found, np.array(list(pairs.values())) * 4000).pvalue > 0.01


def test_the_draw_is_a_function_of_seed_and_step() -> None:
    draws = [draw_prefixes(18_432, 10, 0.5, seed, step) for seed in (0, 1, -1) for step in range(50)]
    assert draws == [draw_prefixes(18_432, 10, 0.5, seed, step) for seed in (0, 1, -1) for step in range(50)]
    assert len(set(draws)) == len(draws)
    for lengths in draws:
        assert len(set(lengths)) == 10
        assert list(lengths) == sorted(lengths)
        assert lengths[0] >= 1
        assert lengths[-1] == 18_432
    assert draw_prefixes(4, 4, 0.5, 0, 0) == (1, 2, 3, 4)
    assert draw_prefixes(4, 1, 0.5, 0, 0) == (4,)


def test_training_uses_the_draw_of_its_step_and_evaluation_the_usual_groups() -> None:
    coder = make(MatryoshkaConfig(latents=64, k=3, prefixes="random", n_prefixes=5))
    seen = set()
    for step in range(1, 6):
        coder.begin_step(StepContext(7, step))
        assert coder.prefixes == draw_prefixes(64, 5, 0.5, 7, step)
        seen.add(coder.prefixes)
    assert len(seen) == 5
    assert coder.eval().prefixes == (8, 24, 56, 64)
    fixed = make(MatryoshkaConfig(latents=64, k=3))
    fixed.begin_step(StepContext(7, 1))
    assert fixed.prefixes == (8, 24, 56, 64)


def twins(skip: bool = False, tied: bool = False) -> tuple[Matryoshka, BatchTopK]:
    """Matryoshka over BatchTopK, and a BatchTopK, of the same weights."""
    settings = {"latents": 13, "k": 3, "skip": skip, "threshold_warmup": 1, "threshold_ema": 0.9}
    nested = make(MatryoshkaConfig(**settings, selection="batchtopk", groups=(2, 4, 7)), tied)  # type: ignore[arg-type]
    plain = make(BatchTopKConfig(**settings), tied)  # type: ignore[arg-type]
    assert isinstance(nested, Matryoshka)
    assert isinstance(plain, BatchTopK)
    plain.load_state_dict(nested.state_dict())
    return nested, plain


@pytest.mark.parametrize(("tied", "skip"), [(True, False), (False, False), (False, True)])
def test_over_batchtopk_the_selection_is_batchtopks_own(tied: bool, skip: bool) -> None:
    nested, plain = twins(skip, tied)
    for scale in (1.0, 2.0, 0.5):
        u, t = rows(nested)
        u = u * scale
        mine, theirs = nested.encode_normalised(u), plain.encode_normalised(u)
        assert torch.equal(mine.dense(), theirs.dense())
        assert len(set(mine.l0().tolist())) > 1
        z = literal((u @ nested.w_enc.T + nested.b_enc).detach().numpy(), 3)
        base = nested.offset(u).detach().numpy() - t.numpy()
        w = nested.w_dec.detach().numpy()
        expected = np.mean([((base + z[:, :m] @ w[:m]) ** 2).mean() for m in (2, 6, 13)])
        assert nested.losses(u, t, mine)["reconstruction"].item() == pytest.approx(expected, rel=1e-12)
        nested.after_step(mine)
        plain.after_step(theirs)
        assert nested.threshold == plain.threshold > 0
        assert nested.threshold_steps == plain.threshold_steps
    u = rows(nested)[0]
    values = nested.eval().encode_normalised(u).dense()
    assert torch.equal(values, plain.eval().encode_normalised(u).dense())
    pre = u @ nested.w_enc.T + nested.b_enc
    torch.testing.assert_close(values, torch.where(pre > nested.threshold, pre, 0.0))


def test_the_threshold_is_saved_with_the_coder_and_a_topk_one_has_none(tmp_path: Path) -> None:
    nested, _ = twins()
    u = rows(nested)[0]
    nested.after_step(nested.encode_normalised(u))
    save_coder(nested.float(), tmp_path)
    again = load_coder(tmp_path)
    assert torch.equal(again.threshold, nested.threshold)  # type: ignore[arg-type]
    assert torch.equal(again.encode_normalised(u.float()).dense(), nested.eval().encode_normalised(u.float()).dense())
    assert "threshold" not in make(MatryoshkaConfig(latents=13, k=3)).state_dict()
    assert [make(MatryoshkaConfig(latents=13, selection=s, k=3)).selection for s in ("topk", "batchtopk")] == [  # type: ignore[arg-type]
        "row",
        "batch",
    ]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"prefixes": "random", "groups": [4, 4]}, "with prefixes: random, groups must be null"),
        ({"prefixes": "random", "n_prefixes": 9}, "n_prefixes must be between 1 and latents = 8, not 9"),
        ({"prefix_power": 0.0}, "prefix_power must be positive"),
        ({"selection": "batchtopk", "threshold_ema": 1.0}, "threshold_ema must be in"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        validate(MatryoshkaConfig, {"latents": 8, "k": 2, **settings}, "coder")
