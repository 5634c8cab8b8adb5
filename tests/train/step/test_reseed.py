"""Re-seeding by hand: what a latent becomes, what merging keeps, which latents fire again; a run resumes the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from sparse_pipeline.shared.cache import Cache
from sparse_pipeline.shared.coders import Coder, build_coder
from sparse_pipeline.shared.coders.topk import TopKConfig
from sparse_pipeline.shared.runs.folder import open_run
from sparse_pipeline.train.config import ReseedConfig, TrainConfig
from sparse_pipeline.train.loop import train
from sparse_pipeline.train.penalties import Merges
from sparse_pipeline.train.penalties.tracked_pairs import TrackedPairsConfig
from sparse_pipeline.train.step.reseed import forget, merge, start_on
from tests.synthetic import make_cache

MakeConfig = Callable[..., TrainConfig]


def coder_of(latents: int = 12, k: int = 3) -> Coder:
    generator = torch.Generator().manual_seed(0)
    coder = build_coder(TopKConfig(latents=latents, k=k), 8, 8, tied=True, generator=generator)
    coder.to(torch.float64)
    with torch.no_grad():
        coder.w_enc.mul_(0.1)
    return coder


def test_a_new_latent_removes_the_error_of_its_row_and_is_silent_where_the_projection_is_small() -> None:
    coder = coder_of()
    u = torch.randn(1, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    error = u - coder.decode_normalised(coder.encode_normalised(u))
    with torch.no_grad():
        start_on(coder, torch.tensor([5]), u, error)
        codes = coder.encode_normalised(u).dense()
        assert codes[0, 5].item() == pytest.approx(error.norm().item())
        torch.testing.assert_close(coder.w_dec[5] * codes[0, 5], error[0])
        assert coder.encode_normalised(0.49 * u).dense()[0, 5] == 0
        assert coder.encode_normalised(0.6 * u).dense()[0, 5] > 0


def test_merging_keeps_the_reconstruction_of_two_proportional_latents() -> None:
    coder = coder_of(k=12)
    with torch.no_grad():
        coder.w_enc[7], coder.b_enc[7] = 0.5 * coder.w_enc[2], 0.5 * coder.b_enc[2]
        u = torch.randn(64, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        before = coder.decode_normalised(coder.encode_normalised(u))
        merge(coder, Merges(torch.tensor([2]), torch.tensor([7]), torch.tensor([0.5])))
        coder.w_enc[7] = 0
        torch.testing.assert_close(coder.decode_normalised(coder.encode_normalised(u)), before)
        assert coder.w_dec[2].norm().item() == pytest.approx(1)


def test_adam_forgets_them_and_nothing_else() -> None:
    coder = coder_of()
    optimizer = torch.optim.Adam(coder.parameters(), lr=1e-3)
    coder.decode_normalised(coder.encode_normalised(torch.randn(32, 8, dtype=torch.float64))).square().sum().backward()
    optimizer.step()
    before = {name: optimizer.state[p]["exp_avg"].clone() for name, p in coder.named_parameters()}
    forget(optimizer, coder, torch.tensor([3, 4]))
    for name, parameter in coder.named_parameters():
        after = optimizer.state[parameter]["exp_avg"]
        if name == "b_dec":
            torch.testing.assert_close(after, before[name])
            continue
        assert not after[[3, 4]].any()
        torch.testing.assert_close(after[5:], before[name][5:])


@pytest.fixture(scope="module")
def half_used(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """Rows of eight directions, one at a time: most latents of a coder of 64 have nothing to do."""
    rng = np.random.default_rng(0)
    which = rng.integers(0, 8, 160 * 16)
    acts = torch.from_numpy(np.eye(32)[which] * rng.uniform(1, 3, (len(which), 1)) + 0.01).float()
    acts += 0.05 * torch.randn(acts.shape, generator=torch.Generator().manual_seed(0))
    site = "layer_01.resid_mid"
    return make_cache(tmp_path_factory.mktemp("reseed") / "cache", 160, 16, acts={site: acts})


def settings(cache: Cache, config: MakeConfig, **more: object) -> TrainConfig:
    coder = TopKConfig(latents=64, k=2, aux_k=0, normalise="scalar")
    return config(cache=cache.path, source="layer_01.resid_mid", target=None, coder=coder, **more)


def test_dead_latents_of_a_run_fire_again(half_used: Cache, config: MakeConfig) -> None:
    plain = settings(half_used, config, name="plain", dead_after=600)
    again = settings(
        half_used, config, name="again", dead_after=600, reseed=ReseedConfig(every=2, silent=400, until=0.8)
    )
    summaries = train([plain, again])
    lines = open_run(again.path).metrics()
    assert lines[-1]["reseeded"] > 0
    assert "reseeded" not in open_run(plain.path).metrics()[-1]
    assert summaries[0].dead > summaries[1].dead


def test_a_resumed_run_reseeds_the_same(half_used: Cache, config: MakeConfig, tmp_path: Path) -> None:
    penalty = TrackedPairsConfig(start=4, period=4, window=2, min_fired=2, min_both=2, merge=0.8)
    made = [
        settings(
            half_used,
            config,
            name="run",
            runs=tmp_path / folder,
            reseed=ReseedConfig(every=2, silent=400),
            penalties={"tracked_pairs": penalty},
            checkpoint_every=7,
            keep_checkpoints=None,
            log_every=1,
        )
        for folder in ("whole", "again")
    ]
    train([made[0]])
    train([made[1]])
    run = open_run(made[1].path)
    for folder in run.checkpoints()[1:]:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    for file in (run.path / "final").iterdir():
        file.unlink()
    (run.path / "final").rmdir()
    train([made[1]], resume=True)
    names = ("final/coder.safetensors",)
    assert [(made[0].path / n).read_bytes() for n in names] == [(made[1].path / n).read_bytes() for n in names]
    whole, again = (open_run(one.path).metrics()[-1] for one in made)
    assert (whole["reseeded"], whole["merged"]) == (again["reseeded"], again["merged"])
    assert whole["reseeded"] > 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"freeze": ("w_dec",), "reseed": ReseedConfig()}, "which freeze keeps"),
        ({"penalties": {"tracked_pairs": TrackedPairsConfig(merge=0.9)}}, "set reseed"),
    ],
)
def test_what_cannot_be_reseeded_is_refused(config: MakeConfig, more: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**more)
