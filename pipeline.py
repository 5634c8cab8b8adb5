"""The front door: runs one command line, and turns whatever stops it into a message, a hint and an exit code.

The commands themselves are in commands.py, the settings they run with are resolved in resolve.py. Nothing heavy is
imported before a command needs it, so `pipeline --help` answers at once.
"""

from __future__ import annotations

import atexit
import difflib
import os
import re
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

import click
from click.shell_completion import shell_complete

from .commands import cli
from .shared.console import Console
from .shared.deadline import stop_signals
from .shared.errors import PipelineError, UsageError
from .shared.explain import explained
from .shared.folding import folded, width_of
from .shared.mapped import name_failed_mappings
from .shared.writable import provide

COMPLETE = "_PIPELINE_COMPLETE"
"""Set by a shell that wants its completion script, or what may follow a command line."""


_OPTIONS = re.compile(r"--[a-z][a-z-]*(?: [^\s-]\S*)?(?: --[a-z][a-z-]*(?: [^\s-]\S*)?)*")
"""A hint that is options alone, to be added to the command that failed."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script: run `arguments` (default: those of the process) and exit with the code of :func:`run`."""
    # GNU OpenMP lets an idle thread spin for about a millisecond, which costs nothing on an idle machine and nearly
    # everything on a shared one. Measured on two cores, `pipeline demo`: idle, 62 s by default and 68 s with this;
    # beside other work, 353 s and 95 s. It is read when torch is loaded, so it must be set before.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # without a network, no line for each of its retries
    if instruction := os.environ.get(COMPLETE):
        sys.exit(shell_complete(cli, {}, "pipeline", COMPLETE, instruction))
    if note := provide(os.environ):
        _say(f"note: {note}")
    for number in stop_signals()[1:]:
        signal.signal(number, _interrupt)
    given = list(sys.argv[1:] if arguments is None else arguments)
    name_failed_mappings(given)
    code = run(given)
    if any(thread.daemon for thread in threading.enumerate()):
        _leave(code)
    sys.exit(code)


def _leave(code: int) -> NoReturn:
    """Exit as sys.exit does, but without the interpreter's end, which a daemon thread in compiled code may not survive:
    stopped as it returns from there, it ends the process with "terminate called without an active exception"."""
    threading._shutdown()  # type: ignore[attr-defined]  # waits for the threads that are no daemons
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(code)


def _interrupt(number: int, frame: object) -> None:
    """SIGTERM and SIGHUP mean the same as Ctrl-C: stop at the next safe point."""
    raise KeyboardInterrupt


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; an error goes to stderr, with `--json` to stdout as well.

    Exit codes: 0 done, 1 failed, 2 usage or settings, 3 cache or run missing, incomplete, corrupt or with different
    settings, 130 interrupted.
    """
    arguments = list(arguments)
    try:
        with cli.make_context("pipeline", list(arguments)) as context:
            cli.invoke(context)
    except (KeyboardInterrupt, click.Abort) as stop:
        return _interrupted(arguments, str(stop))
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
    except click.ClickException as error:
        place = getattr(error, "ctx", None)
        path = place.command_path if place else "pipeline"
        return _failed(arguments, _plain_text(error), f"{path} --help", UsageError.exit_code)
    except PipelineError as error:
        return _failed(arguments, error.message, error.hint, error.exit_code, getattr(error, "problems", None))
    except BrokenPipeError:  # the reader of our output is gone, so there is nobody to report to
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except Exception as error:
        known = explained(error, shlex.join(["pipeline", *arguments]))
        if known is not None:
            return _failed(arguments, known.message, known.hint, known.exit_code)
        debug = shlex.join(["pipeline", *arguments, "--debug"])
        return _failed(arguments, f"{type(error).__name__}: {error}", f"{debug}   (shows where)", 1)
    return 0


def _failed(arguments: list[str], message: str, hint: str | None, code: int, problems: list[str] | None = None) -> int:
    if "--debug" in arguments:
        traceback.print_exc()
    if hint and _OPTIONS.fullmatch(hint.partition("   ")[0]):  # of an option given twice, the last counts
        options, gap, about = hint.partition("   ")
        hint = shlex.join(["pipeline", *arguments, *shlex.split(options)]) + gap + about
    for line in problems or [message]:
        _say(f"error: {line}")
    step, _, about = (hint or "").partition("   ")
    if step:
        _say(f"next: {step}")
    if about:
        _say(f"      {about}")
    if "--json" in arguments:
        details = {"problems": problems} if problems else {}
        Console(json=True).result({"error": {"message": message, "hint": hint, "exit_code": code, **details}})
    return code


def _say(text: str) -> None:
    print(folded(text, width_of(sys.stderr)), file=sys.stderr)


def _interrupted(arguments: list[str], kept: str) -> int:
    """One line: what is kept, and the command that resumes."""
    message = f"interrupted: {kept}" if kept else "interrupted"
    hint = _after_interrupt(arguments)
    if "--debug" in arguments:
        traceback.print_exc()
    _say(message + (f"; next: {hint}" if hint else ""))
    if "--json" in arguments:
        Console(json=True).result({"error": {"message": message, "hint": hint, "exit_code": 130}})
    return 130


def _plain_text(error: click.ClickException) -> str:
    """Click's message without its capital and its full stop, to match ours."""
    if isinstance(error, click.NoSuchOption) and error.possibilities:  # of several, the likeliest
        likely = difflib.get_close_matches(error.option_name, error.possibilities, 1, 0.7)
        return f"no such option {error.option_name!r}" + (f". Did you mean {likely[0]!r}?" if likely else "")
    text = " ".join(error.format_message().rstrip(".").split())
    return text[:1].lower() + text[1:]


def _after_interrupt(arguments: list[str]) -> str | None:
    """The command that resumes: the same one, for training and tuning with --resume."""
    if arguments[:1] not in (["harvest"], ["train"], ["tune"], ["sweep"], ["demo"]):
        return None
    extra = ["--resume"] if arguments[0] in ("train", "tune") and "--resume" not in arguments else []
    return shlex.join(["pipeline", *arguments, *extra])
