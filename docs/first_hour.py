"""Records docs/first-hour.md: the commands of a first hour, run on a terminal of 80 columns.

    python docs/first_hour.py record [FOLDER]    # minutes: run every command, keep what the terminal showed
    python docs/first_hour.py                    # write the page from the captures that are kept

The commands run in a new folder, or in FOLDER, where an interrupted recording continues. The captures are in
docs/first-hour.json. The tests check that the page is the one that they give, that each command
still parses, and that its settings are valid.
"""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).resolve().parent
CAPTURES, PAGE = DOCS / "first-hour.json", DOCS / "first-hour.md"
WIDTH = 80

SWEEP = """# sweep.yaml: does a wider dictionary pay?
sweep:
  name: width
  variants: {topk: topk}
  grid:
    coder.latents: [256, 512]
  seeds: [0, 1]
  baseline: topk-latents=256
train:
  cache: notes
  log_every: 5
  data: {epochs: 2, batch_size: 256}
analyze:
  max_tokens: 16384
  reports: {top_activations: null}
"""

HEAD = """# The first hour

From the installation to labelled latents, as a terminal of 80 columns shows it. Written by `python docs/first_hour.py`,
which ran these commands one after the other in a new folder; nothing is edited but lines that are left out, marked
`[…]`. The machine has two cores, no GPU, and much other work beside this: its times are several times what an idle one
takes. Lines below a table explain its columns; [the glossary](glossary.md) has the rest.

## Install

<!-- not run: this installs -->
```console
$ git clone <this repository> pipeline && cd pipeline
$ python3 -m venv .venv && source .venv/bin/activate
$ pip install -e .
```
"""


@dataclass(frozen=True)
class Step:
    """One part of the page: a heading, what to look at, the commands; `most`: lines of output to show."""

    title: str
    text: str
    commands: tuple[str, ...]
    most: int = 40


STEPS = (
    Step("Is it there?", "", ("pipeline --version",)),
    Step(
        "Demo",
        "A small language model and its text are in the package. Here on a quarter of its text, to be quick; without "
        "the setting, all of it.",
        ("pipeline demo --set harvest.tokens=64k", "pipeline status"),
    ),
    Step(
        "Your own text",
        "Here: this repository's pages, one text file each. The plan first, it writes nothing.",
        (
            "pipeline harvest --dry-run --set 'harvest.dataset=notes/*.txt' --set harvest.name=notes "
            "--set harvest.tokens=32k --set harvest.shard_rows=4096",
            "pipeline harvest --set 'harvest.dataset=notes/*.txt' --set harvest.name=notes "
            "--set harvest.tokens=32k --set harvest.shard_rows=4096",
            "pipeline inspect notes",
        ),
    ),
    Step(
        "Three variants, two seeds",
        "Six runs side by side on one read of the cache.",
        (
            "pipeline train --variant topk --variant batchtopk --variant matryoshka --seeds 2 --name notes "
            "--set train.cache=notes --set train.data.batch_size=256 --set train.data.epochs=2",
        ),
    ),
    Step(
        "Sweep",
        "A file names the settings; the comparison is one table, one page and plots.",
        ("pipeline sweep sweep.yaml",),
    ),
    Step(
        "Report",
        "Each run beside its control; runs that differ in their seed alone are pooled.",
        ("pipeline analyze notes-topk-seed0 notes-topk-seed1 notes-matryoshka-seed0 --set analyze.name=notes",),
    ),
    Step(
        "Explain",
        "One line on what each latent fires on, scored beside controls. The rules need no language model.",
        (
            "pipeline explain notes-topk-seed0 --set explain.count=12",
            "pipeline ask notes-topk-seed0 'the cache holds activations' --top 2",
        ),
    ),
    Step("What is there now", "", ("pipeline status",)),
)


def screen(raw: str) -> list[str]:
    """The lines that a terminal shows after this output: colours dropped, lines redrawn in place."""
    lines, row, column = [""], 0, 0
    for part in re.split(r"(\x1b\[[0-9;?]*[A-Za-z]|\r|\n)", raw):
        if part == "\n":
            row += 1
            lines += [""] * (row - len(lines) + 1)
        elif part == "\r":
            column = 0
        elif (move := re.fullmatch(r"\x1b\[(\d*)A", part)) is not None:
            row = max(0, row - int(move[1] or 1))
        elif part == "\x1b[2K":
            lines[row] = ""
        elif part and not part.startswith("\x1b"):
            lines[row] = lines[row][:column].ljust(column) + part + lines[row][column + len(part) :]
            column += len(part)
    return [line.rstrip() for line in lines]


def terminal(command: str, folder: Path) -> str:
    """What a terminal of WIDTH columns shows of a command in a folder; long lines are folded, as it would.

    Raises:
        RuntimeError: the command failed.
    """
    here, there = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(WIDTH), "LINES": "50", "TERM": "xterm"}
    words = [sys.executable, "-m", "sparse_pipeline", *shlex.split(command)[1:]]
    running = subprocess.Popen(words, cwd=folder, env=environment, stdin=there, stdout=there, stderr=there)
    os.close(there)
    raw = b""
    while True:
        try:
            more = os.read(here, 1 << 16)
        except OSError:  # the other side is closed
            break
        if not more:
            break
        raw += more
    os.close(here)
    shown = "\n".join(screen(raw.decode())).strip("\n")
    if running.wait() != 0:
        raise RuntimeError(f"{command}\n{shown}")
    return "\n".join(line[at : at + WIDTH] for line in shown.split("\n") for at in range(0, max(1, len(line)), WIDTH))


def record(folder: Path) -> None:
    """Runs every command in the folder, beside the own text and the file of the sweep, and keeps the captures."""
    captures: dict[str, str] = {}
    if (folder / "sweep.yaml").exists():
        captures = json.loads(CAPTURES.read_text(encoding="utf-8"))
    else:
        (folder / "notes").mkdir(parents=True)
        for source in sorted(DOCS.glob("*.md")):
            if source != PAGE:
                (folder / "notes" / f"{source.stem}.txt").write_text(
                    source.read_text(encoding="utf-8"), encoding="utf-8"
                )
        (folder / "sweep.yaml").write_text(SWEEP, encoding="utf-8")
    for number, command in enumerate(command for step in STEPS for command in step.commands):
        if (key := f"{number:02d} {command}") not in captures:
            print(command, file=sys.stderr, flush=True)
            captures[key] = terminal(command, folder)
            CAPTURES.write_text(json.dumps(captures, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def shown(text: str, most: int) -> str:
    """At most so many lines: the first two thirds and the last."""
    lines = text.splitlines()
    if len(lines) <= most:
        return text
    first = 2 * most // 3
    return "\n".join([*lines[:first], "[…]", *lines[len(lines) - (most - first) :]])


def page(captures: dict[str, str]) -> str:
    """The page of these captures.

    Raises:
        KeyError: a command has no capture.
    """
    parts, number = [HEAD.rstrip()], 0
    for step in STEPS:
        parts.append(f"## {step.title}")
        parts += [step.text] if step.text else []
        if "sweep" in step.commands[0]:
            parts.append(f"```text\n{SWEEP.rstrip()}\n```")
        for command in step.commands:
            capture = shown(captures[f"{number:02d} {command}"], step.most)
            prompt = " \\\n    --".join(command.split(" --")) if len(command) > WIDTH - 2 else command
            parts.append(f"```text\n$ {prompt}\n{capture}\n```")
            number += 1
    parts.append(
        "Next: [the tutorial](tutorial.ipynb) from text to a latent's meaning, [how to read a report](analysis.md), "
        "[sweeps](sweeps.md), [your own model](inputs.md)."
    )
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    if sys.argv[1:2] == ["record"]:
        with tempfile.TemporaryDirectory() as made:
            record(Path(sys.argv[2]) if len(sys.argv) > 2 else Path(made))
    PAGE.write_text(page(json.loads(CAPTURES.read_text(encoding="utf-8"))), encoding="utf-8")
