"""kill -9 at arbitrary moments, then --resume: the final weights are byte-identical to an uninterrupted run's."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from shared.config import dump_yaml, to_dict
from shared.runs import open_run
from tests.train.conftest import MATRYOSHKA
from train.config import TrainConfig
from train.loop import train as train_runs

PROGRAM = """
import sys, torch
torch.set_num_threads(1)
from shared.config import load_yaml, validate
from train.config import TrainConfig
from train.loop import train
train([validate(TrainConfig, load_yaml(path)) for path in sys.argv[1:]], resume=True)
"""


def start(paths: list[Path], root: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", PROGRAM, *map(str, paths)], cwd=root, env=environment)


def steps_on_disk(config: TrainConfig) -> int:
    return len(list((config.path / "checkpoints").glob("step_*"))) if config.path.exists() else 0


def test_kill_and_resume_gives_the_same_bytes(config: Callable[..., TrainConfig], tmp_path: Path, root: Path) -> None:
    made = [
        config(name=name, coder=coder, checkpoint_every=5, keep_checkpoints=None, data={"epochs": 3})
        for name, coder in (("a", MATRYOSHKA), ("b", replace(MATRYOSHKA, k=3)))
    ]
    whole = [replace(member, runs=tmp_path / "whole") for member in made]
    train_runs(whole)
    paths = []
    for member in made:
        path = tmp_path / f"{member.run_name}.yaml"
        path.write_text(dump_yaml(to_dict(member)))
        paths.append(path)
    moments = random.Random()
    for extra in (2, 8):  # checkpoints to wait for before the kill
        process = start(paths, root)
        goal, deadline = steps_on_disk(made[0]) + extra, time.monotonic() + 120
        while steps_on_disk(made[0]) < goal and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(moments.random() * 0.05)
        assert process.poll() is None, "it ended before it could be killed"
        process.kill()
        process.wait()
    assert not open_run(made[0].path, allow_incomplete=True).complete
    assert start(paths, root).wait(timeout=240) == 0
    for ours, theirs in zip(made, whole, strict=True):
        name = "final/coder.safetensors"
        assert (ours.path / name).read_bytes() == (theirs.path / name).read_bytes()
        assert not list(ours.path.rglob("*.partial"))
        steps = [line["step"] for line in open_run(ours.path).metrics()]
        assert steps == sorted(set(steps))
