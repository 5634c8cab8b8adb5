"""Checkpoints written beside training: the bits of their own step, in order, and no failure that is lost."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from sparse_pipeline.shared.console import Console
from sparse_pipeline.shared.errors import PipelineError
from sparse_pipeline.shared.runs import folder
from sparse_pipeline.shared.runs.folder import open_run
from sparse_pipeline.shared.runs.records import FileRecords, records_of
from sparse_pipeline.shared.runs.tensors import safetensors_parts
from sparse_pipeline.shared.runs.verify import verify_run
from sparse_pipeline.train import loop
from sparse_pipeline.train.config import TrainConfig
from sparse_pipeline.train.loop import train
from sparse_pipeline.train.monitors.utilisation import UtilisationConfig
from tests.train.conftest import MATRYOSHKA, TOPK, train_until_power_cut

MakeConfig = Callable[..., TrainConfig]


def test_the_bytes_are_those_of_the_safetensors_library() -> None:
    dtypes = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    dtypes += (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    values = torch.arange(24.0).reshape(4, 6)
    tensors = {f"{'zya'[i % 3]}.{dtype}": values.to(dtype) for i, dtype in enumerate(dtypes)}
    tensors |= {"step": torch.tensor(3.0), "none": torch.zeros(0, 3), "ü": values.T, "row": values[1]}
    expected = save({name: value.contiguous().clone() for name, value in tensors.items()})
    assert b"".join(bytes(part) for part in safetensors_parts(tensors)) == expected


def test_records_follow_every_change_of_a_run_s_files(tmp_path: Path) -> None:
    """Against records that read everything anew."""
    log, table = tmp_path / "metrics.jsonl", tmp_path / "anti_duplication_logs/table.md"
    table.parent.mkdir()
    log.write_bytes(b'{"step": 1}\n')
    table.write_bytes(b"one")
    files = FileRecords(tmp_path)
    assert files.now() == records_of(tmp_path) != {}
    with log.open("ab") as file:
        file.write(b'{"step": 2}\n' * 1000)
    assert files.now() == records_of(tmp_path)
    other = tmp_path / "new"
    other.write_bytes(b"two")  # of the same size
    other.replace(table)
    assert files.now() == records_of(tmp_path)
    (tmp_path / "note.json").write_bytes(b"{}")
    assert files.now() == records_of(tmp_path)
    (tmp_path / "note.json").unlink()
    other.write_bytes(b'{"step": 1}\n')  # the log goes back
    other.replace(log)
    assert files.now() == records_of(tmp_path)
    assert set(files.now()) == {"metrics.jsonl", "anti_duplication_logs/table.md"}


def test_training_goes_on_while_a_checkpoint_is_written(config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first write ends only after ten more steps; what it writes is of its own step all the same."""
    made = config(name="beside", keep_checkpoints=None, monitors={"utilisation": UtilisationConfig()}, monitor_every=5)
    plain = replace(made, name="plain")
    train([plain])
    steps, went_on = [0], threading.Event()
    write, step = folder.write_hashed, loop.train_step

    def held(path: Path, parts: Any) -> str:
        assert went_on.wait(60), "the step waits for the file"
        return write(path, parts)

    def counted(*arguments: Any, **named: Any) -> Any:
        steps[0] += 1
        if steps[0] == 30:  # ten after the first checkpoint
            went_on.set()
        return step(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(folder, "write_hashed", held)
        patch.setattr(loop, "train_step", counted)
        train([made])
    theirs, ours = open_run(plain.path), open_run(made.path)
    assert [one.name for one in ours.checkpoints()] == [one.name for one in theirs.checkpoints()]
    assert len(ours.checkpoints()) == 4
    for name in (one.name for one in ours.checkpoints()):
        for file in ("coder.safetensors", "optimizer.safetensors"):
            assert (ours.path / "checkpoints" / name / file).read_bytes() == (
                theirs.path / "checkpoints" / name / file
            ).read_bytes()
    first = ours.load_checkpoint(ours.checkpoints()[0])
    assert first is not None
    n_bytes = first.files["metrics.jsonl"]["bytes"]
    logged = (ours.path / "metrics.jsonl").read_bytes()[:n_bytes].splitlines()
    assert len(logged) == 5  # of steps 1, 5, 10, 15 and 20, though later ones were logged before it was written


@pytest.mark.parametrize("call", [3, 7], ids=["in the middle", "the last one"])
def test_a_write_that_fails_ends_the_run(config: MakeConfig, monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    made, whole = config(coder=MATRYOSHKA), config(coder=MATRYOSHKA, name="whole")
    train([whole])
    calls, write = iter(range(1, 99)), folder.write_hashed

    def failing(path: Path, parts: Any) -> str:
        if next(calls) == call:
            raise PipelineError("the disk is full", "free some space")
        return write(path, parts)

    with monkeypatch.context() as patch:
        patch.setattr(folder, "write_hashed", failing)
        with pytest.raises(PipelineError, match="the disk is full"):
            train([made])
    run = open_run(made.path, allow_incomplete=True)
    assert not run.complete
    assert [one.name for one in run.checkpoints()] == {3: ["step_00000020"], 7: ["step_00000040", "step_00000060"]}[
        call
    ]
    train([made], resume=True)
    name = "final/coder.safetensors"
    assert (made.path / name).read_bytes() == (whole.path / name).read_bytes()


def test_where_one_run_s_write_fails_the_others_are_saved(config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    bad, good = config(name="bad"), config(name="good", coder=MATRYOSHKA)
    write = folder.write_hashed

    def failing(path: Path, parts: Any) -> str:
        if "bad" in path.parts:
            raise PipelineError("the disk is full", "free some space")
        return write(path, parts)

    monkeypatch.setattr(folder, "write_hashed", failing)
    with pytest.raises(PipelineError, match="the disk is full"):
        train([bad, good])
    assert open_run(bad.path, allow_incomplete=True).checkpoints() == []
    run = open_run(good.path, allow_incomplete=True)
    last = run.load_checkpoint()
    assert last is not None
    assert last.step >= max(line["step"] for line in run.metrics())


def test_a_failed_write_is_shown_where_something_else_ends_the_training(
    config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, reached, failed = config(), threading.Event(), threading.Event()
    step, count = loop.train_step, iter(range(1, 99))

    def failing(path: Path, parts: Any) -> str:
        assert reached.wait(60)
        failed.set()
        raise PipelineError("the disk is full", "free some space")

    def dying(*arguments: Any, **named: Any) -> Any:
        if next(count) == 21:
            reached.set()
            raise RuntimeError("something else")
        return step(*arguments, **named)

    monkeypatch.setattr(folder, "write_hashed", failing)
    monkeypatch.setattr(loop, "train_step", dying)
    said = io.StringIO()
    with pytest.raises(RuntimeError, match="something else"):
        train([made], Console(stream=said))
    assert failed.is_set()
    assert "a checkpoint was not written: the disk is full" in said.getvalue()


def test_which_steps_are_saved(config: MakeConfig) -> None:
    """By steps; with minutes that do not pass only what must be; a step that has a report always."""

    def saved(**settings: Any) -> list[int]:
        made = config(keep_checkpoints=None, **settings)
        train([made])
        return [int(one.name.removeprefix("step_")) for one in open_run(made.path).checkpoints()]

    assert saved(name="steps", checkpoint_every=25) == [25, 50, 75]
    assert saved(name="both", checkpoint_every=25, checkpoint_minutes=0) == [25, 50, 75]
    assert saved(name="minutes", checkpoint_every=25, checkpoint_minutes=1e6) == [75]
    assert saved(name="reports", checkpoint_every=10, checkpoint_minutes=1e6, report_every=3) == [30, 60, 75]
    assert saved(name="default", checkpoint_every=None) == [75]


def test_minutes_between_checkpoints() -> None:
    made = TrainConfig(coder=TOPK)
    assert (made.checkpoint_steps, made.minutes_between_checkpoints("cpu")) == (500, 0)
    assert made.minutes_between_checkpoints("cuda") == 5
    assert replace(made, checkpoint_every=100).minutes_between_checkpoints("cuda") == 0
    assert replace(made, checkpoint_every=100, checkpoint_minutes=2).minutes_between_checkpoints("cpu") == 2
    for wrong in ({"checkpoint_every": 0}, {"checkpoint_minutes": -1}, {"checkpoint_minutes": float("nan")}):
        with pytest.raises(ValueError, match="checkpoint_"):
            replace(made, **wrong)


def test_logs_of_later_steps_do_not_stop_a_run_from_resuming(
    config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tables and pages are replaced between checkpoints, and a power cut may come at any time."""
    made = config(monitors={"utilisation": UtilisationConfig()}, monitor_every=5, report_every=1)
    train_until_power_cut([made], 37, monkeypatch)
    assert list((made.path / "anti_duplication_logs").glob("step_00000035.json"))
    page = made.path / "progress/index.html"
    report = page.with_name("step_00000040.json")
    report.write_bytes(page.with_name("step_00000020.json").read_bytes())  # as if killed while it was written
    page.write_bytes(b"of a later step")
    assert verify_run(made.path).ok
    train([made], resume=True)
    assert open_run(made.path).complete
    assert verify_run(made.path).ok
    assert json.loads(report.read_bytes())["step"] == 40
    rows = page.read_text(encoding="utf-8").count("<tr")
    page.write_text(page.read_text(encoding="utf-8") + " ", encoding="utf-8")
    assert rows > 4
    assert not verify_run(made.path).ok, "a finished run vouches for them"
