"""One template, many layers: a coder for each, trained on one read of the cache, with one table of all."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..shared.cache.files import write_file
from ..shared.cache.format import SiteSpec
from ..shared.console import Console
from ..shared.errors import UsageError
from ..shared.runs.folder import fvu_label
from ..shared.text_table import explained_table
from .config import TrainConfig
from .fits import refuse_too_large
from .loop import train
from .parts import side_by_side
from .plan import plan
from .runs.session import existing_runs, open_runs, summarise, unfinished
from .runs.summary import RunSummary

_LAYER = re.compile(r"layer_\d+\.")


def by_layer(config: TrainConfig, sites: Mapping[str, SiteSpec]) -> list[TrainConfig]:
    """The run of each layer that `sites` names; the config itself where it names none.

    `source` and `target` are the template: a kind of site, or a site of any layer, whose layer is replaced.

    Args:
        sites: those of the cache.

    Raises:
        UsageError: a layer lacks one of the two sites, or no layer of the cache has both.
    """
    if config.sites is None:
        return [config]
    kinds = [_LAYER.sub("", site) for site in (config.source, config.target_site)]
    names = {(spec.layer, str(spec.kind)): spec.name for spec in sites.values() if spec.layer is not None}
    here = sorted({layer for layer, _ in names if all((layer, kind) in names for kind in kinds)})
    wanted = here if config.sites == "all" else list(config.sites)
    missing = [layer for layer in wanted if layer not in here]
    if missing or not wanted:
        what = f"layers {', '.join(map(str, missing))} lack" if missing else "no layer has"
        raise UsageError(
            f"train.sites: {what} {' and '.join(dict.fromkeys(kinds))} in this cache (layers that have: "
            f"{', '.join(map(str, here)) or 'none'})",
            "pipeline harvest --set 'harvest.sites=[layer_*.resid_mid, layer_*.mlp_out]'   (harvests every layer)",
        )
    digits = max(2, len(str(max(wanted))))
    return [
        replace(
            config,
            sites=None,
            source=names[layer, kinds[0]],
            target=None if config.target is None else names[layer, kinds[1]],
            name=f"{config.run_name}-layer_{layer:0{digits}d}",
        )
        for layer in wanted
    ]


FILE_WIDTH = 120
"""Columns of the table in a file, whatever the terminal has."""


@dataclass(frozen=True)
class Layers:
    """The summaries of runs by layer, and the files of their table."""

    summaries: list[RunSummary]
    rows: list[dict[str, Any]]
    files: list[Path]

    def to_dict(self) -> dict[str, Any]:
        return {
            "runs": [summary.to_dict() for summary in self.summaries],
            "layers": self.rows,
            "files": [str(path) for path in self.files],
        }

    def __str__(self) -> str:
        return "\n".join([_table(self.rows), *(f"table: {path}" for path in self.files)])


def train_layers(
    configs: Sequence[TrainConfig], name: str, console: Console | None = None, resume: bool = False
) -> Layers:
    """Train the runs of several layers (train_in_parts), and write one table of them.

    Args:
        configs: as `by_layer` gives them.
        name: of the table: runs/NAME-layers.{md,json}.

    Raises: as train.loop.train. Runs that are finished or saved stay; --resume continues them.
    """
    summaries = train_in_parts(configs, console, resume)
    rows = [_row(config, summary) for config, summary in zip(configs, summaries, strict=True)]
    base = configs[0].runs / f"{name}-layers"
    text = f"# {name}, by layer\n\n```text\n{_table(rows, FILE_WIDTH)}\n```\n"
    document = json.dumps({"name": name, "layers": rows}, indent=2, ensure_ascii=False) + "\n"
    files = [base.with_name(base.name + suffix) for suffix in (".md", ".json")]
    for path, content in zip(files, (text, document), strict=True):
        write_file(path, [content.encode()])
    return Layers(summaries, rows, files)


def train_in_parts(
    configs: Sequence[TrainConfig], console: Console | None = None, resume: bool = False
) -> list[RunSummary]:
    """Train runs side by side, as many at a time as memory allows. Raises: as train.loop.train."""
    console = console or Console(quiet=True)
    groups = plan(configs).groups
    refuse_too_large(unfinished(groups))
    existing_runs(groups, resume)
    wanted = {config.path for config in configs}
    parts = [part for group in groups for part in side_by_side(group, None, wanted)]
    for number, part in enumerate(parts, 1):
        if len(parts) > 1:
            console.info(f"part {number} of {len(parts)}: {', '.join(config.run_name for config in part)}")
        train(part, console, resume=resume)
    runs = open_runs(groups, resume=True)
    return [summarise(runs[config.path], config) for config in configs]


def _row(config: TrainConfig, summary: RunSummary) -> dict[str, Any]:
    found = _LAYER.match(config.source)
    return {
        "layer": int(found[0][6:-1]) if found else None,
        "variant": config.variant or config.coder.architecture,
        "source": config.source,
        "target": config.target_site,
        **{key: getattr(summary, key) for key in ("name", "fvu", "fvu_dims", "fvu_untrained", "l0", "dead", "seconds")},
        "evaluated_on": summary.evaluated_on,
    }


def _table(rows: Sequence[Mapping[str, Any]], width: int | None = None) -> str:
    fvu = fvu_label(rows[0]["evaluated_on"])
    header = ("layer", "variant", "source", "target", fvu, "per dim.", "untrained", "L0", "dead")

    def number(value: float | None, digits: int = 4) -> str:
        return "–" if value is None else f"{value:.{digits}f}"

    body = [
        (
            str(row["layer"]),
            row["variant"],
            row["source"],
            row["target"],
            number(row["fvu"]),
            number(row["fvu_dims"]),
            number(row["fvu_untrained"]),
            number(row["l0"], 1),
            str(row["dead"]),
        )
        for row in rows
    ]
    return explained_table(body, header, left=(1, 2, 3), breaks=(2, 3, 1), width=width)
