"""Shell completion: what the shell may offer after `--variant`, `--set`, `-c`, a run's or a cache's name.

click writes the script of a shell and calls the program back for each TAB; `pipeline --help` says how to turn it on.
Nothing here may fail: a shell has no place to show an error.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from .resolve import pipeline_class, resolve, variants
from .shared.config import settings as settings_of
from .shared.errors import PipelineError

Offer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def offered(names: Callable[[], Iterable[str]], files: bool = False) -> Offer:
    """Completes to the names that begin as typed.

    Args:
        files: offer files too, where no name does.
    """

    def complete(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
        found: list[CompletionItem] = []
        with contextlib.suppress(PipelineError, OSError):
            found = [CompletionItem(name) for name in names() if name.startswith(typed)]
        return found or ([CompletionItem(typed, type="file")] if files else [])

    return complete


def keys() -> Iterable[str]:
    """`train.coder.k=` and every other key that `--set` takes."""
    return dict.fromkeys(f"{path}=" for path in settings_of.key_paths(pipeline_class()))


def reports() -> Iterable[str]:
    """Every report."""
    from .analyze.reports import REPORTS

    return REPORTS


def judges() -> Iterable[str]:
    """Every judge of explanations."""
    from .explain.judges import JUDGES

    return JUDGES


def _folders(*parents: Path) -> list[str]:
    return [path.name for parent in parents if parent.is_dir() for path in sorted(parent.iterdir()) if path.is_dir()]


def runs() -> Iterable[str]:
    """The runs of the settings in the current folder, by name."""
    return _folders(resolve().train.runs)


def caches_and_runs() -> Iterable[str]:
    """The caches and runs of the settings in the current folder, by name."""
    whole = resolve()
    return _folders(whole.harvest.cache_dir, whole.train.runs)


VARIANTS = offered(variants)
KEYS = offered(keys)
REPORTS = offered(reports)
JUDGES = offered(judges)
RUNS = offered(runs, files=True)
CACHES_AND_RUNS = offered(caches_and_runs, files=True)
SETTINGS = offered(settings_of.presets, files=True)
