"""Sweeps: variants × a grid × seeds over one cache, trained side by side; finished runs are not trained again."""

from __future__ import annotations

import itertools
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..shared.config.registry import did_you_mean
from ..shared.config.settings import identity, merge, to_dict, validate
from ..shared.console import Console, count, si, size
from ..shared.errors import ConfigError, UsageError
from ..shared.ranks import Rank
from ..shared.text_table import explained_table
from .config import SWEEPS, TrainConfig
from .loop import train
from .parts import side_by_side, state_of
from .plan import TrainPlan, plan
from .runs.session import existing_runs


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """The settings that a sweep varies, its seeds, and the folder of its comparison."""

    name: str
    """Name of the sweep: the prefix of its runs' names, and the folder of its comparison."""
    size: str | None = None
    """Name of the size in use (demo, …), part of the names of runs and folder; set by `--size`."""
    sizes: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Other sizes of this sweep, by name: settings (`train`, `sweep`, …) that override this file with `--size NAME`."""
    title: str = ""
    """Heading of the comparison; empty: the name."""
    about: str = ""
    """The question of the sweep and its background; printed above the comparison."""
    base: tuple[str, ...] | None = None
    """Presets or settings files that the sections of this file override; null: ./pipeline.yaml, if it exists."""
    variants: dict[str, str | dict[str, Any]] = field(default_factory=dict)
    """Settings to compare, by name: a variant's name, or train settings (with `variant`, they override that
    variant)."""
    grid: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    """Values of train settings, by dotted key; every combination is trained for every variant."""
    seeds: tuple[int, ...] = ()
    """Train each setting once per seed; empty: once, with train.seed."""
    baseline: str | None = None
    """The setting that others are compared with; null: the first."""
    at_once: int | None = None
    """Runs that train side by side on one read of the data; null: as many as fit in half of the free memory."""
    harvest: bool = False
    """Harvest the cache first if it is missing, with the settings of the harvest section."""
    out: Path = SWEEPS
    """Folder of comparisons."""
    plots: tuple[Literal["png", "svg"], ...] = ("png", "svg")
    """File formats of the plots."""

    def __post_init__(self) -> None:
        for what, text in (("name", self.name), ("size", self.size)):
            if text is not None and (not text or text.startswith(".") or "/" in text):
                raise ValueError(f"{what}: {text!r} cannot be part of the name of a folder")
        for key, values in self.grid.items():
            if not values:
                raise ValueError(f"grid.{key} has no values")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: a seed is given twice in {list(self.seeds)}")
        if self.at_once is not None and self.at_once < 1:
            raise ValueError(f"at_once must be at least 1 or null, not {self.at_once}")

    @property
    def label(self) -> str:
        """Name and size."""
        return self.name if self.size is None else f"{self.name}-{self.size}"

    @property
    def folder(self) -> Path:
        """Where the comparison goes."""
        return self.out / self.name if self.size is None else self.out / self.name / self.size


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        setting: what is compared: the variant and the grid's values, without the seed.
    """

    setting: str
    seed: int
    config: TrainConfig


# --- from the file to the runs --------------------------------------------------------------------------------------


def expand(
    sweep: SweepConfig,
    base: Mapping[str, Any],
    overlay_of: Callable[[str], Mapping[str, Any]],
    finish: Callable[[dict[str, Any]], dict[str, Any]] = dict,
) -> list[Cell]:
    """Every run of a sweep: variants × grid × seeds, in that order.

    Args:
        base: the train section that variants and grid override.
        overlay_of: train settings of a named variant, `variant` included. Raises UsageError for an unknown one.
        finish: applied to every run's settings last (`--set`).

    Raises:
        ConfigError: settings of a run do not validate.
        UsageError: two runs would have the same name or the same settings; the baseline is not among the settings.
    """
    cells = []
    for name, variant in (sweep.variants or {"": {}}).items():
        own = {"variant": variant} if isinstance(variant, str) else dict(variant)
        shipped = own.pop("variant", None)
        settings = dict(base)
        if shipped is not None:
            settings = merge(settings, overlay_of(str(shipped)), TrainConfig)
        settings = merge(settings, own, TrainConfig)
        for values in itertools.product(*sweep.grid.values()):
            point = dict(zip(sweep.grid, values, strict=True))
            label = "-".join(part for part in (name, *_point_names(sweep.grid, point)) if part) or "base"
            whole = settings
            for key, value in point.items():
                whole = merge(whole, nested(key, value), TrainConfig)
            whole = finish(whole)
            for seed in sweep.seeds or (whole["seed"],):
                run = f"{sweep.label}-{label}" + (f"-seed{seed}" if sweep.seeds else "")
                cells.append(Cell(label, seed, _validated({**whole, "seed": seed, "name": run}, f"{label}: train")))
    _refuse_twins(cells)
    labels = list(dict.fromkeys(cell.setting for cell in cells))
    if sweep.baseline is not None and sweep.baseline not in labels:
        close = did_you_mean(sweep.baseline, labels)
        raise UsageError(f"sweep.baseline: no such setting: {sweep.baseline!r}{close}", f"one of: {', '.join(labels)}")
    return cells


def nested(key: str, value: Any) -> dict[str, Any]:
    """ "a.b" and 3 → {"a": {"b": 3}}."""
    for part in reversed(key.split(".")):
        value = {part: value}
    result: dict[str, Any] = value
    return result


def _point_names(grid: Mapping[str, tuple[Any, ...]], point: Mapping[str, Any]) -> list[str]:
    """ "k=16" for each key: its last word (more, where two keys end alike) and its value (its place, if it has no
    short text)."""
    names = []
    for key, value in point.items():
        words = key.split(".")
        short = next(
            ".".join(words[-n:])
            for n in range(1, len(words) + 1)
            if n == len(words) or sum(other.split(".")[-n:] == words[-n:] for other in grid) == 1
        )
        plain = value if isinstance(value, str) else json.dumps(value)
        usable = isinstance(value, (str, int, float)) or value is None
        text = plain.replace("/", "_") if usable and len(plain) <= 40 else f"#{grid[key].index(value) + 1}"
        names.append(f"{short}={text}")
    return names


def _validated(settings: dict[str, Any], where: str) -> TrainConfig:
    return validate(TrainConfig, settings, where)


def _refuse_twins(cells: Sequence[Cell]) -> None:
    names: dict[Path, Cell] = {}
    same: dict[str, Cell] = {}
    for cell in cells:
        other = names.setdefault(cell.config.path, cell)
        if other is not cell:
            raise UsageError(f"two runs of the sweep would be named {cell.config.run_name}", "name the variants apart")
        settings = to_dict(cell.config)
        key = identity({name: value for name, value in settings.items() if name not in ("name", "variant")})
        other = same.setdefault(key, cell)
        if other is not cell:
            raise UsageError(
                f"{other.setting} and {cell.setting} are the same settings (seed {cell.seed})",
                "remove one of them; --set of a key that the sweep varies makes settings equal",
            )


def check_sets(sweep: SweepConfig, keys: Sequence[str]) -> None:
    """Refuse `--set train.KEY=…` where the sweep itself sets KEY. Raises ConfigError."""
    decided = {key: f"sweep.grid varies it: --set 'sweep.grid={{{key}: [VALUE]}}'" for key in sweep.grid}
    decided |= {"name": "runs are named after the sweep: --set sweep.name=NAME"}
    if sweep.seeds:
        decided |= {"seed": "sweep.seeds decides it: --set sweep.seeds=[SEED]"}
    problems = [
        f"--set train.{key}: {reason}"
        for key in keys
        for other, reason in decided.items()
        if key == other or key.startswith(f"{other}.") or other.startswith(f"{key}.")
    ]
    if problems:
        raise ConfigError(problems, "pipeline sweep FILE --dry-run   (lists the runs)")


# --- the plan and the work ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SweepPlan:
    """The runs of a sweep, and in which parts they train.

    Attributes:
        parts: the runs that train side by side, in order; finished runs are in none.
    """

    sweep: SweepConfig
    cells: list[Cell]
    train: TrainPlan
    parts: list[list[TrainConfig]]

    def to_dict(self) -> dict[str, Any]:
        """The --json document of a dry run."""
        groups = {config.path: group for group in self.train.groups for config in group.configs}
        sizes = {run["name"]: run for group in self.train.groups for run in group.to_dict()["runs"]}
        turn = {config.path: number for number, part in enumerate(self.parts, 1) for config in part}
        runs = [
            {
                "setting": cell.setting,
                "seed": cell.seed,
                "state": state_of(cell.config),
                "part": turn.get(cell.config.path),
                "steps": groups[cell.config.path].steps,
                "tokens": groups[cell.config.path].steps * cell.config.data.batch_size,
                **sizes[cell.config.run_name],
            }
            for cell in self.cells
        ]
        return {
            "sweep": self.sweep.label,
            "folder": str(self.sweep.folder),
            "runs": runs,
            "parts": [[config.run_name for config in part] for part in self.parts],
            "bytes": max((sum(sizes[c.run_name]["bytes"] for c in part) for part in self.parts), default=0),
        }

    def __str__(self) -> str:
        document = self.to_dict()
        header = ("setting", "seed", "state", "part", "steps", "tokens", "architecture", "latents", "memory")
        rows = [
            (
                run["setting"],
                str(run["seed"]),
                run["state"],
                "–" if run["part"] is None else str(run["part"]),
                f"{run['steps']:,}",
                si(run["tokens"]),
                run["architecture"],
                f"{run['latents']:,}",
                size(run["bytes"]),
            )
            for run in document["runs"]
        ]
        lines = [explained_table(rows, header, left=(0, 2, 6), breaks=0)]
        left = sum(map(len, self.parts))
        lines.append(
            f"{count(len(self.cells), 'run')}, {left} to train in {count(len(self.parts), 'part')}; "
            f"runs of one part share each batch that is read, at most {size(document['bytes'])} of weights, gradients "
            "and moments at a time"
        )
        lines.append(f"comparison: {document['folder']}")
        return "\n".join(lines)


def plan_sweep(
    sweep: SweepConfig, cells: Sequence[Cell], only: Sequence[str] = (), share: Rank | None = None
) -> SweepPlan:
    """Plan the unfinished runs; everything that can be refused is refused here.

    Args:
        only: the settings to train; empty: all.
        share: of several processes, the one that trains; None: there is one.

    Raises:
        UsageError: a run would take too few steps, a site is not in the cache, `only` names an unknown setting.
        DataError: the cache is missing; a run of that name has different settings (every difference is listed).
    """
    labels = list(dict.fromkeys(cell.setting for cell in cells))
    for name in only:
        if name not in labels:
            close = did_you_mean(name, labels)
            raise UsageError(f"--only {name}: no such setting{close}", f"one of: {', '.join(labels)}")
    planned = plan([cell.config for cell in cells])
    existing_runs(planned.groups, resume=True)
    chosen = [cell for cell in cells if not only or cell.setting in only]
    wanted = {cell.config.path for cell in (share or Rank()).part(chosen)}
    parts = [part for group in planned.groups for part in side_by_side(group, sweep.at_once, wanted)]
    return SweepPlan(sweep, list(cells), planned, parts)


def train_sweep(planned: SweepPlan, console: Console) -> None:
    """Train what is unfinished, part by part.

    Raises: as train.loop.train. Finished and saved runs stay; the same command resumes from there.
    """
    done = sum(state_of(cell.config) == "finished" for cell in planned.cells)
    if done:
        console.info(f"{done} of {len(planned.cells)} runs are finished already")
    for number, part in enumerate(planned.parts, 1):
        console.info(f"part {number} of {len(planned.parts)}: {', '.join(config.run_name for config in part)}")
        train(part, console, resume=True)


def portable_command(file: str, files: Sequence[str], sets: Sequence[str], size: str | None = None) -> str:
    """The command line for another machine: absolute paths become placeholders (CACHE for the value of train.cache)."""
    words = [file, *(["--size", size] if size else []), *itertools.chain.from_iterable(("-c", name) for name in files)]
    words = [Path(word).name if Path(word).is_absolute() else word for word in words]
    for text in sets:
        key, _, value = text.partition("=")
        words += ["--set", f"{key}={key.rpartition('.')[2].upper()}" if value.startswith(("/", "~", "..")) else text]
    return shlex.join(["pipeline", "sweep", *words])
