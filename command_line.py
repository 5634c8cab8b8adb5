"""What every command shares: groups that suggest a name, and the options for settings, --json and --debug."""

from __future__ import annotations

import dataclasses
import functools
import io
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from . import completion
from .shared.config.registry import did_you_mean
from .shared.console import Console
from .shared.deadline import seconds_of, time_limit
from .shared.errors import UsageError

if TYPE_CHECKING:
    from .harvest.config import HarvestConfig
    from .shared.ranks import Rank
    from .train.config import TrainConfig

F = TypeVar("F", bound=Callable[..., Any])
C = TypeVar("C", "HarvestConfig", "TrainConfig")


class Group(click.Group):
    """Lists commands in the order of the source, and suggests one for a mistyped name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            known = ", ".join(self.commands)
            close = did_you_mean(name, self.commands)
            raise UsageError(f"unknown command {name!r}{close} (known: {known})", f"{ctx.command_path} --help")
        return super().resolve_command(ctx, args)


CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def some_latents(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """The text of --latents. Raises UsageError for an empty one, which would mean all of them, or none."""
    if value is not None and not value.strip():
        raise UsageError("--latents names no latent", f"{ctx.command_path} --latents 3,14")
    return value


def common(function: F) -> F:
    """Adds the options that every command has; the command receives a console in their place."""

    @functools.wraps(function)
    def run(as_json: bool, debug: bool, **options: Any) -> Any:
        return function(Console(json=as_json), **options)

    run = click.option("--debug", is_flag=True, help="Show the traceback of an error.")(run)
    return cast(F, click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")(run))


def settings(function: F) -> F:
    """Adds the options that choose settings."""
    sets = click.option(
        "--set",
        "sets",
        multiple=True,
        metavar="KEY=VALUE",
        shell_complete=completion.KEYS,
        help="One setting; may be repeated.",
    )
    files = click.option(
        "-c",
        "--config",
        "files",
        multiple=True,
        metavar="FILE",
        shell_complete=completion.SETTINGS,
        help="Settings file or preset; may be repeated.",
    )
    return files(sets(function))


def several_variants(described: str) -> Callable[[F], F]:
    """Adds --variant, which may be repeated."""
    return click.option(
        "--variant", "names", multiple=True, metavar="NAME", shell_complete=completion.VARIANTS, help=described
    )


def shared_out(function: F) -> F:
    """Adds --ranks and --rank."""
    ranks = click.option(
        "--ranks", metavar="N|array", help="Share the work out to N processes; array: to the tasks of a SLURM array."
    )
    rank = click.option("--rank", type=int, metavar="I", help="Be process I of the N, counted from 0; start no others.")
    return ranks(rank(function))


def heard(this: Rank | None, console: Console) -> Console:
    """The console of a process: of those that torchrun started together, one speaks."""
    speaks = this is None or this.speaks
    return console if speaks else Console(quiet=True, json=console.json, out=io.StringIO())


def words_of(**options: Any) -> list[str]:
    """Options as the words of a command line: a flag for True, one for each of several values."""
    words = []
    for name, value in options.items():
        flag = "-c" if name == "files" else "--" + {"sets": "set", "names": "variant"}.get(name, name)
        if value is True:
            words.append(flag)
        elif value not in (None, False):
            words += [word for one in (value if isinstance(value, tuple) else (value,)) for word in (flag, str(one))]
    return words


def limited(function: F) -> F:
    """Adds --time-limit."""

    @functools.wraps(function)
    def run(limit: str | None, **options: Any) -> Any:
        with time_limit(None if limit is None else seconds_of(limit)):
            return function(**options)

    described = "Save and stop after this long (90s, 45m, 2h30m), with exit code 130; the same command resumes."
    return cast(F, click.option("--time-limit", "limit", metavar="TIME", help=described)(run))


dry_run = click.option("--dry-run", is_flag=True, help="Print the plan and write nothing.")


def placed(config: C) -> C:
    """The settings with the GPU of this process."""
    from .shared.ranks import local_device

    return dataclasses.replace(config, device=local_device(config.device, os.environ))
