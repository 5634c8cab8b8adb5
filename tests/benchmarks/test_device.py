"""The checks of a device run at toy size on a CPU; one that fails, hangs or dies takes nothing else with it."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from benchmarks.device import __main__ as device
from benchmarks.device.kernels import CASES
from benchmarks.device.record import Record
from benchmarks.device.scattered_pairs import ScatteredPairs
from benchmarks.device.setting import Setting
from sparse_pipeline.shared.codes.sparse import SparseCodes
from sparse_pipeline.train.kernels import decode
from tests.interpreter import replace_language_once


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    replace_language_once()
    out = tmp_path_factory.mktemp("device")
    (out / "memory").mkdir()
    return Setting(out, out / "memory", toy=True, seed=7)


def ok(record: Record) -> bool:
    assert record.values.get("completed"), record.checks
    assert all(check["ok"] for check in record.checks), [check for check in record.checks if not check["ok"]]
    return bool(record.checks)


@pytest.mark.parametrize("which", CASES)
def test_kernels(setting: Setting, which: str) -> None:
    record = device.run_section(f"kernels-{which}", setting)
    assert ok(record)
    names = {check["name"] for check in record.checks}
    assert {"selection", "loss", "norm", "gradient of w_enc", "gradient of w_dec", "gradient of b_dec"} <= names
    assert ("gradient of w_skip" in names) == (which == "odd")


def test_a_wrong_gradient_is_found(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    right = decode.nested_decode

    def wrong(*args: object, **kwargs: torch.Tensor) -> None:
        right(*args, **kwargs)  # type: ignore[arg-type]
        kwargs["grad_value"].mul_(1.05)

    monkeypatch.setattr(decode, "nested_decode", wrong)
    record = device.run_section("kernels-float32", setting)
    failed = {check["name"] for check in record.checks if not check["ok"]}
    assert {"gradient of w_enc", "gradient of b_enc"} <= failed
    assert "gradient of b_dec" not in failed


def test_environment_and_collected_suites(setting: Setting) -> None:
    record = device.run_section("environment", setting)
    assert ok(record)
    assert record.values["torch"] == torch.__version__.split("+")[0] or record.values["torch"] == torch.__version__
    record = device.run_section("tests-gpu", setting)
    assert ok(record)
    assert record.checks[0]["found"].startswith("4/"), "four tests are marked gpu"


def test_steps_and_curve(setting: Setting) -> None:
    record = device.run_section("steps", setting)
    assert record.values.get("completed")
    assert not record.checks, record.checks  # a check is made only of a part that failed
    plain = record.values["step, batch 2"]
    assert plain["over_floor"] == pytest.approx(plain["ms"] / plain["floor_ms"], rel=1e-2)
    assert set(plain["parts"]) == {
        "encoder product",
        "selection",
        "decode and dL/dz",
        "lists",
        "lists, gradients, Adam",
    }
    assert all(record.values[name]["ms"] > 0 for name in ("tracked_pairs", "topk_pairs", "autograd", "2 dead latents"))
    assert ok(device.run_section("curve", setting))


def test_harvest_train_analyze(setting: Setting) -> None:
    """In the order of a whole run; the later ones take what the earlier ones left."""
    record = device.run_section("harvest", setting)
    assert ok(record)
    memory = record.values["harvest to memory"]
    assert memory["tokens"] == 16_384
    assert sum(memory["waited for"].values()) == pytest.approx(1, abs=0.01)
    record = device.run_section("train", setting)
    assert ok(record)
    assert math.isfinite(record.values["training, streamed"]["FVU"])
    assert len(record.values["rows alone, resident, GB/s by epoch"]) == 2
    record = device.run_section("analyze", setting)
    assert ok(record)
    assert record.values["analysis on cpu, s"] > 0


def test_pairs_on_the_device_against_scipy() -> None:
    """Rows of different lengths, empty ones among them, in several calls and several pieces."""
    rng = np.random.default_rng(0)
    z = np.where(rng.random((300, 40)) < 0.1, rng.exponential(1.0, (300, 40)) + 0.1, 0).astype(np.float32)
    z[7:9] = 0
    pairs = ScatteredPairs(40, torch.device("cpu"))
    for part in (z[:100], z[100:]):
        pairs.add(SparseCodes.from_dense(part))
    exact = sp.csr_matrix(z.astype(np.float64))
    np.testing.assert_allclose(np.triu(pairs.sums.numpy()), np.triu((exact.T @ exact).toarray()), rtol=1e-12)
    fires = (exact > 0).astype(np.int64)
    np.testing.assert_array_equal(np.triu(pairs.counts.numpy()), np.triu((fires.T @ fires).toarray()))


def test_a_section_that_fails_or_hangs_takes_nothing_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each is a process: here they are a check that holds, one that does not, an error, a death and a hang."""
    stub = tmp_path / "stub"
    stub.write_text(
        "import json, os, sys, time\n"
        "name = sys.argv[sys.argv.index('--section') + 1]\n"
        "out = sys.argv[sys.argv.index('--out') + 1] + f'/work/parts/{name}.json'\n"
        "print('said by', name, flush=True)\n"
        "check = {'name': 'it holds', 'ok': name != 'curve', 'found': 3}\n"
        "values = {'completed': True, 'ms': 2}\n"
        "if name == 'harvest': os.kill(os.getpid(), 9)\n"
        "json.dump({'values': values, 'checks': [check]}, open(out, 'w'))\n"
        "if name == 'train': time.sleep(600)\n",
        encoding="utf-8",
    )
    popen = device.subprocess.Popen

    def started(command: list[str], **kwargs: object) -> object:
        return popen([sys.executable, str(stub), *command[command.index("--section") :]], **kwargs)  # type: ignore[call-overload]

    monkeypatch.setattr(device.subprocess, "Popen", started)
    monkeypatch.setattr(device, "TOY_SECONDS", 1.0)
    began = time.monotonic()
    out = tmp_path / "out"
    assert device.main(["--out", str(out), "--toy", "--only", "steps,curve,harvest,train"]) == 1
    assert time.monotonic() - began < 30
    document = json.loads((out / "device.json").read_text(encoding="utf-8"))
    states = {name: section["state"] for name, section in document["sections"].items()}
    assert states == {"steps": "done", "curve": "done", "harvest": "exit code -9", "train": "time limit"}
    wrong = device.failures(document)
    assert wrong == ["curve: it holds: 3", "harvest: exit code -9", "train: time limit"]
    assert "| steps | ms | 2 |" in (out / "device.md").read_text(encoding="utf-8")
    assert "said by harvest" in (out / "device.log").read_text(encoding="utf-8")
    assert sorted(path.name for path in out.iterdir()) == ["device.json", "device.log", "device.md"]
    assert "3 of 4 checks" not in capsys.readouterr().out


def test_sections_are_chosen_by_name(tmp_path: Path) -> None:
    assert device.chosen("kernels,steps", "kernels-odd") == [
        "kernels-full",
        "kernels-batch",
        "kernels-float32",
        "steps",
    ]
    assert device.chosen("", "") == list(device.SECTIONS)
    with pytest.raises(SystemExit, match="no such section: kernel; found environment"):
        device.chosen("kernel", "")
