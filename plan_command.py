"""`pipeline plan`: joins the plans of the stages with the constants of a machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from .command_line import common, settings, several_variants
from .resolve import resolve, train_configs
from .shared.console import Console

if TYPE_CHECKING:
    from .shared.costs.estimate import CoderWork, Costs, Machine


@click.command("plan")
@click.option("--device", default="h100", show_default=True, help="A device of the constants: h100, h200, cpu.")
@click.option("--devices", type=click.IntRange(min=1), default=1, show_default=True, help="How many of them.")
@click.option("--machines", type=click.IntRange(min=1), default=1, show_default=True, help="Machines that hold them.")
@click.option("--disk", default="local", show_default=True, help="Of the constants: local, virtual, network, bucket.")
@click.option("--disk-rate", type=click.FloatRange(min=0, min_open=True), metavar="MB/S", help="Its rate instead.")
@click.option("--price", type=click.FloatRange(min=0), metavar="DOLLARS", help="Of one device and hour.")
@click.option("--memory", type=click.FloatRange(min=0), metavar="GB", help="Host memory of a machine.")
@several_variants("Train this variant; may be repeated.")
@settings
@common
def plan_command(
    console: Console,
    files: tuple[str, ...],
    sets: tuple[str, ...],
    names: tuple[str, ...],
    device: str,
    devices: int,
    machines: int,
    disk: str,
    disk_rate: float | None,
    price: float | None,
    memory: float | None,
) -> None:
    """Hours, bytes and money of harvest, training and analysis on a given machine, and which resource binds.

    Settings: all sections, as the commands themselves read them. Nothing is written, and no machine is needed: the
    constants are measured or assumed, and the output names those that are assumed.
    """
    from .shared.costs.constants import load, load_host
    from .shared.costs.estimate import Machine

    rate = None if disk_rate is None else disk_rate * 1e6
    machine = Machine(
        device=load("devices", device, {"price": price}),
        disk=load("disks", disk, {"write": rate, "read": rate}),
        host=load_host({"memory": None if memory is None else memory * 1e9}),
        devices=devices,
        machines=machines,
    )
    console.info(f"plan: harvest, train and analyze on {machine}")
    costs = plan_costs(files, sets, names, machine)
    console.result(costs.to_dict(), str(costs))


def plan_costs(files: Sequence[str], sets: Sequence[str], names: Sequence[str], machine: Machine) -> Costs:
    """The costs of all steps with these settings.

    Raises:
        UsageError: the settings cannot be planned.
    """
    from .harvest.plan import plan as plan_harvest
    from .shared.costs.estimate import CacheWork, Costs, analyze_step, harvest_step, train_step
    from .shared.errors import UsageError
    from .train.plan import Unharvested
    from .train.plan import plan as plan_train

    whole = resolve(files, sets, names[0] if names else None)
    harvest = plan_harvest(whole.harvest)
    layout = harvest.layout
    if harvest.flops_per_token is None:
        raise UsageError(
            f"harvest.model: the FLOP of {whole.harvest.model} are not known", "pipeline harvest --dry-run"
        )
    cache = CacheWork(
        rows=layout.n_rows,
        row_bytes=sum(site.row_bytes for site in layout.sites),
        bytes=layout.bytes_on_disk(),
        flops=harvest.flops_per_token,
        weights=harvest.model_bytes,
    )
    configs = train_configs(files, sets, names)
    folders = {config.cache for config in configs if config.cache is not None}
    planned = plan_train(
        configs, {folder: Unharvested(layout, harvest.notes) for folder in folders}, processes=machine.devices
    )
    groups = [(group.to_dict(), group.widths) for group in (*planned.groups, *planned.foreseen)]
    row_bytes_of = {site.name: site.row_bytes for site in layout.sites}
    coders = [_coder(run, group, widths, row_bytes_of) for group, widths in groups for run in group["runs"]]
    rows = min(layout.n_rows, whole.analyze.max_tokens or layout.n_rows)
    steps = [
        harvest_step(cache, machine),
        train_step(coders, machine),
        analyze_step(coders, rows, _triangle_gb(whole.analyze.reports), machine),
    ]
    notes = [*harvest.notes]
    if any(coder.processes > 1 for coder in coders):
        notes.append(
            "train.parallel: what the processes send each other in a step is not counted, for it is not measured"
        )
    return Costs(steps, machine, cache.bytes, notes)


def _triangle_gb(reports: Mapping[str, Any]) -> float | None:
    """The largest table of pairs that the analysis holds, in GB; None where it correlates none."""
    return next((one.triangle_gb for one in reports.values() if one.kind == "correlation"), None)


def _coder(
    run: Mapping[str, Any], group: Mapping[str, Any], widths: Mapping[str, int], row_bytes: Mapping[str, int]
) -> CoderWork:
    """A run of a training plan as work."""
    from .shared.costs.estimate import CoderWork
    from .shared.joint_names import parts_of, stored_sites

    return CoderWork(
        name=run["name"],
        d_in=sum(widths[part] for part in parts_of(run["source"])),
        latents=run["latents"],
        parameters=run["parameters"],
        bytes=run["bytes"],
        batch=group["batch_size"],
        steps=group["steps"],
        processes=group["processes"],
        sliced=run["parallel"] == "latents",
        reads={site: row_bytes[site] for site in stored_sites((run["source"], run["target"]))},
    )
