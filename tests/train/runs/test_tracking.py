"""What is sent to W&B, seen by a stand-in; and the real thing, offline."""

from __future__ import annotations

import json
import shutil
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import sparse_pipeline
from sparse_pipeline.shared.runs.folder import open_run
from sparse_pipeline.shared.runs.samples import load_samples
from sparse_pipeline.train.config import TrainConfig, WandbConfig
from sparse_pipeline.train.loop import train as train_runs
from sparse_pipeline.train.monitors.correlation import CorrelationConfig
from sparse_pipeline.train.monitors.position import PositionConfig
from sparse_pipeline.train.monitors.utilisation import UtilisationConfig
from sparse_pipeline.train.penalties.decoder_orthogonality import DecoderOrthogonalityConfig
from sparse_pipeline.train.penalties.ortsae import OrtSAEConfig
from sparse_pipeline.train.samples.config import SamplesConfig


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
    fake.Histogram = lambda np_histogram: ("histogram", *np_histogram)  # type: ignore[attr-defined]
    fake.Table = lambda columns, data: ("table", columns, data)  # type: ignore[attr-defined]
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


WATCHED = {
    "monitors": {"correlation": CorrelationConfig(min_fired=2, min_both=1), "position": PositionConfig(bins=4)}
    | {"utilisation": UtilisationConfig()},
    "monitor_every": 30,
    "monitor_window": 2,
    "penalties": {"decoder_orthogonality": DecoderOrthogonalityConfig(), "ortsae": OrtSAEConfig()},
    "samples": SamplesConfig(every=25, save_latents=6, save_per_latent=4),
}


def test_histograms_samples_penalties_and_utilisation(
    config: Callable[..., TrainConfig], started: list[FakeRun]
) -> None:
    made = config(wandb=WandbConfig(mode="offline"), **WATCHED)
    (summary,) = train_runs([made])
    (tracked,) = started
    logged: dict[int, dict[str, Any]] = {}
    for step, numbers in tracked.lines:
        logged.setdefault(step, {}).update(numbers)
    assert {"decoder_orthogonality", "decoder_orthogonality/weight", "ortsae", "ortsae/weight"} <= logged[30].keys()
    assert {"utilisation/active", "utilisation/dead", "utilisation/effective"} <= logged[30].keys()
    for step in (30, 60, summary.steps):
        report = json.loads((made.path / f"anti_duplication_logs/step_{step:08d}.json").read_bytes())
        kind, counts, edges = logged[step]["histogram/position/rows"]
        assert (kind, counts) == ("histogram", report["position"]["rows"])
        assert sum(counts) == 2 * 64
        assert edges == [0, 1, 4.75, 8.5, 12.25, 16]  # ctx 16: position 0, then four equal bins
        _, activation, _ = logged[step]["histogram/position/activation"]
        assert activation == pytest.approx(report["position"]["activation"], abs=1e-3)
        _, counts, edges = logged[step]["histogram/correlation/r"]
        assert counts == report["correlation"]["histogram"]["counts"]
        assert (edges[0], edges[-1], len(edges)) == (-1.0, 1.0, len(counts) + 1)
    assert not any(name.startswith("histogram/") for name in logged[40])
    (kind, columns, rows), samples = logged[summary.steps]["samples"], load_samples(made.path)
    assert (kind, columns) == ("table", ["latent", "specialised", "value", "text", "position", "document", "step"])
    expected = [
        [latent.latent, latent.specialised, s.value, s.text, s.position, s.doc_id, s.step]
        for latent in samples.latents
        for s in latent.samples
    ]
    assert rows == expected
    assert "«" in rows[0][3]
    assert {step for step, line in logged.items() if "samples" in line} == {20, 40, 60, summary.steps}  # checkpoints


def test_a_run_trained_anew_is_another_one(config: Callable[..., TrainConfig], started: list[FakeRun]) -> None:
    made = config(wandb=WandbConfig(mode="offline"))
    train_runs([made])
    shutil.rmtree(made.path)
    train_runs([made])
    assert started[0].settings["id"] != started[1].settings["id"]


@pytest.mark.parametrize(
    ("environment", "netrc", "expected"),
    [
        ({}, None, "offline"),
        ({"WANDB_API_KEY": "x"}, None, "online"),
        ({}, "machine api.wandb.ai login user password x", "online"),
        ({}, "machine example.org login user password x", "offline"),
        ({"WANDB_BASE_URL": "https://example.org:8080"}, "machine example.org login user password x", "online"),
        ({}, "no netrc at all", "offline"),
    ],
)
def test_auto_is_offline_where_there_is_no_key(
    environment: dict[str, str],
    netrc: str | None,
    expected: str,
    config: Callable[..., TrainConfig],
    started: list[FakeRun],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    if netrc is not None:
        (tmp_path / "netrc").write_text(netrc + "\n")
    train_runs([config(wandb=WandbConfig(mode="auto"), data={"tokens": 700})])
    assert started[0].settings["mode"] == expected
    assert started[0].settings["resume"] == ("allow" if expected == "online" else None)


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

    monkeypatch.setattr(sparse_pipeline.train.loop, "train_step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train_runs([config(wandb=WandbConfig(mode="offline"))])
    assert started[0].finished


def test_off_does_not_even_import_it(config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # an import would fail
    made = config(**WATCHED)
    (summary,) = train_runs([made])
    assert load_samples(made.path).step == summary.steps
    assert not (made.path / "wandb").exists()


def records(path: Path) -> Iterator[Any]:
    """What wandb wrote: a LevelDB log of protocol buffers (blocks of 32 KiB; crc, length, kind before each piece)."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        if at + 7 + length > len(data):
            return  # still being written
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or its last piece
            yield Record.FromString(whole)
            whole = b""


def told(file: Path) -> tuple[set[str], dict[int, dict[str, Any]]]:
    """(ids of runs, step → what was logged) of W&B's file."""
    ids: set[str] = set()
    history: dict[int, dict[str, Any]] = {}
    for record in records(file):
        ids |= {record.run.run_id} if record.HasField("run") else set()
        items = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        if items:
            history.setdefault(items["_step"], {}).update(items)
    return ids, history


def test_offline_for_real(config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    made = config(wandb=WandbConfig(mode="offline"), **WATCHED)
    train_runs([made])
    (file,) = (made.path / "wandb").rglob("*.wandb")
    ids, history = told(file)
    assert ids == {(made.path / "wandb/run_id").read_text().strip()}
    lines = {line["step"]: line for line in open_run(made.path).metrics()}
    for _ in range(100):  # W&B's own process writes the file, and on a busy machine its last record comes late
        if lines.keys() <= history.keys():
            break
        time.sleep(0.1)
        ids, history = told(file)
    assert lines.keys() <= history.keys()
    for step, line in lines.items():
        for name, value in line.items():
            assert value is None or history[step][name] == pytest.approx(value), name
    report = json.loads((made.path / "anti_duplication_logs/step_00000030.json").read_bytes())
    assert history[30]["histogram/position/rows/values"] == report["position"]["rows"]
    last = max(lines)
    found = load_samples(made.path)
    assert history[last]["samples/_type"] == "table-file"
    assert history[last]["samples/nrows"] == sum(len(latent.samples) for latent in found.latents)
    (written,) = file.parent.glob(f"files/{history[last]['samples/path']}")
    assert json.loads(written.read_text())["data"][0][3] == found.latents[0].samples[0].text
