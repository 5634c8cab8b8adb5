"""`pipeline sweep`: trains a grid of settings, and compares the runs."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from .command_line import common, dry_run, heard, limited, placed, settings, shared_out, words_of
from .resolve import resolve_sweep
from .shared.console import Console
from .shared.errors import UsageError

if TYPE_CHECKING:
    from .resolve import SweepFile
    from .train.sweep import Cell


@click.command("sweep")
@click.argument("file", metavar="FILE")
@click.option("--size", metavar="NAME", help="A size of the sweep: one of its sweep.sizes.")
@click.option("--only", multiple=True, metavar="SETTING", help="Train only this setting; may be repeated.")
@shared_out
@dry_run
@settings
@limited
@common
def sweep_command(
    console: Console,
    file: str,
    files: tuple[str, ...],
    sets: tuple[str, ...],
    size: str | None,
    only: tuple[str, ...],
    ranks: str | None,
    rank: int | None,
    dry_run: bool,
) -> None:
    """Train every setting that FILE lists, side by side where memory allows, and compare them.

    FILE has a section `sweep` beside the usual ones; -c and --set override it. Finished runs are not trained again,
    interrupted ones resume. The comparison covers every finished run: comparison.csv, .md and .json, and plots of all
    curves and of the final figures. Under torchrun, and with --ranks, each process trains its own share of the runs;
    the same command without them then makes the comparison (--ranks N does so itself).
    """
    from .shared.ranks import processes, rank_of, refuse_idle

    this = rank_of(ranks, rank, os.environ)
    console = heard(this, console)
    whole, cells = resolve_sweep(file, files, sets, size=size)
    if processes(this, ranks) > 1 and any(cell.config.parallel for cell in cells):
        raise UsageError("train.parallel: a sweep shares out whole runs", "--set train.parallel=null")
    console.info(f"sweep {whole.sweep.label}: {len(cells)} runs")
    from .train.sweep import plan_sweep, portable_command, train_sweep

    alone = this is None or this.count == 1  # of several processes, none harvests: the others would have to wait
    if whole.sweep.harvest and whole.train.cache is None and alone and not dry_run:
        from .harvest.run import harvest as harvested

        console.info(str(harvested(whole.harvest, console)))
    if not alone:
        cells = [dataclasses.replace(cell, config=placed(cell.config)) for cell in cells]
    planned = plan_sweep(whole.sweep, cells, only, this)
    if dry_run:
        console.result(planned.to_dict(), str(planned))
        return
    refuse_idle(processes(this, ranks), len(cells))
    if this is None:
        from .train.together import train_together

        words = words_of(files=files, sets=sets, size=size, only=only)
        chosen = [cell.config for cell in cells if not only or cell.setting in only]
        train_together(["sweep", file, *words], processes(this, ranks), chosen, console)
    else:
        train_sweep(planned, console)
    if not alone:
        console.result({"runs": [config.run_name for part in planned.parts for config in part]})
        return
    _compare_sweep(whole, cells, portable_command(file, files, sets, size), console)


def _compare_sweep(whole: SweepFile, cells: Sequence[Cell], command: str, console: Console) -> None:
    """The comparison of a sweep's finished runs."""
    from .analyze.sweep import Heading, Member, compare_runs
    from .shared.provenance import machine

    sweep = whole.sweep
    title, baseline = sweep.title or sweep.name, sweep.baseline or cells[0].setting
    heading = Heading(
        name=sweep.label,
        title=title,
        about=sweep.about,
        baseline=baseline,
        command=command,
        machine=machine(),
        documents=whole.analyze.documents,
    )
    members = [Member(cell.setting, cell.seed, cell.config.path) for cell in cells]
    result = compare_runs(heading, members, whole.analyze, sweep.folder, sweep.plots, console)
    console.result(result.to_dict(), str(result))
