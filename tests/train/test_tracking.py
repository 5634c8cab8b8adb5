"""What is sent to W&B, seen by a stand-in; and the real thing, offline."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

import pytest

import train.loop
from shared.runs import open_run
from train.config import TrainConfig, WandbConfig
from train.loop import train as train_runs


class FakeRun:
    def __init__(self, **settings: Any) -> None:
        self.settings = settings
        self.lines: list[tuple[int, dict[str, Any]]] = []
        self.summary: dict[str, Any] = {}
        self.finished = False

    def log(self, numbers: dict[str, Any], step: int) -> None:
        self.lines.append((step, numbers))

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[FakeRun]:
    runs: list[FakeRun] = []

    def init(**settings: Any) -> FakeRun:
        runs.append(FakeRun(**settings))
        return runs[-1]

    fake = types.ModuleType("wandb")
    fake.init = init  # type: ignore[attr-defined]
    fake.Settings = dict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return runs


def test_what_is_logged_is_what_metrics_jsonl_holds(config: Callable[..., TrainConfig], started: list[FakeRun]) -> None:
    made = config(wandb=WandbConfig(mode="offline", project="p", tags=("t",)))
    train_runs([made])
    (tracked,) = started
    lines = open_run(made.path).metrics()
    assert [step for step, _ in tracked.lines] == [line["step"] for line in lines]
    assert tracked.lines[-1][1]["fvu"] == lines[-1]["fvu"]
    assert tracked.finished
    assert tracked.summary["fvu"] == open_run(made.path).summary["fvu"]
    assert tracked.settings["mode"] == "offline"
    assert tracked.settings["project"] == "p"
    assert tracked.settings["dir"].startswith(str(made.path))


def test_a_resumed_run_is_the_same_run(config: Callable[..., TrainConfig], started: list[FakeRun]) -> None:
    made = config(wandb=WandbConfig(mode="online"))
    train_runs([made])
    (made.path / "final" / "config.json").unlink()
    train_runs([made], resume=True)
    assert started[0].settings["id"] == started[1].settings["id"]
    assert started[1].settings["resume"] == "allow"


def test_an_interrupted_run_is_closed_too(
    config: Callable[..., TrainConfig], started: list[FakeRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train.loop, "train_step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train_runs([config(wandb=WandbConfig(mode="offline"))])
    assert started[0].finished


def test_off_does_not_even_import_it(config: Callable[..., TrainConfig], started: list[FakeRun]) -> None:
    train_runs([config()])
    assert started == []


def test_offline_for_real(config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    made = config(wandb=WandbConfig(mode="offline"))
    train_runs([made])
    assert list((made.path / "wandb").rglob("*.wandb"))
