"""Two processes that train one coder: what one process trains, whichever of them writes, stops, dies or resumes.

The test's process is the first of the two, and makes the same calls of `train` as the other one (peer.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sparse_pipeline.shared.cache import Cache
from sparse_pipeline.shared.coders.batchtopk import BatchTopKConfig
from sparse_pipeline.shared.coders.matryoshka import MatryoshkaConfig
from sparse_pipeline.shared.coders.relu import ReLUConfig
from sparse_pipeline.shared.coders.topk import TopKConfig
from sparse_pipeline.shared.config.settings import to_dict
from sparse_pipeline.shared.errors import LostContactError, UsageError
from sparse_pipeline.shared.ranks import MEETING, Rank
from sparse_pipeline.shared.runs.folder import open_run
from sparse_pipeline.train import loop
from sparse_pipeline.train.config import ReseedConfig, TrainConfig
from sparse_pipeline.train.data.config import DataConfig
from sparse_pipeline.train.loop import plan, train
from sparse_pipeline.train.monitors.utilisation import UtilisationConfig
from sparse_pipeline.train.parallel.latents import drawn_rows
from sparse_pipeline.train.parallel.peers import meet
from sparse_pipeline.train.penalties.decoder_orthogonality import DecoderOrthogonalityConfig
from sparse_pipeline.train.step.autograd import train_step
from sparse_pipeline.train.step.trainee import Trainee
from tests.train.conftest import SOURCE, TARGET, train_until_power_cut

ROOT = Path(__file__).resolve().parents[3]
STEPS = 12
KINDS = ("data", "latents")
CODERS: dict[str, dict[str, Any]] = {
    "transcoder": {"coder": TopKConfig(latents=64, k=4, skip=True)},
    "sae": {"coder": TopKConfig(latents=64, k=4, subtract_decoder_bias=True), "target": None},
    "batchtopk": {"coder": BatchTopKConfig(latents=64, k=4)},
    "matryoshka": {
        "coder": MatryoshkaConfig(latents=64, k=4, prefixes="random", n_prefixes=4, aux_k=8),
        "target": None,
    },
    "matryoshka-batchtopk": {"coder": MatryoshkaConfig(latents=64, k=4, selection="batchtopk", decoder_norm="free")},
    "crosscoder": {"coder": BatchTopKConfig(latents=64, k=4), "source": (SOURCE, TARGET), "target": None},
}
"""Batches of 63 rows, so that the parts differ; latents count as dead soon, so that AuxK takes part."""


@pytest.fixture(scope="module")
def make(cache: Cache) -> Callable[..., TrainConfig]:
    def config(runs: Path, **changes: Any) -> TrainConfig:
        settings: dict[str, Any] = {
            "cache": cache.path,
            "source": SOURCE,
            "target": TARGET,
            "runs": runs,
            "coder": TopKConfig(latents=64, k=4),
            "min_steps": 10,
            "log_every": 5,
            "checkpoint_every": 8,
            "dead_after": 100,
            "data": DataConfig(batch_size=63, tokens=63 * STEPS),
        }
        return TrainConfig(**{**settings, **changes})

    return config


Call = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parallel")


@pytest.fixture(scope="module")
def trained(folder: Path, make: Callable[..., TrainConfig]) -> dict[str, Any]:
    """Everything that two processes do in this file, beside what one process does."""
    cases = {f"{kind}-{name}": {**case, "parallel": kind} for kind in KINDS for name, case in CODERS.items()}
    cases["data-sae"] |= {
        "monitors": {"utilisation": UtilisationConfig()},
        "ema": 0.9,
        "monitor_every": 10,
        "monitor_window": 5,
    }
    alone = {**CODERS, "sae": {**cases["data-sae"], "parallel": None}}
    one = [make(folder / "one", name=name, **case) for name, case in alone.items()]
    two = [make(folder / "two", name=name, **case) for name, case in cases.items()]
    train(one)
    begun = [make(folder / "begun", name=name, **cases[name]) for name in ("data-batchtopk", "latents-batchtopk")]
    with pytest.MonkeyPatch.context() as patch:
        train_until_power_cut(begun, 11 * len(begun), patch)
    stopped = [replace(begun[0], runs=folder / "stopped")]
    dying = [replace(begun[1], runs=folder / "dying")]
    other = [replace(config, data=replace(config.data, pool_rows=256)) for config in dying]
    calls = [
        {"runs": two, "resume": False, "dies": None},
        {"runs": begun, "resume": True, "dies": None},
        {"runs": stopped, "resume": False, "dies": None},
        {"runs": other, "resume": False, "dies": None},
        {"runs": dying, "resume": False, "dies": 11},
    ]
    outcome: dict[str, Any] = {"begun": begun, "stopped": stopped, "dying": dying}
    with peer(folder, calls), meet(Rank(0, 2), torch.device("cpu"), {MEETING: str(folder / "meeting")}) as peers:
        outcome["summaries"] = train(two, peers=peers)
        train(begun, resume=True, peers=peers)
        with stopped_at(5), pytest.raises(KeyboardInterrupt) as stop:
            train(stopped, peers=peers)
        with pytest.raises(UsageError) as different:
            train(dying, peers=peers)
        with pytest.raises(LostContactError) as lost:
            train(dying, peers=peers)
    return outcome | {"stop": stop.value, "different": different.value, "lost": lost.value}


@contextlib.contextmanager
def stopped_at(step: int) -> Iterator[None]:
    """This process is told to stop while it does this step."""

    def stopping(trainee: Trainee, *args: Any, **kwargs: Any) -> Any:
        if trainee.step + 1 == step:
            signal.raise_signal(signal.SIGTERM)
        return train_step(trainee, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train_step", stopping)
        yield


class peer:  # noqa: N801
    """The other process, which makes these calls."""

    def __init__(self, folder: Path, calls: list[Call]) -> None:
        document = [call | {"runs": [to_dict(config) for config in call["runs"]]} for call in calls]
        (folder / "calls.json").write_text(json.dumps(document), encoding="utf-8")
        words = ["-m", "tests.train.parallel.peer", "1", "2", str(folder / "meeting"), str(folder / "calls.json")]
        self.process = subprocess.Popen([sys.executable, *words], cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"})

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        try:
            self.process.wait(20)
        finally:
            self.process.kill()


def weights(run: Path) -> dict[str, Tensor]:
    return load_file(run / "final/coder.safetensors")


def assert_alike(run: Path, other: Path) -> None:
    """Weights of two finished runs agree within float32, compared with how far training has moved them."""
    one, two = weights(run), weights(other)
    assert one.keys() == two.keys()
    for name, expected in one.items():
        torch.testing.assert_close(
            two[name], expected, rtol=1e-4, atol=5e-6, msg=lambda text, name=name: f"{name}: {text}"
        )
    assert float(one["w_enc"].norm(dim=1).sub(0.4).abs().max()) > 1e-2  # they have moved


def figures(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics without the clock's."""
    clock = ("tokens_per_second", "wait_share")
    return [{key: value for key, value in line.items() if key not in clock} for line in open_run(run).metrics()]


@pytest.mark.parametrize("name", CODERS)
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_what_one_trains(trained: dict[str, Any], folder: Path, kind: str, name: str) -> None:
    """Weights, every logged figure and the summary, for an architecture and a kind."""
    one, two = folder / "one" / name, folder / "two" / f"{kind}-{name}"
    assert_alike(one, two)
    lines, others = figures(one), figures(two)
    assert len(lines) == len(others) == 4
    assert any(line.get("aux", 0) > 0 for line in lines)
    for line, other in zip(lines, others, strict=True):
        assert {"step", "loss", "reconstruction", "fvu", "l0", "active", "dead", "grad_norm"} <= other.keys()
        assert other == pytest.approx({key: line[key] for key in other}, rel=2e-4, abs=1e-6)
    summary, other_summary = open_run(one).summary, open_run(two).summary
    for key in ("steps", "tokens", "dead", "evaluated_on"):
        assert other_summary[key] == summary[key]
    for key in ("fvu", "fvu_with_bos", "fvu_dims", "l0", "fvu_untrained"):
        assert other_summary[key] == pytest.approx(summary[key], rel=1e-4)


def test_every_process_sees_the_summaries_of_the_first(trained: dict[str, Any]) -> None:
    assert [one.steps for one in trained["summaries"]] == [STEPS] * len(trained["summaries"])


def test_monitors_and_averaged_weights_are_those_of_one_process(trained: dict[str, Any], folder: Path) -> None:
    one, two = folder / "one/sae", folder / "two/data-sae"
    torch.testing.assert_close(
        load_file(two / "final/ema/coder.safetensors"),
        load_file(one / "final/ema/coder.safetensors"),
        rtol=1e-4,
        atol=5e-6,
    )
    found, expected = (
        json.loads((run / "anti_duplication_logs/step_00000010.json").read_bytes()) for run in (two, one)
    )
    assert found["rows"] == expected["rows"] == 5 * 63
    for figure in ("active", "share", "effective", "firing_rate"):
        assert found["utilisation"][figure] == pytest.approx(expected["utilisation"][figure], rel=1e-3)


def test_a_run_of_one_process_goes_on_with_two(trained: dict[str, Any], folder: Path) -> None:
    for config in trained["begun"]:
        assert_alike(folder / "one/batchtopk", config.path)


def test_all_stop_after_the_same_step_and_one_process_goes_on(trained: dict[str, Any], folder: Path) -> None:
    """Only one of the two was told to stop."""
    assert "saved at step 5 of 12" in str(trained["stop"])
    train(trained["stopped"], resume=True)
    for config in trained["stopped"]:
        assert_alike(folder / "one/batchtopk", config.path)


def test_a_death_ends_all_and_the_last_checkpoint_goes_on(trained: dict[str, Any], folder: Path) -> None:
    assert "process 0 of 2 lost contact with another process" in trained["lost"].message
    assert "--resume" in trained["lost"].hint
    for config in trained["dying"]:
        assert [path.name for path in open_run(config.path, allow_incomplete=True).checkpoints()] == ["step_00000008"]
    train(trained["dying"], resume=True)
    for config in trained["dying"]:
        assert_alike(folder / "one/batchtopk", config.path)


def test_processes_that_would_read_different_batches_are_refused(trained: dict[str, Any]) -> None:
    assert trained["different"].message.startswith("what this run reads differs between process 0 and process 1: ")
    assert "window_rows: 2560 and 256" in trained["different"].message
    assert "train.data.pool_rows" in trained["different"].hint


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"monitors": {"utilisation": UtilisationConfig()}, "parallel": "latents"}, "monitors (utilisation)"),
        ({"ema": 0.9, "parallel": "latents"}, "train.ema"),
        ({"coder": TopKConfig(latents=2, k=2), "parallel": "latents"}, "2 latents"),
        ({"penalties": {"decoder_orthogonality": DecoderOrthogonalityConfig()}}, "penalties (decoder_orthogonality)"),
        ({"coder": ReLUConfig(latents=64)}, "relu: "),
        ({"reseed": ReseedConfig()}, "with reseed"),
        ({"data": DataConfig(batch_size=2, tokens=100)}, "batches of 2 rows"),
    ],
)
def test_what_is_not_shared_out_is_refused_by_name(
    make: Callable[..., TrainConfig], tmp_path: Path, changes: dict[str, Any], found: str
) -> None:
    config = make(tmp_path, **{"parallel": "data", **changes})
    with pytest.raises(UsageError) as refused:
        plan([config], processes=3)
    assert found in refused.value.message
    assert "train with one process" in (refused.value.hint or "")
    assert plan([config]).groups  # one process trains it


def test_a_plan_counts_what_each_process_takes(make: Callable[..., TrainConfig], tmp_path: Path) -> None:
    """data: of a batch its rows, and the whole coder. latents: all rows, and half of the coder."""
    config = make(tmp_path, parallel="data")
    one, two = (plan([config], processes=n).groups[0] for n in (1, 2))
    assert two.bytes["coders and Adam"] == one.bytes["coders and Adam"]
    assert two.bytes["batches"] == pytest.approx(one.bytes["batches"] * 32 / 63)
    sliced = plan([replace(config, parallel="latents")], processes=2).groups[0]
    assert sliced.bytes["coders and Adam"] == 4 * 4 * (32 * (32 + 32 + 1) + 32)
    assert sliced.bytes["batches"] == 4 * 63 * (32 + 2 * 64)
    assert "for each of 2 processes" in str(plan([config], processes=2))
    assert plan([replace(config, parallel=None)], processes=2).groups[0].processes == 1


def test_processes_need_a_place_to_meet() -> None:
    with pytest.raises(UsageError, match="MASTER_ADDR"), meet(Rank(0, 2), torch.device("cpu"), {}):
        pass


def test_each_process_draws_its_rows_of_the_same_weights() -> None:
    """The first weights of a slice are those of the whole coder, whatever is drawn at a time."""
    whole = torch.randn(100, 7, generator=torch.Generator().manual_seed(3))
    for first, last in ((0, 33), (33, 64), (64, 100)):
        generator = torch.Generator().manual_seed(3)
        assert torch.equal(drawn_rows(100, 7, slice(first, last), generator, chunk_rows=16), whole[first:last])
