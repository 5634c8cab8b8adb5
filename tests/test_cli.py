"""The front door: help without heavy imports, one JSON document, exit codes, hints."""

from __future__ import annotations

import ast
import json
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.shell_completion import get_completion_class

from sparse_pipeline import commands, pipeline
from sparse_pipeline.analyze.reports import REPORTS
from sparse_pipeline.commands import CONTEXT, cli
from sparse_pipeline.pipeline import COMPLETE
from sparse_pipeline.resolve import refuse_folders, resolve_sweep, train_configs, variants
from sparse_pipeline.shared.coders import ARCHITECTURES
from sparse_pipeline.shared.config.registry import Registry
from sparse_pipeline.shared.errors import DataError, UsageError
from sparse_pipeline.shared.runs.folder import create_run
from sparse_pipeline.train.penalties import PENALTIES

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


WITHOUT_TENSORS = [
    (0, ["status"]),
    (0, ["config", "show", "--variant", "batchtopk"]),
    (2, ["train", "--variant", "topkk"]),
    (2, ["train", "--set", "train.coder.lantents=5"]),
    (2, ["harvest", "--set", "harvest.tokens=many"]),
    (2, ["analyze", "--only", "corelation"]),
    (3, ["inspect", "nowhere"]),
]
"""Exit code and command line."""


def test_what_needs_no_tensor_imports_no_torch(workshop: Path) -> None:
    """These answer in half a second; torch alone takes a second to import, SciPy and numba another."""
    program = (
        "import json, sys; from sparse_pipeline.pipeline import run\n"
        "codes = [run(words) for words in json.loads(sys.argv[1])]\n"
        "print(json.dumps([codes, sorted({name.partition('.')[0] for name in sys.modules})]))"
    )
    words = json.dumps([words for _, words in WITHOUT_TENSORS])
    done = subprocess.run(
        [sys.executable, "-c", program, words], cwd=workshop, capture_output=True, text=True, check=True
    )
    codes, loaded = json.loads(done.stdout.splitlines()[-1])
    assert codes == [code for code, _ in WITHOUT_TENSORS], done.stderr
    assert set(loaded) & {*HEAVY - {"numpy", "pydantic", "rich"}, "numba", "pyarrow", "pandas"} == set()


COMPLETIONS = {
    ("train", "--variant"): ("matryoshka-t", ["matryoshka-tracked-pairs"]),
    ("config", "show", "--variant"): ("gat", ["gated"]),
    ("train", "-c"): ("demo-l", ["demo-layer8"]),
    ("train", "--set"): ("train.coder.aux_", ["train.coder.aux_k=", "train.coder.aux_coef="]),
    ("analyze", "--only"): ("c", ["crosscoder", "correlation", "cross_entropy"]),
    ("analyze",): ("mat", ["matryoshka"]),
    ("inspect",): ("", ["demo", "matryoshka", "topk"]),
    ("verify",): ("de", ["demo"]),
    (): ("st", ["status"]),
}
"""Words before → (word begun, what a shell may offer), in a folder with a cache and two runs."""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes(
    shell: str, workshop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the class with which click answers this shell, and by the process that the shell's script calls back."""
    monkeypatch.chdir(workshop)
    found = {
        before: [
            item.value
            for item in get_completion_class(shell)(cli, {}, "pipeline", COMPLETE).get_completions([*before], begun)
        ]
        for before, (begun, _) in COMPLETIONS.items()
    }
    assert found == {before: names for before, (_, names) in COMPLETIONS.items()}
    monkeypatch.setenv(COMPLETE, f"{shell}_source")
    with pytest.raises(SystemExit) as stopped:
        pipeline.main([])
    assert stopped.value.code == 0
    assert f"{COMPLETE}={shell}_complete" in capsys.readouterr().out.replace("env ", "")


def test_completion_offers_files_where_no_name_fits_and_survives_bad_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pipeline.yaml").write_text("train: {no_such_key: 1}")
    complete = get_completion_class("zsh")(cli, {}, "pipeline", COMPLETE)
    assert [(item.type, item.value) for item in complete.get_completions(["analyze"], "x")] == [("file", "x")]
    assert [item.type for item in complete.get_completions(["train", "-c"], "./own")] == ["file"]


def test_help_lists_the_variants(capsys: pytest.CaptureFixture[str]) -> None:
    assert pipeline.run(["train", "--help"]) == 0
    listed = " ".join(capsys.readouterr().out.split("Variants: ")[1].split())
    assert listed == ", ".join(variants()) + "."


@pytest.mark.parametrize("registry", [ARCHITECTURES, PENALTIES, REPORTS], ids=["coders", "penalties", "reports"])
def test_what_a_registry_imports_late_is_what_its_settings_belong_to(registry: Registry[Any]) -> None:
    configs = registry.configs()
    assert {name: found.config_class for name, found in registry.items()} == configs


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
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (click.exceptions.Abort(), 130, "interrupted\n"),
        (OSError(28, "No space left on device"), 1, "next: free some space, then pipeline status --json\n"),
        (
            RuntimeError("odd"),
            1,
            "error: RuntimeError: odd\nnext: pipeline status --json --debug\n      (shows where)\n",
        ),
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


BUSY = """
import threading, time, torch
from sparse_pipeline import pipeline

def busy():
    while True:
        torch.linalg.svd(torch.randn(300, 300))

def run(arguments):
    threading.Thread(target=busy, daemon=True).start()
    time.sleep(0.3)
    print("said")
    return 130

pipeline.run = run
pipeline.main(["status"])
"""


def test_a_thread_in_compiled_code_does_not_change_the_exit_code() -> None:
    """The interpreter's ordinary end aborts (134) where such a daemon thread comes back from there."""
    done = subprocess.run([sys.executable, "-c", BUSY], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (130, "said\n", "")


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
    assert err == "interrupted; next: pipeline train --name a --resume\n"


def call(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Any:
    """The one JSON document that a command prints."""
    capsys.readouterr()
    found = pipeline.run([*arguments, "--json"])
    out, err = capsys.readouterr()
    assert found == code, err
    return json.loads(out)


def test_a_folder_without_the_settings_that_a_command_reads_is_refused(tmp_path: Path) -> None:
    """A tuned run would train the defaults, and a run would harvest them."""
    create_run(tmp_path, "x-tuned", {"tune": {"run": str(tmp_path / "x")}}, {})
    create_run(tmp_path, "x", {"variant": "topk", "cache": "cache/c"}, {})
    tuned, run = str(tmp_path / "x-tuned"), str(tmp_path / "x")
    for refused in (lambda: train_configs([tuned], [], []), lambda: resolve_sweep("no.yaml", [tuned])):
        with pytest.raises(UsageError, match="made by `pipeline tune`.*none of section train") as raised:
            refused()
        assert raised.value.hint == f"pipeline tune -c {tuned} --resume"
    with pytest.raises(UsageError, match="none of section harvest") as raised:
        refuse_folders([run], "harvest")
    assert raised.value.hint == "pipeline harvest -c cache/c"
    assert [one.run_name for one in train_configs([run], [], [])] == ["x"]


def test_options_in_a_hint_are_added_to_the_command_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Then it can be pasted; what it does stands apart from it."""
    monkeypatch.chdir(tmp_path)
    command = ["harvest", "--set", "harvest.ctx=1000000", "--set", "harvest.name=ab", "--dry-run"]
    assert pipeline.run(command) == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert last == f"next: {shlex.join(['pipeline', *command])} --set harvest.ctx=256"
    assert pipeline.run(["train", "--set", "train.coder.latents"]) == 2
    assert capsys.readouterr().err.splitlines()[-2:] == ["next: pipeline config show", "      (lists the keys)"]


def hints() -> list[tuple[str, str]]:
    """(place, command) of every text in the code that begins with a command to run."""
    found = []
    for name in subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True).stdout.split():
        if name.split("/")[0] in {"tests", "docs", "benchmarks", "recipes"}:
            continue
        for node in ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8"))):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            text = "".join(
                "X" if isinstance(one, ast.FormattedValue) else one.value
                for one in parts
                if isinstance(one, ast.FormattedValue) or (isinstance(one, ast.Constant) and isinstance(one.value, str))
            )
            if text.startswith("pipeline ") and not text.endswith(" ") and "\n" not in text:
                found.append((f"{name}:{node.lineno}", text.partition("   ")[0]))
    return found


def test_a_hint_that_begins_with_a_command_is_one() -> None:
    """Its options exist, and its arguments are names to fill in or values: prose behind it stands in brackets."""
    assert len(hints()) > 50
    for place, text in hints():
        words = shlex.split(text)[1:]
        command: click.Command | None = cli
        while words and isinstance(command, click.Group) and words[0] in command.commands:
            command = command.commands[words.pop(0)]
        assert not isinstance(command, click.Group), f"{place}: {text}"
        _, rest, _ = command.make_parser(click.Context(command, **CONTEXT)).parse_args(words)
        assert set(rest) <= {"X"}, f"{place}: {text}"
        values = [word for word in words if not word.startswith("-")]
        assert all(re.search(r"[A-Z=/]|layer_", word) for word in values), f"{place}: {text}"


MISTAKES = [
    (["harvest", "--set", "harvest.dataset=thesis.pdf", "--dry-run"], "harvest.dataset: not found: thesis.pdf"),
    (["analyze", "topk", "--set", "analyze.name=a/b"], "name: expected only letters"),
    (["import", "runs/topk", "--name", "a/b"], "--name: expected the name of a run, found 'a/b'"),
    (["export", "topk", "out"], "missing option '--to'. Choose from: saelens, circuit-tracer, sparsify"),
    (["harvest", "--resume"], "no such option '--resume'\n"),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES)
def test_a_mistake_is_named(
    words: list[str],
    message: str,
    workshop: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(workshop)
    monkeypatch.delenv("COLUMNS", raising=False)
    assert pipeline.run(words) == 2
    assert message in capsys.readouterr().err
