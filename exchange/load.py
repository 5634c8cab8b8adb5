"""Reads a coder from anywhere: a run of ours, a folder in one of the formats, or a place on the hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..shared.cache import Cache
from ..shared.coders import Coder
from ..shared.coders import load_coder as load_own
from ..shared.coders.io import read_coder_config
from ..shared.errors import DataError, UsageError
from ..shared.runs.folder import open_run
from .facts import Facts, facts_of_run
from .formats import FORMATS, Part, recognise
from .hub import is_hub_path, local_folder
from .plain import coder_of

OWN = "run"

_WRONG = (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class Loaded:
    """A coder, and what is known of it.

    Attributes:
        coder: on the CPU, in evaluation mode.
        format: the name of its format; "run": a run of ours.
        path: the folder that it was read from.
        final: config.json of a run; empty for other formats.
    """

    coder: Coder
    facts: Facts
    format: str
    path: Path
    final: Mapping[str, Any]


def load_coders(path: Path | str, *, layer: int | None = None, cache: Cache | None = None) -> list[Loaded]:
    """Every coder of a folder, file or hub path.

    Args:
        layer: of a set of transcoders, only this layer's.
        cache: for the facts of a run; None: they stay as far as the run itself has them.

    Raises:
        DataError: no format is recognised, or the folder is damaged.
    """
    local = local_folder(path) if is_hub_path(path) else Path(path)
    own = _own_folder(local)
    if own is not None:
        final = read_coder_config(own)
        name = local.parent.name if local.name == "final" else local.name
        if not {"source", "target"} <= final.keys():
            raise DataError(f"{own / 'config.json'} does not name the sites of the coder", "give the run's folder")
        return [Loaded(load_own(own), facts_of_run(name, final, cache), OWN, local, final)]
    found = recognise(local)
    if found is None:
        raise _unknown(local)
    with _reading(local, found.name):
        parts = found.read(local, layer)
        if not parts:
            raise DataError(f"{local} holds no coder with latents")
        return [Loaded(_placed(part), _described(part), found.name, local, {}) for part in parts]


@contextmanager
def _reading(path: Path, name: str) -> Iterator[None]:
    """Whatever the values in another program's files run into is a fault of those files."""
    try:
        yield
    except _WRONG as error:
        text = str(error).strip().splitlines()
        raise DataError(
            f"{path} does not hold what {name} writes: {text[0] if text else type(error).__name__}",
            "write it again with the program that it is from",
        ) from error


def load_coder(path: Path | str, *, layer: int | None = None) -> Coder:
    """The one coder of a folder, file or hub path, on the CPU, in evaluation mode.

    Raises:
        DataError: no format is recognised, or the folder is damaged.
        UsageError: there are several; `layer` chooses one.
    """
    local = local_folder(path) if is_hub_path(path) else Path(path)
    own = _own_folder(local)
    if own is not None:
        return load_own(own)
    if (local / "config.yaml").is_file() and recognise(local) is None:
        return open_run(local).load_coder()  # not finished: its error says how to resume
    found = load_coders(local, layer=layer)
    if len(found) > 1:
        names = ", ".join(one.facts.name for one in found)
        raise UsageError(f"{path} holds {len(found)} coders: {names}", "layer=N, or the folder of one of them")
    return found[0].coder


def _own_folder(path: Path) -> Path | None:
    """The folder of a finished coder of ours: `path`, or the run's final/."""
    return next(
        (
            one
            for one in (path, path / "final")
            if (one / "coder.safetensors").is_file() and (one / "config.json").is_file()
        ),
        None,
    )


def _placed(part: Part) -> Coder:
    """The coder, with the sites that its metadata name."""
    coder = coder_of(part.plain)
    coder.source, coder.target = part.facts.source or None, part.facts.target or None
    return coder


def _described(part: Part) -> Facts:
    """The facts, with a note where the coder of ours is not the published one to the letter."""
    if getattr(part.plain.activation, "signed", False):
        note = "the tool's TopK keeps negative values on rows with fewer than k positive ones; here they are 0"
        return replace(part.facts, notes=(*part.facts.notes, note))
    return part.facts


def _unknown(path: Path) -> DataError:
    if not path.exists():
        return DataError(
            f"{path} was not found", "pipeline status   (lists runs; hf://owner/name names a coder on the hub)"
        )
    held = sorted(one.name for one in path.iterdir())[:12] if path.is_dir() else [path.name]
    readable = ", ".join(name for name, one in FORMATS.items() if one.readable)
    return DataError(
        f"{path} is in no format that is read here (found: {', '.join(held) or 'nothing'}; read: a run, {readable})",
        "give the folder that holds the weights and their config",
    )
