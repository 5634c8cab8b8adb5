"""Whatever other programs' files hold: reading them gives what they say or an error of ours, soon, in little memory."""

from __future__ import annotations

import os
import random
import resource
import shutil
import time
from collections import Counter
from pathlib import Path

import pytest
from datasets import disable_progress_bars
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparse_pipeline.shared.errors import PipelineError
from tests.faults.foreign import Subject, subjects

LONG = os.environ.get("PIPELINE_FAULTS") == "long"
CASES = int(os.environ.get("PIPELINE_FUZZ", "4000" if LONG else "40"))


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Subject]:
    disable_progress_bars()
    made = subjects(tmp_path_factory.mktemp("foreign"))
    for subject in made.values():
        subject.read(subject.path)  # what is whole is read
    return made


def test_files_of_others_give_errors_and_no_tracebacks(known: dict[str, Subject], tmp_path: Path) -> None:
    ended: Counter[str] = Counter()
    slowest, before = (0.0, "", 0), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @settings(
        max_examples=CASES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(name=st.sampled_from(sorted(known)), seed=st.integers(0, 2**32 - 1))
    def reads(name: str, seed: int) -> None:
        nonlocal slowest
        subject = known[name]
        shutil.rmtree(tmp_path)
        path = subject.damaged(random.Random(seed), tmp_path)
        begun = time.process_time()  # of the processor: the machine may have other work
        try:
            subject.read(path)
            ended["read"] += 1
        except PipelineError:
            ended["refused"] += 1
        slowest = max(slowest, (time.process_time() - begun, name, seed))

    reads()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print("fuzz, files of others:", dict(ended), f"slowest {slowest}, peak {peak / 1024:.0f} MiB")
    assert slowest[0] < 20, slowest
    assert ended["refused"] > CASES // 4
    assert (peak - before) / 1024 < 1024
