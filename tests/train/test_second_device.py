"""Training on a device that is not the host's: nothing is left on the host, and the numbers are those of a CPU."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch

from sparse_pipeline.shared.cache import Cache
from sparse_pipeline.shared.coders import ARCHITECTURES
from sparse_pipeline.train import evaluate as evaluation
from sparse_pipeline.train.config import RESEEDED, ReseedConfig, TrainConfig
from sparse_pipeline.train.data.config import DataConfig
from sparse_pipeline.train.data.stream import open_stream
from sparse_pipeline.train.evaluate import evaluate
from sparse_pipeline.train.monitors import MONITORS
from sparse_pipeline.train.penalties import PENALTIES
from sparse_pipeline.train.samplers import build_sampler
from sparse_pipeline.train.samples.config import SamplesConfig
from sparse_pipeline.train.step.autograd import train_step
from sparse_pipeline.train.step.begin import new_trainee
from sparse_pipeline.train.step.reseed import reseed
from tests.second_device import DEVICE, DevicesMixedError, Distant, second_device
from tests.synthetic import make_cache

SOURCE, TARGET = "layer_01.resid_mid", "layer_01.mlp_out"
STEPS = 3
OFTEN = {
    "tracked_pairs": {"period": 1, "window": 1, "start": 0, "threshold": 0.1, "min_fired": 2, "min_both": 1, "every": 1}
}
"""Settings under which three tiny steps are enough."""


def test_it_refuses_what_a_device_refuses_and_counts_what_the_host_reads() -> None:
    here = torch.randn(4, 5)
    with second_device() as second:
        there = here.to(DEVICE)
        for mixed in (lambda: there + here, lambda: there[torch.tensor([0, 1])], lambda: torch.stack([there, here])):
            with pytest.raises(DevicesMixedError, match=r"on cpu"):
                mixed()
        with pytest.raises((RuntimeError, TypeError)):
            there.numpy()
        made = torch.zeros(4, device=DEVICE) + torch.tensor([1.0, 2, 3, 4], device=DEVICE) * 2
        assert isinstance(made, Distant)
        assert not second.reads
        assert made.cpu().tolist() == [2, 4, 6, 8]
        assert float(there.sum()) == pytest.approx(float(here.sum()))
        assert len(there[there > 0]) == int((here > 0).sum())
        assert second.reads == {"aten::_to_copy": 1, "aten::_local_scalar_dense": 1, "aten::index": 1}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    folder = tmp_path_factory.mktemp("second") / "c"
    return make_cache(folder, n_seq=8, ctx=8, shard_rows=32, sites={SOURCE: 8, TARGET: 12})


def config(cache: Cache, architecture: str, **settings: Any) -> TrainConfig:
    kind = ARCHITECTURES[architecture].config_class
    sizes = {"latents": 8, "k": 2, "groups": (3, 5), "aux_k": 2}
    own = {name: value for name, value in sizes.items() if name in {field.name for field in fields(kind)}}
    return TrainConfig(
        cache=cache.path,
        source=SOURCE,
        target=TARGET,
        coder=kind(**own),
        data=DataConfig(batch_size=5, tokens=5 * STEPS, heldout=0.0),
        dead_after=8,
        min_steps=1,
        **settings,
    )


def trained(made: TrainConfig, cache: Cache, device: torch.device) -> list[Any]:
    """Everything that a run does at its steps, and what it finds."""
    trainee = new_trainee(made, cache, STEPS, cache.n_rows, device)
    for group in trainee.optimizer.param_groups:
        group.update(fused=False, foreach=True)  # fused Adam knows its devices by name
    found: list[Any] = []
    with open_stream(cache, [SOURCE, TARGET], made.data, build_sampler(made.sampler), device=device) as stream:
        for rows in stream:
            result = train_step(trainee, rows, measure=trainee.step == 1)
            reseed(trainee, rows)
            found += [float(result.terms.total.detach()), *result.measures.values()]
            if trainee.watch is not None and trainee.samples is not None:
                trainee.watch.observe(result.codes(), rows.position)
                trainee.samples.collect(trainee.step, result.codes(), rows)
    if trainee.watch is not None and trainee.samples is not None:
        found += trainee.watch.report(STEPS, trainee.coder).figures.values()
        found += trainee.samples.kept().value.ravel().tolist()
    found += trainee.objective.metrics().values()
    final = trainee.averaged() or trainee.coder
    (figures,) = evaluate([(final, SOURCE, TARGET)], cache, np.arange(30), device)
    return found + list(figures.to_dict().values())


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_every_coder_with_monitors_samples_and_an_average(architecture: str, tiny: Cache) -> None:
    others = {"reseed": ReseedConfig(every=2, silent=6)} if architecture in RESEEDED else {}
    made = config(
        tiny,
        architecture,
        monitors={name: kind.config_class() for name, kind in MONITORS.items()},
        samples=SamplesConfig(every=1, save_latents=None, save_per_latent=None),
        ema=0.9,
        **others,
    )
    assert_alike(made, tiny)


@pytest.mark.parametrize("name", list(PENALTIES))
def test_every_penalty(name: str, tiny: Cache) -> None:
    penalty = PENALTIES[name].config_class(**OFTEN.get(name, {}))
    assert_alike(config(tiny, "matryoshka", penalties={name: penalty}), tiny)


def assert_alike(made: TrainConfig, cache: Cache) -> None:
    with second_device():
        found = trained(made, cache, DEVICE)
    expected = trained(made, cache, torch.device("cpu"))
    assert len(found) == len(expected) > STEPS
    for mine, theirs in zip(found, expected, strict=True):
        assert mine == (theirs if theirs is None else pytest.approx(theirs, rel=1e-3, abs=1e-6))


def test_an_evaluation_reads_from_the_device_at_its_end(tiny: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    coder = new_trainee(config(tiny, "matryoshka"), tiny, STEPS, tiny.n_rows, torch.device("cpu")).coder
    rows, reads = np.arange(60), []
    (expected,) = evaluate([(coder, SOURCE, TARGET)], tiny, rows)
    for at_once in (60, 7):
        monkeypatch.setattr(evaluation, "ROWS_AT_ONCE", at_once)
        with second_device() as second:
            there = new_trainee(config(tiny, "matryoshka"), tiny, STEPS, tiny.n_rows, DEVICE).coder
            second.reads.clear()
            (found,) = evaluate([(there, SOURCE, TARGET)], tiny, rows, DEVICE)
        reads.append(second.reads)
        for name, value in found.to_dict().items():
            assert value == pytest.approx(getattr(expected, name), rel=1e-6), name
    assert reads[0] == reads[1]
    assert 0 < sum(reads[0].values()) < 20
