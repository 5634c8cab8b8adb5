"""Writes the generated pages: docs/commands.md, docs/configuration.md, docs/glossary.md, pipeline.yaml and the
parts below a mark of docs/results.md (from studies/results) and docs/scale.md (by pipeline plan).

    python docs/generate.py            # after changing a command, an option or a config class, or running a study

Needs the editable install of this checkout (`make lint` makes one). The tests compare the files with this output.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import click

from sparse_pipeline import pipeline
from sparse_pipeline.analyze.sweep.markdown import rows_seen, setup_text, tables
from sparse_pipeline.commands import CONTEXT, cli
from sparse_pipeline.resolve import pipeline_class, sweep_class
from sparse_pipeline.shared.config.docs import commented_yaml, markdown
from sparse_pipeline.shared.glossary import glossary_page

ROOT = Path(__file__).resolve().parent.parent

COMMANDS = r"""# Commands

The `--help` of every command. Written by `python docs/generate.py`.

Every command takes `--json` and prints exactly one JSON document on stdout; text and progress go to stderr. An error
says what was found, what was expected and the command to run next, and with `--json` the document is `{"error":
{"message", "hint", "exit_code", "problems"?}}`. `--debug` adds the traceback.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | failed |
| 2 | a flag or a setting is not valid |
| 3 | a cache or run is missing, incomplete, corrupt or with different settings |
| 130 | interrupted; one line says what is kept and how to resume |

## Completion

The shell completes commands, options, variants, reports, presets, the keys of `--set`, and the names of runs and
caches. One line in the shell's own start-up file turns it on:

| shell | line | file |
|---|---|---|
| bash (4.4 or later) | `eval "$(_PIPELINE_COMPLETE=bash_source pipeline)"` | `~/.bashrc` |
| zsh | `eval "$(_PIPELINE_COMPLETE=zsh_source pipeline)"` | `~/.zshrc` |
| fish | `_PIPELINE_COMPLETE=fish_source pipeline \| source` | `~/.config/fish/completions/pipeline.fish` |
"""

CONFIGURATION = """# Settings

Written by `python docs/generate.py` from the config classes: frozen dataclasses next to the code that they configure.
`pipeline config show` prints the current settings, `pipeline config schema` a JSON schema for editors, and
`pipeline config validate` checks files and presets, each with every variant.

Order of precedence: defaults < settings files (`-c`, in order) < variant (`--variant`) < `--set key=value` <
dedicated flags such as `--name`. Without `-c`, `pipeline.yaml` in the current folder is read if it exists.

- `-c` takes a file, the name of a preset (`shared/presets/`), or the folder of a cache or run: the settings frozen in
  it.
- YAML is read as version 1.2: `3e-4` is a number, `off` is text, a duplicate key is an error.
- Mappings merge, lists replace. Where `architecture` or `kind` changes, keys that the new one does not have are
  dropped. `null` removes a penalty or a report, `penalties: null` all of them.
- In a mapping of penalties or reports the keys are names that you choose; an entry without `kind` takes its key as
  its kind.
- Unknown keys, wrong types and unknown names are errors, listed all at once, with a suggestion.
"""

YAML = """# The embedded default, spelled out: the settings that every command uses unless told otherwise.
# A command run in the folder of this file reads it. Delete what you do not change: missing keys keep these values.
# Written by `python docs/generate.py`.

"""


def commands(command: click.Command, path: tuple[str, ...] = ("pipeline",)) -> Iterator[str]:
    """One section per command, groups before what is in them."""
    context = click.Context(command, info_name=" ".join(path), terminal_width=100, max_content_width=100)
    context.help_option_names = list(CONTEXT["help_option_names"])
    yield f"\n## `{' '.join(path)}`\n\n```text\n{command.get_help(context)}\n```\n"
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from commands(inner, (*path, name))


BEGIN = "<!-- from here on: written by docs/generate.py from studies/results -->"


LEADING = ("gemma-3-270m", "gemma-3-270m-dead", "gemma-3-270m-wide")
"""Studies of a real model: they come first, with the columns of COMPACT, so that a table fits a screen."""

COMPACT = (
    "fvu", "fvu_without_massive", "fvu_dims", "dead", "n_pairs_above", "n_pairs_above_without_massive", "step_ms",
)  # fmt: skip


def place(path: Path) -> tuple[bool, str, bool, str]:
    """Where the results in studies/results/STUDY/SIZE/ come on the page."""
    study, size = path.parts[-3:-1]
    return study not in LEADING, study, size != "demo", size


def results(folder: Path) -> Iterator[str]:
    """One section per study that has results, one part per size: the tables, the plots, the command."""
    study = ""
    for path in sorted(folder.glob("*/*/comparison.json"), key=place):
        document = json.loads(path.read_bytes())
        if path.parts[-3] in LEADING:
            document["columns"] = [column for column in document["columns"] if column["key"] in COMPACT]
        if path.parts[-3] != study:
            study = path.parts[-3]
            yield f"## {document['title']}\n\n{document['about'].strip()}"
        here = f"../studies/results/{study}/{path.parts[-2]}"
        yield f"### {document['title']}: {path.parts[-2]}"
        yield f"{setup_text(document)} {rows_seen(document)} Measured on {document['machine']}."
        yield f"<!-- not run: minutes or hours -->\n```console\n$ {document['command']}\n```"
        yield f"[Every run, and the command for each row]({here}/comparison.md) · [CSV]({here}/comparison.csv)"
        for title, table in tables(document):
            yield f"**{title}.**\n\n{table}"
        if document["missing"]:
            yield f"Not finished, and not in the tables: {', '.join(document['missing'])}."
        yield f"![Curves of all runs]({here}/curves.png)\n\n![Final figures]({here}/bars.png)"


def results_page(text: str, folder: Path) -> str:
    """The page of results with its generated part replaced; the text above the mark is kept."""
    head, mark, _ = text.partition(BEGIN)
    if not mark:
        raise ValueError(f"docs/results.md: mark not found: {BEGIN}")
    return head + BEGIN + "\n\n" + "\n\n".join(results(folder)) + "\n"


EXAMPLES = "<!-- examples: written by docs/generate.py -->"

GEMMA = ["-c", "gemma-2-2b-layer8", "--set", "analyze.max_tokens=1000000"]
EVERY_LAYER = ["--set", "harvest.sites=[layer_*.resid_mid, layer_*.mlp_out]", "--set", "train.sites=all"]
ALL_ROWS = ["--set", "train.data.tokens=null"]
TOPK = ["--set", "train.coder.architecture=topk"]
ONE_SITE = ["--set", "harvest.sites=[layer_12.resid_mid]", "--set", "train.source=layer_12.resid_mid"]
ONE_SITE += ["--set", "train.target=null"]
PLANS = {
    "Every layer of Gemma-2-2B, one billion tokens, eight H100": [
        *(*GEMMA, "--devices", "8", "--set", "harvest.tokens=1000000000"),
        *(*EVERY_LAYER, *ALL_ROWS),
    ],
    "A transcoder of 131,072 latents for each of its layers": [
        *(*GEMMA, "--devices", "8", "--device", "h200", "--set", "harvest.tokens=200000000"),
        *(*EVERY_LAYER, *ALL_ROWS, *TOPK, "--set", "train.coder.latents=131072"),
    ],
    "One SAE of 1,048,576 latents": [
        *(*GEMMA, "--set", "harvest.tokens=500000000"),
        *(*ONE_SITE, *ALL_ROWS, *TOPK, "--set", "train.coder.latents=1048576"),
    ],
}
"""Heading → arguments of `pipeline plan`."""


def examples() -> Iterator[str]:
    """The worked examples of docs/scale.md: what the command prints."""
    for title, arguments in PLANS.items():
        out, screen = io.StringIO(), mock.patch.dict(os.environ, COLUMNS="80")
        with screen, contextlib.redirect_stdout(out), contextlib.chdir(ROOT / "docs"):  # where no pipeline.yaml is read
            if pipeline.run(["plan", *arguments]) != 0:
                raise RuntimeError(f"pipeline plan {shlex.join(arguments)}")
        command = shlex.join(["pipeline", "plan", *arguments])
        yield f"### {title}"
        yield f"<!-- not run: the test of the generated pages runs it -->\n```console\n$ {command}\n```"
        yield f"```text\n{out.getvalue().rstrip()}\n```"


def scale_page(text: str) -> str:
    """The page with its examples replaced; the text above the mark is kept."""
    return text.partition(EXAMPLES)[0] + EXAMPLES + "\n\n" + "\n\n".join(examples()) + "\n"


def pages() -> dict[Path, str]:
    """Path and text of every generated file."""
    cls = pipeline_class()
    return {
        ROOT / "docs/commands.md": COMMANDS + "".join(commands(cli)),
        ROOT / "docs/configuration.md": CONFIGURATION + "\n" + markdown(sweep_class()),
        ROOT / "docs/glossary.md": glossary_page(),
        ROOT / "pipeline.yaml": YAML + commented_yaml(cls()),
        ROOT / "docs/results.md": results_page(
            (ROOT / "docs/results.md").read_text(encoding="utf-8"), ROOT / "studies/results"
        ),
    }


if __name__ == "__main__":
    scale = ROOT / "docs/scale.md"  # apart: its plans take a minute
    for path, text in (pages() | {scale: scale_page(scale.read_text(encoding="utf-8"))}).items():
        path.write_text(text, encoding="utf-8")
