"""When monitors look, what they leave in the run's folder, and that a resumed run reports the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sparse_pipeline.shared.interrupt import Interrupt
from sparse_pipeline.train.config import TrainConfig
from sparse_pipeline.train.loop import train
from sparse_pipeline.train.monitors.correlation import CorrelationConfig
from sparse_pipeline.train.monitors.position import PositionConfig
from sparse_pipeline.train.monitors.utilisation import UtilisationConfig
from sparse_pipeline.train.monitors.watch import Watch
from sparse_pipeline.train.penalties.decoder_orthogonality import DecoderOrthogonalityConfig
from sparse_pipeline.train.penalties.weights import AdaptiveConfig

MakeConfig = Callable[..., TrainConfig]

MONITORS = {"correlation": CorrelationConfig(), "position": PositionConfig(), "utilisation": UtilisationConfig()}
FOLLOWING = {
    "decoder_orthogonality": DecoderOrthogonalityConfig(
        schedule=AdaptiveConfig(metric="correlation/mean_max_r", target=0.0, rate=0.5, ema=0.0)
    )
}


def files(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((run / "anti_duplication_logs").iterdir())}


def test_codes_are_wanted_only_while_a_report_is_near() -> None:
    watch = Watch({}, every=10, window=4, total_steps=25, ctx=8)
    assert [step for step in range(1, 26) if watch.wants(step)] == [7, 8, 9, 10, 17, 18, 19, 20, 22, 23, 24, 25]
    assert [step for step in range(1, 26) if watch.due(step)] == [10, 20, 25]


def test_reports_are_logged_written_and_heard(config: MakeConfig) -> None:
    made = config(monitors=MONITORS, monitor_every=15, monitor_window=6, penalties=FOLLOWING)
    train([made])
    found = files(made.path)
    lines = [json.loads(line) for line in (made.path / "metrics.jsonl").read_text().splitlines()]
    reported = [line for line in lines if "correlation/pairs" in line]
    steps = [line["step"] for line in reported]
    assert steps[:4] == [15, 30, 45, 60]
    assert steps[-1] == lines[-1]["step"]
    assert set(found) == {"table.md", *(f"step_{step:08d}.json" for step in steps)}
    for line in reported:
        document = json.loads(found[f"step_{line['step']:08d}.json"])
        assert document["rows"] == 64 * document["batches"] == 64 * 6
        for name in MONITORS:
            own = {key.partition("/")[2]: value for key, value in line.items() if key.startswith(f"{name}/")}
            assert own
            assert own.items() <= document[name].items()
    assert len(found["table.md"].decode().splitlines()) == 2 + len(steps)
    weights = {line["step"]: line["decoder_orthogonality/weight"] for line in lines}
    assert weights[15] == 0.01  # nothing heard yet
    assert weights[20] > weights[15]


def test_a_monitor_changes_no_weight(config: MakeConfig, tmp_path: Path) -> None:
    plain, watched = config(runs=tmp_path / "a"), config(runs=tmp_path / "b", monitors=MONITORS, monitor_every=10)
    train([plain])
    train([watched])
    final = [run.path / "final/coder.safetensors" for run in (plain, watched)]
    assert final[0].read_bytes() == final[1].read_bytes()


def test_a_resumed_run_reports_the_same(config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"monitors": MONITORS, "monitor_every": 20, "monitor_window": 15, "penalties": FOLLOWING}
    whole, stopped = config(runs=tmp_path / "a", **settings), config(runs=tmp_path / "b", **settings)
    train([whole])
    calls = 0

    def requested(_: Interrupt) -> bool:  # stop in the middle of a window
        nonlocal calls
        calls += 1
        return calls >= 2 * 33

    with monkeypatch.context() as patch:
        patch.setattr(Interrupt, "requested", property(requested, lambda *_: None), raising=False)
        with pytest.raises(KeyboardInterrupt):
            train([stopped])
    (stopped.path / "anti_duplication_logs/step_00009999.json").write_text("{ half a report")
    train([stopped], resume=True)
    assert files(stopped.path) == files(whole.path)
    final = [run.path / "final/coder.safetensors" for run in (whole, stopped)]
    assert final[0].read_bytes() == final[1].read_bytes()


def test_a_metric_of_no_monitor_is_refused(config: MakeConfig) -> None:
    with pytest.raises(
        ValueError, match=r"'correlation/mean_max_r' is not a figure of a monitor \(monitors in these settings: none\)"
    ):
        config(penalties=FOLLOWING)
