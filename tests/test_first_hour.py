"""docs/first-hour.md: it is what its script writes, and its commands and settings are those of today's program."""

from __future__ import annotations

import importlib.util
import json
import shlex
import sys
from pathlib import Path
from types import ModuleType

import click
import pytest

from sparse_pipeline.commands import cli
from sparse_pipeline.resolve import resolve

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("first_hour", ROOT / "docs/first_hour.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["first_hour"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_made_of_the_captures(script: ModuleType) -> None:
    captures = json.loads(script.CAPTURES.read_text(encoding="utf-8"))
    commands = [command for step in script.STEPS for command in step.commands]
    assert [key.split(" ", 1)[1] for key in captures] == commands
    assert script.PAGE.read_text(encoding="utf-8") == script.page(captures)
    assert all(len(line) <= script.WIDTH for text in captures.values() for line in text.splitlines())


def test_every_command_still_parses(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Options by the program's own parser, settings by the program's own schema."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweep.yaml").write_text(script.SWEEP, encoding="utf-8")
    for command in (command for step in script.STEPS for command in step.commands):
        name, *words = shlex.split(command)[1:]
        if name.startswith("-"):
            continue
        chosen = cli.get_command(click.Context(cli), name)
        assert chosen is not None, command
        chosen.make_context(name, words)
        sets = [word for at, word in enumerate(words) if at and words[at - 1] == "--set"]
        resolve((), sets, here=False)


def test_what_a_terminal_shows_is_what_is_left_on_its_screen(script: ModuleType) -> None:
    raw = "train: 10%\r\x1b[2Ktrain: \x1b[1m99%\x1b[0m\r\n  fvu\r\n\x1b[1A\x1b[2K\rdone\r\n"
    assert script.screen(raw) == ["train: 99%", "done", ""]
    assert script.shown("\n".join("abcdef"), 3).splitlines() == ["a", "b", "[…]", "f"]
