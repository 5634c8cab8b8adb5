"""A harvest by several processes: who owns what, the same bytes as one process, deaths, and foreign writers."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from sparse_pipeline.harvest.config import HarvestConfig
from sparse_pipeline.harvest.data.pack import Block
from sparse_pipeline.harvest.run import HarvestResult, ShareResult, harvest, harvest_share
from sparse_pipeline.harvest.units import dataset_units
from sparse_pipeline.shared.cache import Layout, SiteSpec, verify_cache
from sparse_pipeline.shared.cache.growth import Generation, Parts
from sparse_pipeline.shared.cache.writer import Share
from sparse_pipeline.shared.errors import UsageError
from sparse_pipeline.shared.ranks import Rank, rank_of
from tests.harvest.conftest import CTX
from tests.harvest.test_run import config_for, contents


@pytest.fixture(scope="module")
def processes(tiny_model: Path, texts_file: Path, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What tests.harvest.ranks printed, and its folder: 12 shards in units of two, by 1, 2 and 3 processes."""
    folder = tmp_path_factory.mktemp("ranks")
    run = subprocess.run(
        [sys.executable, "-m", "tests.harvest.ranks", str(folder), str(tiny_model), str(texts_file)],
        cwd=root,
        env=os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return folder, json.loads(run.stdout)


def test_two_processes_write_the_bytes_of_one(processes: Any) -> None:
    folder, found = processes
    assert [one["code"] for one in (*found["one"], *found["two"])] == [0, 0, 0]
    assert contents(folder / "two" / "c") == contents(folder / "one" / "c")
    assert verify_cache(folder / "two" / "c").ok
    results = [one["result"] for one in found["two"]]
    assert sum(one["complete"] for one in results) == 1, "exactly one of them finishes the cache"
    assert [one["shards_written"] for one in results] == [6, 6]


def test_a_death_costs_its_unfinished_shards_and_any_number_resumes(processes: Any) -> None:
    """Process 1 of 3 owns units 1 and 4, that is shards 2, 3, 8 and 9; it is killed when it begins the second one."""
    folder, found = processes
    assert [one["code"] for one in found["killed"]] == [0, -signal.SIGKILL, 0]
    assert found["kept"] == [f"{shard:06d}.json" for shard in (0, 1, 2, 4, 5, 6, 7, 10, 11)]
    assert found["unfinished"]
    assert all(not one["result"]["complete"] for one in found["killed"] if one["code"] == 0)
    assert [one["code"] for one in found["resumed"]] == [0, 0]
    assert sorted(one["result"]["shards_written"] for one in found["resumed"]) == [1, 2]  # unit 1 is 1's, unit 4 is 0's
    assert contents(folder / "killed" / "c") == contents(folder / "one" / "c")


def test_foreign_writers_are_refused_while_a_group_works(processes: Any) -> None:
    folder, found = processes
    same, other, single, first = found["refused"]
    assert [one["code"] for one in (same, other, single, first)] == [1, 1, 1, 0]
    assert "it holds .lock-0" in same["result"]["error"]["message"]
    assert "being written by 2 processes, and this is one of 3" in other["result"]["error"]["message"]
    assert "being written by another process" in single["result"]["error"]["message"]
    assert first["result"]["shards_missing"] == 6
    assert found["alone"]["code"] == 0, "a single process finishes what a group began"
    assert contents(folder / "refused" / "c") == contents(folder / "one" / "c")


def share(config: HarvestConfig, index: int, count: int) -> HarvestResult | ShareResult:
    return harvest_share(config, Rank(index, count))


def test_two_processes_let_a_cache_grow(tiny_model: Path, texts_file: Path, tmp_path: Path) -> None:
    """By tokens from a short shard on, then by a site: as one process grows it."""
    small = {"tokens": 20 * CTX, "name": "c"}
    grown = {"tokens": 60 * CTX, "batch_tokens": 16 * CTX, "name": "c"}
    further = {**grown, "sites": ("layer_01.resid_mid", "layer_01.mlp_out", "layer_02.mlp_out")}
    for step in (small | {"batch_tokens": 16 * CTX}, grown, further):
        harvest(config_for(tiny_model, texts_file, tmp_path / "one", **step))
        config = config_for(tiny_model, texts_file, tmp_path / "two", **step)
        first, second = share(config, 1, 2), share(config, 0, 2)
        assert isinstance(first, ShareResult)
        assert isinstance(second, HarvestResult)
        assert first.shards_written + second.shards_written == first.shards_missing + first.shards_written
        assert not first.to_dict()["complete"]
        assert "process 1 of 2 wrote" in str(first)
    assert contents(tmp_path / "two" / "c") == contents(tmp_path / "one" / "c")


def test_units_of_a_grown_cache_are_those_that_the_dataset_gives() -> None:
    """Every shard belongs to one process, and the shards of a unit to the same one, whatever the cache has grown by."""
    size, rng = 4, np.random.default_rng(0)
    for _ in range(20):
        unit_shards, sizes = int(rng.integers(1, 4)), np.cumsum(rng.integers(1, 40, size=3))
        ends: list[int] = []  # as the cache counts: short shards are padded before it grows past them
        for more in np.diff([0, *sizes]):
            ends.append((-(-ends[-1] // size) * size if ends else 0) + int(more))
        layout = Layout(ends[-1], 2, size * 2, (SiteSpec("s", 1),))
        parts = Parts(layout, tuple(Generation(str(n), n, ("s",)) for n in ends))
        empty = np.zeros((int(sizes[-1]), 2), np.int64)
        whole = Block(empty, empty, empty, empty)
        units = [first for first, _ in dataset_units([whole], parts.segments, unit_shards, size)]
        assert [unit.start for unit in parts.units(unit_shards)] == units
        owned = [Share(rank, 3, unit_shards).of(parts) for rank in range(3)]
        assert sorted(shard for one in owned for shard in one) == list(range(layout.n_shards))
        for unit in parts.units(unit_shards):
            assert sum(not one.isdisjoint(unit) for one in owned) == 1


ARRAY = {"SLURM_ARRAY_TASK_MIN": "2", "SLURM_ARRAY_TASK_MAX": "8", "SLURM_ARRAY_TASK_COUNT": "4"}


def test_the_rank_comes_from_the_options_or_from_the_launcher() -> None:
    torchrun = {"RANK": "1", "WORLD_SIZE": "3", "LOCAL_RANK": "1", "TORCHELASTIC_RUN_ID": "none"}
    assert rank_of(None, None, {}) == Rank(0, 1)
    assert rank_of("1", None, {}) == Rank(0, 1)
    assert rank_of("4", None, {}) is None  # starts four
    assert rank_of("4", 3, {}) == Rank(3, 4)
    assert rank_of(None, None, torchrun) == Rank(1, 3, speaks=False)
    assert rank_of(None, None, {**torchrun, "RANK": "0"}) == Rank(0, 3, waits=True)
    assert rank_of("array", None, {**ARRAY, "SLURM_ARRAY_TASK_ID": "6"}) == Rank(2, 4)
    assert rank_of(None, None, {**ARRAY, "SLURM_ARRAY_TASK_ID": "6"}) == Rank(0, 1)  # an array of other harvests


@pytest.mark.parametrize(
    ("ranks", "rank", "environment", "message"),
    [
        (None, 1, {}, "--rank 1 needs the number"),
        ("2", 2, {}, "expected 0 to 1"),
        ("two", None, {}, "expected a number"),
        ("0", None, {}, "expected a number"),
        ("2", None, {"WORLD_SIZE": "2", "RANK": "0"}, "under torchrun"),
        ("array", None, {}, "SLURM_ARRAY_TASK_ID, .* not found"),
        ("array", 1, ARRAY, "takes the rank from SLURM"),
        ("array", None, {**ARRAY, "SLURM_ARRAY_TASK_ID": "3"}, "not evenly spaced"),
    ],
)
def test_options_that_contradict(
    ranks: str | None, rank: int | None, environment: dict[str, str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        rank_of(ranks, rank, environment)


def test_processes_do_not_choose_their_batches(tiny_model: Path, texts_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="several processes may judge differently"):
        share(config_for(tiny_model, texts_file, tmp_path, batch_tokens=None), 0, 2)


def command_line(config: HarvestConfig, *more: str) -> list[str]:
    """The command without `python -m`, in the package's own words."""
    names = ("model", "dataset", "tokens", "ctx", "batch_tokens", "shard_rows", "cache_dir", "device")
    sets = [f"harvest.{name}={getattr(config, name)}" for name in names]
    sets.append(f"harvest.sites=[{', '.join(config.sites)}]")
    return ["sparse_pipeline", "harvest", "--json", *more, *(word for one in sets for word in ("--set", one))]


@pytest.mark.slow
def test_the_command_starts_processes_and_survives_one(tiny_model: Path, texts_file: Path, tmp_path: Path) -> None:
    """`--ranks 2` and torchrun give the bytes of one process; a child that is killed is named, and nothing is lost."""
    one = harvest(config_for(tiny_model, texts_file, tmp_path / "one")).path
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for folder, launcher, ranks in (
        ("two", ["-m"], ["--ranks", "2"]),
        ("torchrun", ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m"], []),
    ):
        config = config_for(tiny_model, texts_file, tmp_path / folder)
        words = [sys.executable, *launcher, *command_line(config, *ranks)]
        run = subprocess.run(words, env=environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        found = json.loads(run.stdout)
        assert (found["complete"], found["n_tokens"]) == (True, 48 * CTX), run.stderr
        assert contents(Path(found["path"])) == contents(one)
        last = [line for line in run.stderr.splitlines() if line.startswith("harvest")][-1]
        assert re.search(r"100% · 768/768 rows", last), run.stderr

    config = config_for(tiny_model, texts_file, tmp_path / "killed")
    words = [sys.executable, "-m", *command_line(config, "--ranks", "2")]
    parent = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (children := psutil.Process(parent.pid).children()):
        time.sleep(0.05)
    children[0].kill()
    out, _ = parent.communicate()
    error = json.loads(out)["error"]
    assert parent.returncode == 1
    assert re.match(r"process \d of 2 ended by signal 9; 3 of 6 shards are in", error["message"]), error
    assert subprocess.run(words, env=environment, capture_output=True).returncode == 0
    assert contents(tmp_path / "killed" / one.name) == contents(one)
