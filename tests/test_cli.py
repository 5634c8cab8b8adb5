"""The front door: help without heavy imports, one JSON document, exit codes, hints."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from sparse_pipeline import commands, pipeline
from sparse_pipeline.resolve import variants
from sparse_pipeline.shared.errors import DataError

ROOT = Path(__file__).resolve().parent.parent
LIGHT = {"click", "ruamel", "sparse_pipeline"}
HEAVY = {"torch", "numpy", "transformers", "datasets", "zarr", "wandb", "pydantic", "matplotlib", "scipy", "rich"}


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from sparse_pipeline.pipeline import run; code = run(['--help']);"
        "print(*sys.modules, file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stderr.split()}
    assert not loaded & HEAVY
    assert loaded >= LIGHT
    for command in commands.cli.commands:
        assert f"\n  {command} " in done.stdout


@pytest.mark.parametrize("arguments", [[], ["config"]])
def test_a_group_alone_prints_its_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert pipeline.run(arguments) == 0
    assert "Usage: pipeline" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["hravest"], "unknown command 'hravest'; did you mean 'harvest'? (known: harvest, train, ", "pipeline --help"),
        (["config", "schem"], "unknown command 'schem'; did you mean 'schema'?", "pipeline config --help"),
        (["train", "--varaint", "x"], "no such option '--varaint'. Did you mean '--variant'?", "pipeline train --help"),
        (["inspect"], "missing argument 'PATH'", "pipeline inspect --help"),
        (["harvest", "extra"], "got unexpected extra argument", "pipeline harvest --help"),
    ],
)
def test_usage_errors(arguments: list[str], message: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert pipeline.run(arguments) == 2
    out, err = capsys.readouterr()
    first, second = err.splitlines()
    assert first.startswith(f"error: {message}")
    assert second == f"next: {hint}"
    assert out == ""


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Makes `pipeline status` raise a given error."""

    def install(error: BaseException) -> None:
        def status(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(commands.cli.commands["status"], "callback", status)

    return install


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (DataError("no cache", "pipeline harvest"), 3, "error: no cache\nnext: pipeline harvest\n"),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
        (click.exceptions.Abort(), 130, "error: interrupted\n"),
        (OSError(28, "No space left on device"), 1, "free some space, then run the same command again"),
        (RuntimeError("odd"), 1, "error: RuntimeError: odd\nnext: pipeline status --json --debug   (shows where)\n"),
    ],
)
def test_exit_codes(
    error: BaseException,
    code: int,
    text: str,
    failing: Callable[[BaseException], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    failing(error)
    assert pipeline.run(["status", "--json"]) == code
    out, err = capsys.readouterr()
    assert text in err
    assert "Traceback" not in err
    assert json.loads(out)["error"]["exit_code"] == code


def test_variants_are_listed_by_name() -> None:
    assert list(variants()) == sorted(variants())
    assert "matryoshka-tracked-pairs" in variants()


def test_debug_shows_the_traceback(
    failing: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str]
) -> None:
    failing(RuntimeError("odd"))
    assert pipeline.run(["status", "--debug"]) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_a_closed_pipe_is_not_an_error_message(failing: Callable[[BaseException], None], tmp_path: Path) -> None:
    code = (
        "import sys; from sparse_pipeline import commands, pipeline;"
        "commands.cli.commands['status'].callback = lambda **_: print('x' * 1_000_000, flush=True);"
        "sys.exit(pipeline.run(['status']))"
    )
    done = subprocess.run(
        f'{sys.executable} -c "{code}" | true', shell=True, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_interrupt(number: signal.Signals, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    code = (
        "import pathlib, signal, sys, time\nfrom sparse_pipeline import commands, pipeline\n"
        # a shell without job control starts background jobs, and so their children, with SIGINT ignored
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"def wait(**_):\n  pathlib.Path({str(ready)!r}).touch()\n  while True: time.sleep(0.01)\n"
        "commands.cli.commands['train'].callback = wait\n"
        "pipeline.main(['train', '--name', 'a'])"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while not ready.exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err == "error: interrupted\nnext: pipeline train --name a --resume\n"


def call(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Any:
    """The one JSON document that a command prints."""
    capsys.readouterr()
    found = pipeline.run([*arguments, "--json"])
    out, err = capsys.readouterr()
    assert found == code, err
    return json.loads(out)
