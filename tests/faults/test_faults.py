"""Faults, a bounded number of each; `make faults` tries many times as many (docs/reliability.md has its numbers)."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sparse_pipeline.shared.cache import CacheWriter, open_cache
from sparse_pipeline.shared.cache.lock import open_lock
from sparse_pipeline.shared.cache.verify import verify_cache
from sparse_pipeline.shared.config.yaml import parse_yaml
from sparse_pipeline.shared.deadline import seconds_of, time_limit
from sparse_pipeline.shared.errors import ConfigError, DataError, PipelineError, UsageError
from sparse_pipeline.shared.explain import explained
from sparse_pipeline.shared.interrupt import interruptible
from sparse_pipeline.shared.overview.status import status
from sparse_pipeline.shared.runs.folder import open_run
from sparse_pipeline.train.loop import train
from tests.faults import fuzz
from tests.faults.crash import crash_states
from tests.faults.damage import KINDS
from tests.faults.subjects import LAYOUT, SITE, lost, settings, train_run, write_cache
from tests.faults.trials import cache_trials, first_touches, run_trials
from tests.sealed import reseal
from tests.shared.cache.folders import contents
from tests.synthetic import make_cache, sparse_acts, token_table

LONG = os.environ.get("PIPELINE_FAULTS") == "long"
"""Many trials instead of a few."""

FUZZED = int(os.environ.get("PIPELINE_FUZZ", "5200" if LONG else "20"))
"""Files of caches and runs that are broken or changed."""


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory where there is such a file system; syncing is what the trials of crashes are about."""
    where = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=where) as folder:
        yield Path(folder).resolve()


def test_every_damage_to_a_cache_is_found_and_repaired_to_the_byte(memory: Path) -> None:
    kinds = list(KINDS) if LONG else ["flip", "swap"]
    trials = list(cache_trials(memory, kinds, per_file=4 if LONG else 1, seed=1, every=1 if LONG else 2))
    print("cache:", dict(Counter(trial.kind for trial in trials)))
    assert [trial for trial in trials if not trial.found or trial.wrong] == []
    assert len(trials) >= 30


def test_every_damage_to_a_run_is_found_and_repaired_to_the_byte(memory: Path) -> None:
    kinds = list(KINDS) if LONG else ["flip", "folder", "lengthen"]
    trials = list(run_trials(memory, kinds, per_file=2 if LONG else 1, seed=2, every=1 if LONG else 6))
    print("run:", dict(Counter(trial.kind for trial in trials)))
    assert [trial for trial in trials if not trial.found or trial.wrong] == []
    assert len(trials) >= 2


def test_flipped_payloads_are_found_on_first_touch(memory: Path) -> None:
    found = list(first_touches(memory, flips=150 if LONG else 3, seed=3))
    print("first touch:", len(found))
    assert all(seen and stopped for _, seen, stopped in found), found


def test_a_power_cut_at_any_operation_of_a_cache_loses_nothing(memory: Path) -> None:
    write_cache(memory / "whole")
    whole = contents(memory / "whole")
    states = crash_states(
        memory / "c", lambda: write_cache(memory / "c"), memory / "states", seed=4, every=1 if LONG else 12
    )
    for state in states:
        write_cache(state)
        assert contents(state) == whole, state
    print("power cuts, cache:", len(states))
    assert len(states) >= 20


def test_a_power_cut_at_any_operation_of_a_run_loses_nothing(memory: Path) -> None:
    train_run(memory)
    path, aside = memory / "runs/run", memory / "aside"
    whole = contents(path)
    shutil.move(path, aside)
    states = crash_states(path, lambda: train_run(memory), memory / "states", seed=5, every=1 if LONG else 60)
    for state in states:
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(state, path)
        committed = sorted(one.name for one in (path / "checkpoints").glob("step_*"))
        train_run(memory)
        assert lost(path, whole) == [], (state, committed)
    print("power cuts, run:", len(states))
    assert len(states) >= 2


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_an_error_of_the_disk_names_the_file_and_loses_nothing(
    memory: Path, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cache(memory / "whole")
    whole = contents(memory / "whole")
    real, count = os.write, 0
    for at in range(1, 60, 1 if LONG else 14):
        count = 0

        def failing(descriptor: int, data: bytes, at: int = at) -> int:
            nonlocal count
            count += 1
            if count == at:
                raise OSError(code, os.strerror(code))
            return real(descriptor, data)

        with monkeypatch.context() as patched:
            patched.setattr(os, "write", failing)
            said = _said(lambda: write_cache(memory / "c"))
        if said is None:
            break
        assert str(memory / "c") in said
        assert ("the disk is full" if code == errno.ENOSPC else "the disk reports an input/output error") in said
        write_cache(memory / "c")
        assert contents(memory / "c") == whole
        shutil.rmtree(memory / "c")


def _said(work: Callable[[], None]) -> str | None:
    """The message that a user would get; None if the work succeeded."""
    try:
        work()
    except PipelineError as error:
        return error.message
    except OSError as error:
        found = explained(error, "pipeline harvest")
        return None if found is None else found.message
    return None


def test_hostile_and_broken_files_give_errors_and_no_tracebacks(memory: Path) -> None:
    cases = FUZZED // 4
    write_cache(memory / "caches/cache")
    whole_cache = contents(memory / "caches/cache")
    (memory / "caches/cache/documents.jsonl").write_text('{"doc_id": 0, "labels": {"a": 1}}\n')
    whole_cache["documents.jsonl"] = (memory / "caches/cache/documents.jsonl").read_bytes()
    train_run(memory)
    path = memory / "runs/run"
    whole_run = contents(path)
    found = [
        *fuzz.fuzz(
            memory / "caches/cache", whole_cache, fuzz.cache_readers(memory / "caches/cache"), 2 * cases, seed=6
        ),
        *fuzz.fuzz(path, whole_run, fuzz.run_readers(path), 2 * cases, seed=7),
    ]
    print("fuzzed files:", 4 * cases)
    assert found == []


def test_a_layout_of_ten_billion_sequences_costs_nothing(memory: Path) -> None:
    write_cache(memory / "caches/good")
    write_cache(memory / "caches/huge")
    reseal(memory / "caches/huge/manifest.json", lambda m: (m["layout"].update(n_seq=10**10), m.update(n_seq=10**10)))
    entries = {one["name"]: one for one in status(memory / "caches", memory / "runs").caches}
    assert entries["good"]["complete"]
    assert "at most" in str(entries["huge"]["problem"])
    reseal(memory / "caches/huge/manifest.json", lambda m: (m["layout"].update(n_seq=10**7), m.update(n_seq=10**7)))
    entries = {one["name"]: one for one in status(memory / "caches", memory / "runs").caches}
    assert not entries["huge"]["complete"]
    (problem, *_) = verify_cache(memory / "caches/huge").problems
    assert problem.expected == "1,250,000 shards" or "layout" in problem.found


def test_nothing_outside_the_folder_is_opened_and_nothing_waits_forever(memory: Path) -> None:
    write_cache(memory / "c")
    secret = memory / "secret"
    secret.write_text("keep me")
    for name in ("../secret", str(secret), "/dev/zero", "commits"):
        reseal(
            memory / "c/manifest.json",
            lambda m, name=name: m["extra"].update(tokenizer=name, tokenizer_sha256="0" * 64),
        )
        report = verify_cache(memory / "c")
        assert not report.ok
        assert all(file.is_relative_to(memory / "c") for problem in report.problems for file in problem.drop)
        with pytest.raises(DataError):
            fuzz.cache_readers(memory / "c")[0]()
    (memory / "c/.lock").unlink()
    (memory / "c/.lock").symlink_to(secret)
    with pytest.raises(DataError, match="not a regular file"):
        CacheWriter.create(memory / "c", LAYOUT, {"harvest": {"model": "m"}}, {})
    assert secret.read_text() == "keep me"
    os.mkfifo(memory / "pipe")
    with pytest.raises(DataError, match="not a regular file"):
        open_lock(memory / "pipe")


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [1]\n" + "b: [" + ", ".join(["*a"] * 200) + "]",
        "[" * 60 + "]" * 60,
        "x: " + "y" * (2 << 20),
        "- b\n" * 200_000,
    ],
    ids=["aliases", "depth", "size", "values"],
)
def test_yaml_has_bounds(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_yaml(text)


def test_one_writer_at_a_time_while_a_reader_reads(memory: Path) -> None:
    write_cache(memory / "whole")
    with CacheWriter.create(memory / "c", LAYOUT, {"harvest": {"model": "m"}}, {"made_by": "tests"}):
        with pytest.raises(PipelineError, match="being written by another process"):
            write_cache(memory / "c")
        assert open_cache(memory / "c", allow_incomplete=True).shards == []
    write_cache(memory / "c")
    assert contents(memory / "c") == contents(memory / "whole")


def test_signals_and_the_time_limit_ask_for_a_stop() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it, and so do we then
    for number in (signal.SIGTERM, signal.SIGHUP):
        with interruptible() as stop:
            os.kill(os.getpid(), number)
            assert stop.requested
    signal.signal(signal.SIGHUP, before)
    with interruptible() as stop, time_limit(0.01):
        signal.pause()
        assert stop.requested
    assert [seconds_of(text) for text in ("90s", "45m", "2h30m", "1d", "7")] == [90, 2700, 9000, 86400, 7]
    for text in ("", "soon", "1x", "-3s", "0"):
        with pytest.raises(UsageError, match="is no duration"):
            seconds_of(text)


@pytest.mark.parametrize(
    ("error", "message", "code"),
    [
        (OSError(errno.EIO, "x", "/a/b"), "/a/b: the disk reports an input/output error", 1),
        (OSError(errno.EROFS, "x", "/a/b"), "/a/b: the filesystem is read-only", 1),
        (OSError(errno.EMFILE, "x"), "too many files are open in this process", 1),
        (OSError(errno.ENAMETOOLONG, "x", "n"), "n: a name is too long for the filesystem", 1),
        (MemoryError(), "not enough memory: the system gave no more", 1),
        (RecursionError(), "nested too deep to be read", 3),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), "not UTF-8 text: ", 3),
        (EOFError("cut"), "a compressed file is damaged or cut short: cut", 3),
    ],
)
def test_errors_of_the_system_in_our_words(error: Exception, message: str, code: int) -> None:
    found = explained(error, "pipeline status")
    assert found is not None
    assert found.message.startswith(message)
    assert found.exit_code == code
    assert str(found.hint).endswith("then pipeline status")
    assert explained(ValueError("a fault of ours"), "pipeline status") is None


def test_what_cannot_be_trained_on_is_named(tmp_path: Path) -> None:
    table = token_table(96, 16)
    plain = sparse_acts(table, {SITE: 8})[SITE].float()
    huge = plain.clone()
    huge[500] = 3e38
    cases = {
        "is zero in every row": plain * 0,
        "is the same in every row": plain * 0 + 1,
        "vanish in float32": plain * 1e-30,
        "row 500 holds 3e[+]38": huge,
    }
    for number, (message, rows) in enumerate(cases.items()):
        cache = make_cache(tmp_path / str(number), 96, 16, acts={SITE: rows}, table=table)
        config = settings(tmp_path, cache=cache.path)
        with pytest.raises(DataError, match=message):
            train([config])
        assert not config.path.exists()


def test_a_run_that_diverges_is_noted_and_stopped_on_request(tmp_path: Path) -> None:
    config = settings(tmp_path, samples=None, log_every=1)
    wild = replace(config, optimizer=replace(config.optimizer, lr=1e4, warmup_steps=0, grad_clip=None))
    train([wild])
    (entry,) = status(tmp_path / "no", tmp_path / "runs").runs
    assert entry["note"]
    assert "diverged" in str(status(tmp_path / "no", tmp_path / "runs"))
    stopped = replace(wild, name="stopped", diverged="stop")
    with pytest.raises(PipelineError, match="run stopped diverged at step"):
        train([stopped])
    assert open_run(stopped.path, allow_incomplete=True).note is not None
