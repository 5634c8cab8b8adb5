"""kill -9 at arbitrary moments, then --resume: the final weights are byte-identical to an uninterrupted run's."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sparse_pipeline.shared.config.settings import dump_yaml, to_dict
from sparse_pipeline.shared.runs.folder import open_run
from sparse_pipeline.train.config import TrainConfig
from sparse_pipeline.train.loop import train as train_runs
from tests.train.conftest import MATRYOSHKA

PROGRAM = """
import itertools, os, signal, sys
from sparse_pipeline.shared.runs import folder
from sparse_pipeline.train import loop
from sparse_pipeline.shared.config.settings import load_yaml, validate
from sparse_pipeline.train.config import TrainConfig

place, number, *paths = sys.argv[1:]
module, name = {"write": (folder, "write_hashed"), "step": (loop, "train_step")}.get(place, (None, ""))
if module:
    call, count = getattr(module, name), itertools.count(1)

    def deadly(*arguments, **named):
        result = call(*arguments, **named)
        if next(count) == int(number):
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(module, name, deadly)
loop.train([validate(TrainConfig, load_yaml(path)) for path in paths], resume=True)
"""


def run(paths: list[Path], root: Path, place: str = "nowhere", number: int = 0) -> int:
    """Train or resume in a process of its own, which kill -9 ends right after the n-th call of `place`."""
    command = [sys.executable, "-c", PROGRAM, place, str(number), *map(str, paths)]
    return subprocess.run(command, cwd=root, timeout=240).returncode


@pytest.mark.parametrize("kills", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_kill_and_resume_gives_the_same_bytes(
    config: Callable[..., TrainConfig], tmp_path: Path, root: Path, kills: int
) -> None:
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
    chance = random.Random()
    # between two steps or two saves; between the files of a checkpoint, while the runs train on
    moments = chance.sample([("step", chance.randint(1, 80)), ("write", chance.randint(1, 20))], kills)
    for place, number in moments:
        assert run(paths, root, place, number) == -signal.SIGKILL, moments
        assert not open_run(made[0].path, allow_incomplete=True).complete
    if kills == 1:
        train_runs(made, resume=True)
    else:
        assert run(paths, root) == 0
    for ours, theirs in zip(made, whole, strict=True):
        name = "final/coder.safetensors"
        assert (ours.path / name).read_bytes() == (theirs.path / name).read_bytes(), moments
        assert not list(ours.path.rglob("*.partial"))
        steps = [line["step"] for line in open_run(ours.path).metrics()]
        assert steps == sorted(set(steps))
