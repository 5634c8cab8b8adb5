"""The plan of a training command: checked, and refused where it cannot work, before anything is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..shared.cache import Cache, Layout, open_cache
from ..shared.cache.beside import open_beside
from ..shared.cache.format import MANIFEST
from ..shared.cache.mirror import at_hand, copies_room, shown
from ..shared.cache.nonfinite import usable
from ..shared.coders import Coder, build_coder, load_coder
from ..shared.coders.configs.cross_layer import CrossLayerConfig
from ..shared.coders.warm_start import refuse
from ..shared.config.registry import did_you_mean
from ..shared.console import count, si, size
from ..shared.errors import UsageError
from ..shared.joint_names import parts_of
from ..shared.memory import free_memory
from ..shared.objects.room import BYTES, FOLDER
from ..shared.runs.folder import open_run
from ..shared.text_table import explained_table, facts
from .config import TrainConfig, with_precision
from .data.estimate import estimate_stream
from .data.health import check_trainable
from .data.stream import StreamPlan, open_stream
from .parallel.refuse import refuse_unshared
from .samplers import build_sampler
from .step.fused import refusal


@dataclass(frozen=True)
class Sizes:
    """The arithmetic of runs that train side by side on one stream: they share cache, data settings, sampler, device.

    Attributes:
        path: folder of the cache.
        widths: site → d.
        processes: that train each run together; the bytes are those of one of them.
    """

    configs: list[TrainConfig]
    path: Path
    widths: Mapping[str, int]
    device: torch.device
    stream: StreamPlan
    processes: int = field(default=1, kw_only=True)

    @property
    def sites(self) -> list[str]:
        """Every site that one of the runs reads or reconstructs."""
        return sorted({site for config in self.configs for site in (config.source, config.target_site)})

    @property
    def steps(self) -> int:
        return self.stream.total_steps

    @property
    def notes(self) -> list[str]:
        """What the plan leaves out or could not look at, in words."""
        if not self.stream.nonfinite_rows:
            return []
        return [f"{count(self.stream.nonfinite_rows, 'row')} with an infinity or a NaN left out (data.nonfinite: skip)"]

    def to_dict(self) -> dict[str, Any]:
        batch = self.configs[0].data.batch_size
        return {
            "cache": shown(self.path),
            "sites": self.sites,
            "device": str(self.device),
            "steps": self.steps,
            "tokens": self.steps * batch,
            "reading": self.stream.reading,
            "epochs": self.steps * batch / self.stream.rows_per_epoch,
            "batch_size": batch,
            "processes": self.processes,
            "rows_per_epoch": self.stream.rows_per_epoch,
            "heldout_rows": self.stream.heldout_rows,
            "nonfinite_rows": self.stream.nonfinite_rows,
            "runs": [run_size(config, self.widths, processes=self.processes) for config in self.configs],
            "bytes": {
                "data": self.stream.pool_bytes,
                "training": sum(
                    run_size(config, self.widths, processes=self.processes)["bytes"] for config in self.configs
                ),
                "windows": sum(map(window_bytes, self.configs)),
                "checkpoints": self.bytes["checkpoints"],
                "free": free_memory(self.device, self.processes),
            },
            "notes": self.notes,
        }

    @property
    def bytes(self) -> dict[str, int]:
        """What the runs take on their device. Of a device's run the copy that a checkpoint is written from lies in host
        memory."""
        sizes = [run_size(config, self.widths, processes=self.processes) for config in self.configs]
        return {
            "coders and Adam": sum(run["bytes"] - run["batch_bytes"] for run in sizes),
            "batches": sum(run["batch_bytes"] for run in sizes),
            "windows": sum(map(window_bytes, self.configs)),
            "checkpoints": 0 if self.device.type == "cuda" else sum(run["checkpoint_bytes"] for run in sizes),
            "data": self.stream.pool_bytes,
        }

    def training_bytes(self, config: TrainConfig, latents: int | None = None, batch: int | None = None) -> int:
        """What one run takes beside the data; with another number of latents, or of rows in a batch."""
        found = run_size(config, self.widths, latents, batch, processes=self.processes)
        return _training_bytes(config, found, self.device)


def run_size(
    config: TrainConfig,
    widths: Mapping[str, int],
    latents: int | None = None,
    batch: int | None = None,
    *,
    processes: int = 1,
) -> dict[str, Any]:
    """What a plan says of one run; with another number of latents, or of rows in a batch.

    Args:
        widths: site → d.
        processes: that train it together, as `train.parallel` says; the bytes are those of one of them.
    """
    d_in, d_out = (sum(widths_of(widths, site)) for site in (config.source, config.target_site))
    n_latents, rows = latents or config.coder.latents, batch or config.data.batch_size
    others = d_out + (d_in * d_out if config.coder.skip else 0)
    parameters = n_latents * (d_in + d_out + 1) + others
    if isinstance(config.coder, CrossLayerConfig):  # a latent reads one site and writes (L + 1)/2 on average
        n = len(parts_of(config.source))
        parameters = round(n_latents * (d_in / n + d_out * (n + 1) / (2 * n) + 1)) + d_out
        parameters += d_in * d_out // n if config.coder.skip else 0
    held, own = parameters, n_latents
    if processes > 1 and config.parallel == "latents":
        own = -(-n_latents // processes)
        held = own * (d_in + d_out + 1) + others
    elif config.parallel == "data":
        rows = -(-rows // processes)
    copies = 4 + (config.ema is not None)  # weights, gradients, Adam's two moments, and the average
    batch_bytes = 4 * rows * (own + 2 * (d_in + d_out))  # the pre-activations and the rows of one batch
    return {
        "name": config.run_name,
        "variant": config.variant,
        "architecture": config.coder.architecture,
        "source": config.source,
        "target": config.target_site,
        "latents": n_latents,
        "parameters": parameters,
        "precision": config.precision,
        "parallel": config.parallel,
        "bytes": 4 * copies * held + batch_bytes,
        "batch_bytes": batch_bytes,
        "checkpoint_bytes": 4 * (copies - 1) * parameters,  # all but the gradients
    }


def _training_bytes(config: TrainConfig, run: Mapping[str, Any], device: torch.device) -> int:
    """What a run of this size takes beside the data."""
    copy = 0 if device.type == "cuda" else int(run["checkpoint_bytes"])
    return int(run["bytes"]) + copy + window_bytes(config)


def window_bytes(config: TrainConfig) -> int:
    """Of the windows of codes that monitors and penalties keep: of each row values, latents and position."""
    batches = [config.monitor_window] if config.monitors else []
    batches += [int(getattr(penalty, "window", 0) or 0) for penalty in config.penalties.values()]
    per_row = 12 * min(int(getattr(config.coder, "k", 0) or config.coder.latents), config.coder.latents) + 4
    return sum(batches) * config.data.batch_size * per_row


@dataclass(frozen=True)
class Group(Sizes):
    """Runs that train side by side on one cache."""

    cache: Cache = field(repr=False)

    @property
    def download(self) -> str | None:
        """What is to be fetched of a cache in a bucket, in words."""
        whole, here = self.cache.through_copies(self.sites)
        if not whole:
            return None
        text = f"in a bucket: {size(whole - min(here, whole))} to download, {size(min(here, whole))} are here"
        return f"{text}; copies may take {size(copies_room())}"

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "download": self.download}


@dataclass(frozen=True)
class Unharvested:
    """A cache that does not exist yet.

    Attributes:
        layout: the shapes that its harvest plans.
        notes: what that plan could not look at, in words.
    """

    layout: Layout
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Foreseen(Sizes):
    """Runs on a cache that does not exist yet: rows, and with them steps and epochs, are estimates."""

    cache: Unharvested = field(repr=False)

    @property
    def notes(self) -> list[str]:
        planned = "the cache is not harvested yet: planned from the harvest's plan, so rows and steps are estimates"
        return [planned, *self.cache.notes]


@dataclass(frozen=True)
class TrainPlan:
    """Steps, epochs, tokens and memory of a training command.

    Attributes:
        groups: runs that can train.
        foreseen: runs whose cache does not exist yet; only a dry run plans them.
    """

    groups: list[Group]
    foreseen: list[Foreseen] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {"groups": [group.to_dict() for group in (*self.groups, *self.foreseen)]}

    def __str__(self) -> str:
        return "\n".join(_group_text(group) for group in (*self.groups, *self.foreseen))


def _group_text(group: Sizes) -> str:
    """What a group is, and its runs as a table."""
    d = group.to_dict()
    pairs = [
        (
            "steps",
            f"{d['steps']:,} of {d['batch_size']:,} rows: {si(d['tokens'])} tokens, {d['epochs']:.2f} epochs of "
            f"{si(d['rows_per_epoch'])}; {si(d['heldout_rows'])} rows held out",
        ),
        ("reads", f"{_reading(group.stream, d['device'])}, once for {count(len(d['runs']), 'run')}"),
        ("memory", _memory(d["bytes"], d["processes"])),
        ("download", (group.download or "") if isinstance(group, Group) else ""),
    ]
    rows = [
        [
            run["name"],
            run["architecture"] + (", selected in bfloat16" if run["precision"] == "bfloat16" else ""),
            f"{run['source']} → {run['target']}",
            f"{run['latents']:,}",
            si(run["parameters"]),
            size(run["bytes"]),
        ]
        for run in d["runs"]
    ]
    header = ["run", "architecture", "source → target", "latents", "parameters", "memory"]
    table = explained_table(rows, header, left=(0, 1, 2), breaks=(2, 0))
    notes = facts(("note", note) for note in group.notes)
    return "\n".join(part for part in (f"{d['cache']} on {d['device']}", facts(pairs, "  "), table, notes) if part)


def _reading(stream: StreamPlan, device: str) -> str:
    """Where the rows are when batches are drawn from them."""
    whole = size((stream.train_rows + stream.heldout_rows) * stream.row_bytes)
    if stream.reading == "mapped":
        return f"{whole} of activations mapped from their files, which fit the system's cache"
    if stream.reading == "memory":
        return f"{size(stream.pool_bytes)} of activations in memory{'' if device == 'cpu' else ' of the device'}"
    return f"{whole} of activations read from disk (preadv) in every epoch, {size(stream.pool_bytes)} at a time"


def _memory(sizes: Mapping[str, int], processes: int) -> str:
    needed, free = sum(sizes.values()) - sizes["free"], sizes["free"]
    whose = "in all" if processes == 1 else f"for each of {processes} processes"
    return f"{size(needed)} {whose}, {size(free)} free{'' if needed <= free else '  NOT ENOUGH'}"


def plan(
    configs: Sequence[TrainConfig],
    unharvested: Mapping[Path, Unharvested] | None = None,
    *,
    processes: int = 1,
) -> TrainPlan:
    """Steps, memory and groups of a training command.

    Args:
        unharvested: folder → a cache that does not exist yet, to plan runs on it all the same.
        processes: that train together the runs with `train.parallel`.

    Raises:
        UsageError: train.cache is not set, a site is not in the cache, two runs share a name, settings contradict each
            other, or a run would take fewer than its `min_steps`.
        DataError: the cache is missing, incomplete or damaged.
    """
    configs = [with_precision(config, pick_device(config.device).type) for config in configs]
    names = [(config.path.resolve(), config.run_name) for config in configs]
    for twice in {name for name in names if names.count(name) > 1}:
        raise UsageError(f"two runs would be named {twice[1]}", "give each a name of its own (train.name)")
    batches: dict[Any, list[TrainConfig]] = {}
    for config in configs:
        if config.cache is None:
            raise UsageError("train.cache is not set", "pipeline status   (lists the caches)")
        if config.sites is not None:
            raise UsageError(f"train.sites: {config.run_name} is a template of several runs, not a run")
        # A sampler that follows one run's training cannot serve another's.
        alone = config.path if config.sampler.follows_training else None
        # Which rows are massive or not finite depends on the sites: runs that leave them out share a read only with the
        # same sites.
        by_site = config.sampler.massive == "exclude" or config.data.nonfinite == "skip"
        sites = {config.source, config.target_site} if by_site else ()
        beside = tuple(path.resolve() for path in config.beside)
        read = (config.data, config.sampler, config.device, frozenset(sites), beside, config.parallel)
        key = (config.cache.resolve(), _trained_on(config), *read, alone)
        batches.setdefault(key, []).append(config)
    groups, foreseen = [], []
    for members in batches.values():
        cache = members[0].cache
        coming = None if cache is None else (unharvested or {}).get(cache)
        if cache is not None and coming is not None:
            foreseen.append(_foreseen(members, cache, coming, processes))
        else:
            groups.append(_group(members, processes))
    return TrainPlan(groups, foreseen)


def _trained_on(config: TrainConfig) -> str | None:
    """The cache identity that an existing run recorded, if the cache has grown since: the run resumes on those rows."""
    assert config.cache is not None
    if not (config.path / "config.yaml").is_file() or not (at_hand(config.cache) / MANIFEST).is_file():
        return None
    recorded = open_run(config.path, allow_incomplete=True).provenance.get("cache", {}).get("identity")
    return recorded if recorded in open_cache(config.cache).identities[:-1] else None


def _group(configs: list[TrainConfig], processes: int) -> Group:
    first, together = configs[0], processes if configs[0].parallel else 1
    assert first.cache is not None
    cache = open_cache(first.cache, identity=_trained_on(first), checksums=first.data.checksums)
    cache = open_beside(cache, [open_cache(path, checksums=first.data.checksums) for path in first.beside])
    widths = {name: spec.width for name, spec in cache.sites.items()}
    sites = _checked_sites(configs, cache.path, widths, together)
    cache = usable(cache, sites, first.data.nonfinite, "train.data.nonfinite")
    for config in configs:
        for role, joint in (("source", config.source), ("target", config.target_site)):
            for site in parts_of(joint):
                check_trainable(cache, site, role)
    if first.sampler.needs_bos and not cache.has_bos:
        raise UsageError(
            f"train.sampler: {first.sampler.kind} would exclude nothing, since {cache.path} has no BOS (harvest.bos)",
            "--set train.sampler.position_zero=true   (or another sampler)",
        )
    device = pick_device(first.device)
    sizes = [(config, run_size(config, widths, processes=together)) for config in configs]
    reserved = sum(_training_bytes(config, run, device) for config, run in sizes)
    sampler = build_sampler(first.sampler)
    with open_stream(cache, sites, first.data, sampler, device=device, reserved=reserved, processes=together) as stream:
        group = Group(configs, cache.path, widths, device, stream.plan, cache, processes=together)
    _refuse_thrashing(group)
    for config in configs:
        _refuse_short(config, group.stream)
    return group


def _refuse_thrashing(group: Group) -> None:
    """Raises UsageError where each window of rows would fetch again what the one before had to evict.

    Every window takes blocks from all over the cache, so unless all rows are copied to memory, their files must stay.
    """
    whole, _ = group.cache.through_copies(group.sites)
    if whole == 0 or group.stream.reading == "memory" or whole <= (room := copies_room()):
        return
    raise UsageError(
        f"training reads {size(whole)} of {shown(group.path)} in {group.stream.n_windows} windows an epoch, each from "
        f"all of its shards, but copies on this machine may take {size(room)}: each window would fetch them anew",
        f"export {BYTES}={-(-whole // 10**9)}GB, {FOLDER} to a folder of a larger disk, or --set "
        "train.data.resident=true to copy all rows to memory",
    )


def _foreseen(configs: list[TrainConfig], path: Path, coming: Unharvested, processes: int) -> Foreseen:
    first, device = configs[0], pick_device(configs[0].device)
    together = processes if first.parallel else 1
    if first.beside:
        raise UsageError(f"train.beside: {path} is not harvested yet", "harvest every cache first: pipeline harvest")
    widths = {spec.name: spec.width for spec in coming.layout.sites}
    sites = _checked_sites(configs, path, widths, together)
    sizes = [(config, run_size(config, widths, processes=together)) for config in configs]
    reserved = sum(_training_bytes(config, run, device) for config, run in sizes)
    stream = estimate_stream(coming.layout, sites, first.data, build_sampler(first.sampler), device, reserved)
    for config in configs:
        _refuse_short(config, stream)
    return Foreseen(configs, path, widths, device, stream, coming, processes=together)


def _checked_sites(configs: Sequence[TrainConfig], path: Path, widths: Mapping[str, int], processes: int) -> list[str]:
    """The sites that the runs need, all of them in the cache; refuses a coder that cannot train."""
    for config in configs:
        for key, joint in (("source", config.source), ("target", config.target_site)):
            for site in parts_of(joint):
                if site not in widths:
                    raise UsageError(
                        f"train.{key}: {path} has no site {site!r}{did_you_mean(site, widths)}",
                        f"sites of this cache: {', '.join(widths)}",
                    )
        d_in, d_out = widths_of(widths, config.source), widths_of(widths, config.target_site)
        with torch.device("meta"):
            coder = build_coder(config.coder, d_in, d_out, tied=config.source == config.target_site)
        refusal(config, coder, pick_device(config.device))
        if processes > 1:
            refuse_unshared(config, coder, processes)
        check_start(config, coder)
    return [site for config in configs for site in (config.source, config.target_site)]


def check_start(config: TrainConfig, coder: Coder) -> None:
    """Raises UsageError where the coder cannot start from what `train.init` names."""
    sources = [load_coder(path) for path in config.starts]
    if sources and isinstance(config.coder, CrossLayerConfig):
        from ..shared.coders.cross_layer import CrossLayer
        from ..shared.coders.layer_start import refuse_layers

        assert isinstance(coder, CrossLayer)
        refuse_layers(coder, sources, [str(path) for path in config.starts])
    elif sources:
        refuse(coder, sources[0], str(config.starts[0]))


def widths_of(widths: Mapping[str, int], site: str) -> tuple[int, ...]:
    """The widths of a site's parts."""
    return tuple(widths[part] for part in parts_of(site))


def _refuse_short(config: TrainConfig, stream: StreamPlan) -> None:
    data, steps = config.data, stream.total_steps
    if steps < config.min_steps:
        kept = f" ({data.heldout:.0%} of the documents held out)" if data.heldout else ""
        epochs = f"{stream.rows_per_epoch:,} tokens{kept} × {data.epochs} epochs"
        amount = epochs if data.tokens is None else f"{data.tokens:,} tokens"
        raise UsageError(
            f"run {config.run_name} would take {steps} steps ({amount} / batches of {data.batch_size:,} = {steps}), "
            f"fewer than train.min_steps = {config.min_steps}",
            "raise train.data.epochs or train.data.tokens, lower train.data.batch_size or train.data.heldout, "
            "or harvest more tokens",
        )
    warmup = config.optimizer.warmup(steps)
    if warmup >= steps:
        raise UsageError(
            f"train.optimizer.warmup_steps = {warmup} is not shorter than the run itself, {steps} steps",
            "lower it, or null for a tenth of the steps",
        )


def pick_device(name: str) -> torch.device:
    """The device named in the settings; `auto` is CUDA if available. Raises UsageError for one that is not found."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"train.device: {name!r} is not a device", "cpu, cuda, cuda:1 or auto") from None
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise UsageError(f"train.device: {name} not found ({torch.cuda.device_count()} CUDA devices found)", "auto")
    return device
