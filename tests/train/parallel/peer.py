"""Another process of a run: `python -m tests.train.parallel.peer RANK COUNT MEETING CALLS`.

CALLS is a JSON file of calls of `train`, made one after the other: `runs` (their settings), `resume`, and `dies` (a
step in which this process ends without a word) or null. What is refused or interrupted in all processes is no end.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from sparse_pipeline.shared.config.settings import validate
from sparse_pipeline.shared.errors import UsageError
from sparse_pipeline.shared.ranks import MEETING, Rank
from sparse_pipeline.train import loop
from sparse_pipeline.train.config import TrainConfig
from sparse_pipeline.train.parallel.peers import meet
from sparse_pipeline.train.step.trainee import Trainee

real_step = loop.train_step


def main(rank: str, count: str, meeting: str, calls: str) -> None:
    torch.set_num_threads(1)
    with meet(Rank(int(rank), int(count)), torch.device("cpu"), {MEETING: meeting}) as peers:
        for call in json.loads(Path(calls).read_bytes()):

            def step(trainee: Trainee, *args: Any, dies: int | None = call["dies"], **kwargs: Any) -> Any:
                if dies == trainee.step + 1:
                    os._exit(9)
                return real_step(trainee, *args, **kwargs)

            loop.train_step = step
            with contextlib.suppress(UsageError, KeyboardInterrupt):
                loop.train([validate(TrainConfig, one) for one in call["runs"]], resume=call["resume"], peers=peers)


if __name__ == "__main__":
    main(*sys.argv[1:])
