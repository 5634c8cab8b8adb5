"""Errors of the system, injected below whole commands: one message with the file and the next step, nothing lost."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sparse_pipeline import pipeline
from sparse_pipeline.shared.cache import CacheWriter, first_touch
from sparse_pipeline.shared.runs.folder import Run
from tests.faults.subjects import SITE, lost
from tests.shared.cache.folders import contents
from tests.synthetic import make_cache

SETTINGS = f"""
harvest: {{cache_dir: caches}}
train:
  cache: caches/data
  source: {SITE}
  target: null
  runs: runs
  name: run
  coder: {{architecture: topk, latents: 16, k: 2}}
  data: {{batch_size: 64, epochs: 1, workers: 1}}
  min_steps: 2
  log_every: 4
  checkpoint_every: 8
"""
TRAIN, VERIFY, REPAIR = ["train"], ["verify", "caches/data"], ["verify", "caches/data", "--repair"]
EXPORT = ["export", "--to", "safetensors", "made", "out"]
LONG_NAME = "n" * 300


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a cache and a finished run."""
    make_cache(tmp_path / "caches/data", 96, 16, {SITE: 8})
    (tmp_path / "pipeline.yaml").write_text(SETTINGS)
    monkeypatch.chdir(tmp_path)
    assert pipeline.run(["train", "--name", "made"]) == 0
    first_touch._compared.clear()
    return tmp_path


def on_open(folder: Path, code: int, writing: bool) -> tuple[Any, str, Callable[..., Any]]:
    """os.open fails below a folder."""
    real = os.open

    def failing(path: Any, flags: int, *rest: Any, **named: Any) -> int:
        inside = os.path.abspath(os.fspath(path)).startswith(str(folder))  # noqa: PTH100 (a path that may not exist)
        if inside and (not writing or flags & (os.O_WRONLY | os.O_RDWR)):
            raise OSError(code, os.strerror(code), os.fspath(path))
        return real(path, flags, *rest, **named)

    return os, "open", failing


def on_call(module: Any, name: str, code: int) -> tuple[Any, str, Callable[..., Any]]:
    def failing(*rest: Any, **named: Any) -> Any:
        raise OSError(code, os.strerror(code))

    return module, name, failing


def injected(folder: Path, code: int) -> tuple[Any, str, Callable[..., Any]]:
    if code == errno.ENOLCK:
        return on_call(fcntl, "flock", code)
    if code == errno.EIO:
        return on_call(os, "preadv", code)
    return on_open(folder, code, writing=code == errno.EROFS)


@pytest.mark.parametrize(
    ("code", "said", "commands"),
    [
        (errno.EMFILE, "too many files are open in this process", [TRAIN, VERIFY, REPAIR]),
        (errno.EACCES, "ermission denied", [TRAIN, REPAIR]),
        (errno.EROFS, "read-only", [TRAIN, EXPORT]),
        (errno.ENOLCK, "has no locks", [TRAIN, REPAIR]),
        (errno.EIO, "nput/output error", [TRAIN, ["train", "--name", "other"]]),
    ],
    ids=lambda value: errno.errorcode[value] if isinstance(value, int) else None,
)
def test_an_error_of_the_system_is_named_and_nothing_is_lost(
    folder: Path,
    code: int,
    said: str,
    commands: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = {name: data for name, data in contents(folder).items() if not name.endswith(".lock")}
    for command in commands:
        capsys.readouterr()
        with monkeypatch.context() as patched:
            patched.setattr(*injected(folder, code))
            ended = pipeline.run(command)
        message = capsys.readouterr().err
        assert ended in (1, 2, 3), (command, message)
        check(message, said)
        now = contents(folder)
        assert {name: now.get(name) for name in whole} == whole, command
    begun = (folder / "runs/run/config.yaml").exists()
    assert pipeline.run([*TRAIN, "--resume"] if begun else TRAIN) == 0
    assert pipeline.run(VERIFY) == 0


def check(message: str, said: str) -> None:
    """The last lines are an error in our words and a next step; no name of an exception."""
    lines = [line for line in message.splitlines() if line.startswith(("error: ", "next: "))]
    assert lines, message
    assert lines[-1].startswith("next: "), message
    assert said in message
    assert "Traceback" not in message
    assert not re.search(r"\b[A-Z]\w*(Error|Exception)\b", message), message


@pytest.mark.parametrize("command", [["train", "--name", LONG_NAME], [*EXPORT[:-1], LONG_NAME]])
def test_a_name_that_is_too_long_is_named(folder: Path, command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert pipeline.run(command) in (1, 2)
    check(capsys.readouterr().err, "too long")


@pytest.fixture
def as_the_command() -> Iterator[None]:
    """SIGTERM as the console script handles it."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    yield
    signal.signal(signal.SIGTERM, before)


def at_time(monkeypatch: pytest.MonkeyPatch, owner: type, method: str, call: int) -> None:
    """The alarm of --time-limit rings within the n-th call of a method."""
    real, count = getattr(owner, method), 0

    def counted(self: Any, *rest: Any, **named: Any) -> Any:
        nonlocal count
        count += 1
        if count == call:
            os.kill(os.getpid(), signal.SIGALRM)
        return real(self, *rest, **named)

    monkeypatch.setattr(owner, method, counted)


@pytest.mark.usefixtures("as_the_command")
def test_a_time_limit_ends_training_with_130_and_resume_gives_the_same_bytes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pipeline.run(TRAIN) == 0
    whole = contents(folder / "runs/run")
    (folder / "runs/run").rename(folder / "whole")
    capsys.readouterr()
    with monkeypatch.context() as patched:
        at_time(patched, Run, "log", 3)
        assert pipeline.run([*TRAIN, "--time-limit", "1h"]) == 130
    message = capsys.readouterr().err
    assert "next: pipeline train --time-limit 1h --resume" in message
    assert not (folder / "runs/run/final").exists()
    assert pipeline.run([*TRAIN, "--time-limit", "1h", "--resume"]) == 0
    assert lost(folder / "runs/run", whole) == []


@pytest.mark.usefixtures("as_the_command")
def test_a_time_limit_ends_a_harvest_with_130_and_the_next_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    texts = (json.dumps({"text": f"The {n}th document says that {n} plus {n} is {2 * n}."}) for n in range(200))
    (tmp_path / "t.jsonl").write_text("\n".join(texts))
    sets = {"tokens": 2048, "ctx": 32, "batch_tokens": 512, "shard_rows": 512, "dataset": "t.jsonl", "name": "cut"}
    harvest = ["harvest", *(word for key, value in sets.items() for word in ("--set", f"harvest.{key}={value}"))]
    with monkeypatch.context() as patched:
        at_time(patched, CacheWriter, "write_shard", 2)
        assert pipeline.run([*harvest, "--time-limit", "1h"]) == 130
    message = capsys.readouterr().err
    assert "--time-limit 1h" in message.partition("next: ")[2]
    written = sorted((tmp_path / "cache/cut/commits").iterdir())
    assert 1 <= len(written) < 4
    assert pipeline.run([*harvest, "--time-limit", "1h"]) == 0
    assert pipeline.run([*harvest, "--set", "harvest.name=whole"]) == 0
    found, whole = (contents(tmp_path / "cache" / name) for name in ("cut", "whole"))
    names = {name for name in whole if name.startswith(("acts.zarr/", "documents"))}
    assert len(names) > 10
    assert {name: found[name] for name in names} == {name: whole[name] for name in names}
    assert found.keys() == whole.keys()
