"""The plan of a harvest for `--dry-run`: shapes, bytes, memory and cost, without writing anything."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..shared.cache import Layout
from ..shared.cache.commits import commits_of
from ..shared.cache.files import read_json
from ..shared.cache.format import PLAN
from ..shared.cache.growth import stand
from ..shared.cache.mirror import at_hand, copies_room, shown
from ..shared.console import count, si, size
from ..shared.errors import DataError
from ..shared.objects.address import is_address
from ..shared.text_table import explained_table, facts
from .config import HarvestConfig
from .data.local import count_rows
from .data.reading import Reading, skipped_files
from .job import Job
from .memory import buffer_bytes
from .prepare import Sources, cost, identity_of, layout, prepare_plan
from .recognise import place_of, recognised

_MOST_FILES = 20  # that the text lists
_SURELY_ENOUGH = 32  # bytes of text per token of the budget; a larger local dataset is not counted in a dry run


@dataclass(frozen=True)
class HarvestPlan:
    """The arithmetic of a harvest.

    Attributes:
        path: folder of the cache, whether it exists or not.
        layout: shapes, and with them the exact bytes.
        model, dataset: of the settings.
        sources: what the plan was made from: the checkpoint or packaged facts, and whether the dataset was found.
        counted: the dataset was read to count its sequences; if not, the plan assumes that it fills the budget.
        committed: shards already in the cache.
        complete: the cache is finished; nothing is left to do.
        conflicts: fields in which the existing cache differs from this config; a harvest would fail.
        bytes_to_write: of the missing chunk files.
        grows: the existing cache is finished, and this harvest adds sequences or sites to it.
        free_disk: bytes; of a cache in a bucket, what the copies on this machine may take.
        parameters: of the whole model.
        model_bytes: weights on the device: excluding the head and the layers above the last site.
        buffer_bytes: host memory of the buffers between model and disk, at most.
        flops_share: matrix products of the cut forward pass as a share of those of the whole model with logits; None:
            not known.
        flops_per_token: of the cut forward pass; None: not known.
        device, dtype, attention: of the model.
        sequences_per_call: sequences in one call of the model; with `batch_tokens: null`, at most.
        compiled: whether the model will be compiled.
        files: of a local dataset, in the order they are read, with their rows; None: not known without reading.
        not_read: files of a known kind that are not read, and why.
        skipped: further notes: bad rows that were skipped while counting, where the weights will be.
    """

    path: Path
    layout: Layout
    sources: Sources
    model: str
    dataset: str
    counted: bool
    committed: int
    complete: bool
    conflicts: tuple[str, ...]
    bytes_to_write: int
    grows: bool
    free_disk: int
    parameters: int
    model_bytes: int
    buffer_bytes: int
    flops_share: float | None
    flops_per_token: float | None
    device: str
    dtype: str
    attention: str
    sequences_per_call: int
    compiled: bool
    files: tuple[tuple[str, int | None], ...] = ()
    not_read: tuple[tuple[str, str], ...] = ()
    skipped: tuple[str, ...] = ()

    @property
    def notes(self) -> list[str]:
        """What the plan could not look at, in words."""
        notes = []
        if self.sources.facts:
            notes.append(
                f"planned from packaged facts of {self.model}: its checkpoint was not found on this machine, "
                "and the dataset was not counted"
            )
        if not self.sources.dataset:
            notes.append(f"{self.dataset} was not looked up on its hub: the plan assumes that it has enough text")
        return [*notes, *self.skipped]

    def _forward(self) -> str:
        share = "not known what share" if self.flops_share is None else f"{self.flops_share:.0%}"
        flops = "FLOP not known" if self.flops_per_token is None else f"{si(self.flops_per_token)} FLOP a token"
        return f"{share} of the model is computed, {flops}"

    def to_dict(self) -> dict[str, Any]:
        """The ``--json`` document."""
        return {
            "path": shown(self.path),
            "in_bucket": is_address(self.path),
            "rows": self.layout.n_rows,
            "n_sequences": self.layout.n_seq,
            "ctx": self.layout.ctx,
            "planned_from": "packaged facts" if self.sources.facts else "checkpoint",
            "dataset_found": self.sources.dataset,
            "dataset_counted": self.counted,
            "notes": self.notes,
            "files": [{"path": path, "rows": rows} for path, rows in self.files],
            "files_not_read": [{"path": path, "reason": reason} for path, reason in self.not_read],
            "shards": self.layout.n_shards,
            "shards_committed": self.committed,
            "complete": self.complete,
            "conflicts": list(self.conflicts),
            "bytes": self.layout.bytes_on_disk(),
            "bytes_to_write": self.bytes_to_write,
            "grows": self.grows,
            "free_disk": self.free_disk,
            "sites": {
                site.name: {
                    "shape": [self.layout.n_rows, site.width],
                    "logical_dtype": site.logical_dtype,
                    "storage": site.storage,
                    "bytes": self.layout.n_rows * site.row_bytes,
                    "module_path": f"{site.module_path}:{site.io}",
                }
                for site in self.layout.sites
            },
            "model": {
                "parameters": self.parameters,
                "device": self.device,
                "dtype": self.dtype,
                "attention": self.attention,
                "device_bytes": self.model_bytes,
                "forward_share": self.flops_share,
                "flops_per_token": self.flops_per_token,
                "sequences_per_call": self.sequences_per_call,
                "compiled": self.compiled,
            },
            "host_buffer_bytes": self.buffer_bytes,
        }

    def __str__(self) -> str:
        shapes = self.layout
        state = "complete" if self.complete else f"{self.committed} of {shapes.n_shards} shards committed"
        if self.grows:
            state = f"grows; {state}"
        if self.conflicts:
            state = "CONFLICT: the folder holds a cache with different settings"
        known = "" if self.counted else ", if the dataset has enough text"
        calls = f"{self.sequences_per_call} sequences a call" + (", compiled" if self.compiled else "")
        chunks = f", in chunks of {shapes.chunk_rows:,}" if shapes.chunk_rows else ""
        short = "" if self.bytes_to_write <= self.free_disk else "  NOT ENOUGH"
        room = ("disk", f"{size(self.bytes_to_write)} to write, {size(self.free_disk)} free{short}")
        if is_address(self.path):
            room = ("bucket", f"{size(self.bytes_to_write)} to upload; copies here take at most {size(self.free_disk)}")
        pairs = [
            ("cache", f"{shown(self.path)} ({state})"),
            *(("", line) for line in self.conflicts),
            ("rows", f"{shapes.n_rows:,} = {shapes.n_seq:,} sequences of {shapes.ctx} tokens{known}"),
            ("shards", f"{shapes.n_shards:,} of {shapes.shard_rows:,} rows{chunks}"),
            room,
            (
                "model",
                f"{si(self.parameters)} parameters; {size(self.model_bytes)} of weights on {self.device} in "
                f"{self.dtype}, attention {self.attention}, {calls}",
            ),
            ("forward", self._forward()),
            ("buffers", f"{size(self.buffer_bytes)} of host memory at most"),
        ]
        notes = facts(("note", note) for note in self.notes)
        return "\n".join(part for part in (facts(pairs), self._sites_text(), *self._files_text(), notes) if part)

    def _sites_text(self) -> str:
        """The sites as a table."""
        rows = [
            [
                site.name,
                site.storage,
                str(site.width),
                size(self.layout.n_rows * site.row_bytes),
                f"{site.module_path}:{site.io}",
            ]
            for site in self.layout.sites
        ]
        return explained_table(rows, ["site", "storage", "width", "bytes", "module"], left=(0, 1, 4), breaks=4)

    def _files_text(self) -> list[str]:
        """The files that are read, in order, and those that are not; long lists in part."""
        lines = [
            f"  {path}" + ("" if rows is None else f"  {count(rows, 'row')}") for path, rows in self.files[:_MOST_FILES]
        ]
        more = len(self.files) - len(lines)
        lines += [f"  … {more:,} more; --json lists all"] if more else []
        head = [f"files    {len(self.files):,}, read in this order"] if self.files else []
        return [*head, *lines, *skipped_files([(Path(path), reason) for path, reason in self.not_read], _MOST_FILES)]


def plan(config: HarvestConfig) -> HarvestPlan:
    """Plans a harvest and writes nothing. Reads no weights; reads a local dataset to count its sequences.

    Raises:
        UsageError: the model, the dataset, a site or the device was not found.
    """
    job, sources = prepare_plan(config)
    sites, widths, price = cost(job)
    reading = Reading(config.on_bad_row)
    counted = _count(job, reading)
    path = place_of(config, lambda: identity_of(job))
    conflicts: tuple[str, ...] = ()
    here = at_hand(path)
    begun = (here / PLAN).exists()
    shapes = layout(job, sites, widths, None if begun else counted)
    try:
        standing = stand(here, shapes, _identity(job, sources, path), {}, may_grow(config))
    except DataError as error:
        conflicts = tuple(line.strip() for line in error.message.splitlines()[1:]) or (error.message,)
        missing, complete, committed, grows = {}, False, 0, False
    else:
        shapes, commits = standing.layout, commits_of(here)
        missing, committed = standing.parts.missing(commits), len(standing.parts.committed(commits))
        complete, grows = standing.finished and not missing, len(standing.generations) > 1 and not standing.finished
    checkpoint = job.checkpoint
    return HarvestPlan(
        path=path,
        layout=shapes,
        sources=sources,
        model=config.model,
        dataset=config.dataset_name,
        counted=counted is not None,
        committed=committed,
        complete=complete,
        conflicts=conflicts,
        bytes_to_write=standing.parts.missing_bytes(missing) if missing else 0,
        grows=grows,
        free_disk=copies_room() if is_address(path) else free_disk(path),
        parameters=price.parameters,
        model_bytes=price.kept_bytes,
        buffer_bytes=buffer_bytes(job, shapes),
        flops_share=price.flops_share,
        flops_per_token=price.flops_per_token,
        device=str(checkpoint.device),
        dtype=str(checkpoint.dtype).removeprefix("torch."),
        attention=checkpoint.attention or "default",
        sequences_per_call=job.batch_seqs,
        compiled=job.compiled,
        files=tuple(zip((str(file.path) for file in job.dataset.files), count_rows(job.dataset.files), strict=True)),
        not_read=tuple((str(path), reason) for path, reason in job.dataset.skipped),
        skipped=(*reading.notes(), *_placement(config)),
    )


def _identity(job: Job, sources: Sources, path: Path) -> dict[str, Any]:
    """The identity of the job; what is not known without the hub is as the cache recorded it."""
    found, path = recognised(path, identity_of(job)), at_hand(path)
    unknown = [
        *(["model_revision"] if sources.facts else []),
        *([] if sources.dataset else ["dataset", "dataset_parts"]),
    ]
    if unknown and (path / PLAN).exists():
        recorded = read_json(path / PLAN).get("config", {}).get("resolved", {})
        found["resolved"] |= {key: recorded[key] for key in unknown if key in recorded}
    return found


def _placement(config: HarvestConfig) -> list[str]:
    """What the plan cannot say of a model that accelerate spreads over devices."""
    if config.device_map is None:
        return []
    return [f"device_map {config.device_map}: accelerate places the weights when they are loaded"]


def free_disk(path: Path) -> int:
    """Free bytes on the disk of ``path``, which need not exist."""
    existing = path.absolute()
    while not existing.exists():
        existing = existing.parent
    return shutil.disk_usage(existing).free


def may_grow(config: HarvestConfig) -> tuple[str, ...]:
    """The settings in which a finished cache may differ from this config, and grow.

    A prompt set cannot grow by tokens: it has one sequence for each prompt.
    """
    sites = ("harvest.sites", "harvest.storage_of")
    return sites if config.packing == "prompts" else (*sites, "harvest.tokens")


def _count(job: Job, reading: Reading) -> int | None:
    """Sequences that the dataset fills, at most the budget; None if counting would take long and matter little."""
    if job.tokenizer is None:
        return None
    if job.config.tokens is not None:
        if job.dataset.bytes is None:
            return None
        if job.dataset.bytes > _SURELY_ENOUGH * job.config.tokens:
            return None
    return job.count_sequences(reading)
