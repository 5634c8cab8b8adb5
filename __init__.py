"""Harvest a language model's activations once, train sparse coders on them many times, report what they learned.

    import sparse_pipeline as sp
    cache = sp.open_cache("cache/demo")
    coder = sp.load_coder("runs/demo-matryoshka")

Nothing heavy is imported before a function needs it, so importing this package is quick.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from .analyze.config import AnalyzeConfig
    from .analyze.run import AnalyzeResult
    from .harvest.config import HarvestConfig
    from .harvest.run import HarvestResult
    from .shared.cache.reader import Cache
    from .shared.coders.base import Coder
    from .shared.console import Console
    from .train.config import TrainConfig
    from .train.loop import RunSummary

__all__ = ["load_coder", "open_cache", "run_analyze", "run_harvest", "run_train"]

C = TypeVar("C")


def open_cache(path: Path | str, allow_incomplete: bool = False) -> Cache:
    """An activation cache, memory-mapped. Raises DataError when it is missing, incomplete or in another format."""
    from .shared.cache.reader import open_cache as opened

    return opened(Path(path), allow_incomplete=allow_incomplete)


def load_coder(path: Path | str, *, layer: int | None = None) -> Coder:
    """The coder of a run, or of another tool: a folder or file in any format that docs/interop.md lists as read.

    Args:
        path: the folder; or hf://owner/name[/folder] on the hub.
        layer: of a set of transcoders, the one of this layer.

    Raises:
        DataError: nothing that is read was found there, or it is damaged.
        UsageError: there are several coders; `layer` chooses one.
    """
    from .exchange.load import load_coder as loaded

    return loaded(path, layer=layer)


def run_harvest(
    config: HarvestConfig | Mapping[str, Any] | None = None, console: Console | None = None
) -> HarvestResult:
    """Write or resume a cache. A mapping overrides the defaults of the harvest section."""
    from .harvest.config import HarvestConfig
    from .harvest.run import harvest

    return harvest(_section(HarvestConfig, config, "harvest"), _console(console))


def run_train(
    configs: TrainConfig | Mapping[str, Any] | Sequence[TrainConfig | Mapping[str, Any]],
    console: Console | None = None,
    resume: bool = False,
) -> list[RunSummary]:
    """Train one coder, or several on one read of the data. A mapping overrides the defaults of the train section."""
    from .train.config import TrainConfig
    from .train.loop import train

    many = [configs] if isinstance(configs, (TrainConfig, Mapping)) else configs
    return train([_section(TrainConfig, one, "train") for one in many], _console(console), resume=resume)


def run_analyze(
    runs: Sequence[Path | str], config: AnalyzeConfig | Mapping[str, Any] | None = None, console: Console | None = None
) -> AnalyzeResult:
    """Report on one run, or compare several. A mapping overrides the defaults of the analyze section."""
    from .analyze.config import AnalyzeConfig
    from .analyze.run import analyze

    return analyze([Path(run) for run in runs], _section(AnalyzeConfig, config, "analyze"), _console(console))


def _console(console: Console | None) -> Console:
    from .shared.console import Console

    return console or Console(quiet=True)


def _section(cls: type[C], settings: C | Mapping[str, Any] | None, where: str) -> C:
    """The section's config: as given, or the defaults with the changes of a mapping."""
    from .shared.config.settings import merge, to_dict, validate

    if isinstance(settings, cls):
        return settings
    changes = cast("Mapping[str, Any]", settings or {})
    return validate(cls, merge(to_dict(cls()), changes, cls), where)
