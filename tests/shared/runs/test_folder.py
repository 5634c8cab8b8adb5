from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sparse_pipeline.shared.coders import build_coder
from sparse_pipeline.shared.coders.topk import TopKConfig
from sparse_pipeline.shared.config.settings import load_yaml
from sparse_pipeline.shared.errors import DataError, PipelineError, UsageError
from sparse_pipeline.shared.runs import folder
from sparse_pipeline.shared.runs.folder import Run, create_run, open_run
from tests.sealed import reseal

CONFIG = {"seed": 1, "optimizer": {"lr": 3e-4}, "target": None}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return create_run(tmp_path / "runs", "one", CONFIG, {"python": "3.11"})


def checkpoint(run: Run, step: int, keep: int | None = None) -> Path:
    coder = {"w_enc": torch.full((2, 3), float(step)), "since_fired": torch.tensor([1, step])}
    return run.save_checkpoint(step, coder, {"rng": torch.arange(4, dtype=torch.uint8)}, {"tokens": step * 10}, keep)


def test_a_new_run_holds_its_settings(run: Run, tmp_path: Path) -> None:
    assert run.path == tmp_path / "runs" / "one"
    assert run.name == "one"
    assert load_yaml(run.path / "config.yaml") == CONFIG
    again = open_run(run.path, allow_incomplete=True)
    assert again.config == CONFIG
    assert again.provenance == {"python": "3.11"}
    assert not again.complete


def test_a_name_that_exists_or_cannot_be_a_folder_is_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="already exists"):
        create_run(tmp_path / "runs", "one", CONFIG, {})
    for name in ("a/b", "..", "", ".hidden"):
        with pytest.raises(UsageError, match="cannot name a run"):
            create_run(tmp_path / "runs", name, CONFIG, {})


def test_opening_what_is_no_run_or_not_finished(run: Run, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a run"):
        open_run(tmp_path)
    with pytest.raises(DataError, match="no checkpoint yet"):
        open_run(run.path)
    checkpoint(run, 7)
    with pytest.raises(DataError, match="last checkpoint is step_00000007"):
        open_run(run.path)


def test_metrics_come_back_without_a_torn_last_line(run: Run) -> None:
    assert run.metrics() == []
    for step in (1, 2, 3):
        run.log({"step": step, "loss": 0.1 * step, "fvu": None})
        if step == 2:
            checkpoint(run, 2)
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    assert [line["step"] for line in run.metrics()] == [1, 2, 3]
    run.rewind_metrics(run.load_checkpoint())
    run.log({"step": 3})
    assert [line["step"] for line in run.metrics()] == [1, 2, 3]
    with pytest.raises(ValueError):
        run.log({"loss": float("nan")})
    with (run.path / "metrics.jsonl").open("ab") as file:
        file.write(b"\xb0\n")  # damage after the checkpoint
    run.rewind_metrics(run.load_checkpoint())
    assert [line["step"] for line in run.metrics()] == [1, 2]
    (run.path / "metrics.jsonl").write_text("{]\n")
    with pytest.raises(DataError, match="not JSON lines"):
        run.metrics()


def test_a_checkpoint_comes_back_with_its_bits(run: Run) -> None:
    assert run.load_checkpoint() is None
    checkpoint(run, 5)
    checkpoint(run, 10)
    loaded = run.load_checkpoint()
    assert loaded is not None
    assert (loaded.step, loaded.state) == (10, {"tokens": 100})
    assert torch.equal(loaded.coder["w_enc"], torch.full((2, 3), 10.0))
    assert loaded.coder["since_fired"].dtype == torch.int64
    assert loaded.optimizer["rng"].tolist() == [0, 1, 2, 3]
    first = run.load_checkpoint(run.checkpoints()[0])
    assert first is not None
    assert first.step == 5


def test_only_the_newest_are_kept(run: Run) -> None:
    for step in (5, 10, 15, 20):
        checkpoint(run, step, keep=2)
    assert [path.name for path in run.checkpoints()] == ["step_00000015", "step_00000020"]


def test_saving_a_step_again_replaces_it(run: Run) -> None:
    checkpoint(run, 5)
    checkpoint(run, 5)
    assert len(run.checkpoints()) == 1


@pytest.mark.parametrize("stage", ["first file", "second file", "state", "rename"])
def test_a_save_that_dies_anywhere_leaves_the_checkpoint_before_it(
    run: Run, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint(run, 5)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if stage == "rename":
            patch.setattr(Path, "rename", die)
        elif stage == "state":
            patch.setattr(folder, "write_sealed", die)
        else:
            real, calls = folder.write_hashed, iter(range(9))
            wanted = 0 if stage == "first file" else 1
            patch.setattr(
                folder,
                "write_hashed",
                lambda *a: die() if next(calls) == wanted else real(*a),
            )
        with pytest.raises(KeyboardInterrupt):
            checkpoint(run, 10)
    loaded = run.load_checkpoint()
    assert loaded is not None
    assert loaded.step == 5
    checkpoint(run, 10)  # the leftovers do not stand in the way
    assert [path.name for path in (run.path / "checkpoints").iterdir() if path.name.startswith(".")] == []
    loaded = run.load_checkpoint()
    assert loaded is not None
    assert loaded.step == 10


def test_a_damaged_checkpoint_is_refused_with_a_way_back(run: Run) -> None:
    checkpoint(run, 5)
    path = checkpoint(run, 10)
    weights = path / "coder.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(DataError, match="is damaged") as caught:
        run.load_checkpoint()
    assert caught.value.hint is not None
    assert caught.value.hint == f"pipeline verify {run.path} --repair"
    state = path / "state.json"
    reseal(state, lambda document: document.update(format_version=99))
    with pytest.raises(DataError, match="format version 99"):
        run.load_checkpoint()
    state.write_text("{")
    with pytest.raises(DataError, match="is not valid JSON"):
        run.load_checkpoint()


def test_the_end_of_a_run(run: Run) -> None:
    coder = build_coder(TopKConfig(latents=8, k=2), 4, 4, tied=True)
    run.finish(coder, {"steps": 9, "fvu": 0.25}, {"source": "layer_00.resid_mid"})
    done = open_run(run.path)
    assert done.complete
    assert done.summary == {"steps": 9, "fvu": 0.25}
    assert done.final["architecture"] == "topk"
    assert torch.equal(done.load_coder().w_enc, coder.w_enc)


def test_one_writer_at_a_time(run: Run) -> None:
    with run.lock(), pytest.raises(PipelineError, match="another process"), run.lock():
        pass
    with run.lock():
        pass
