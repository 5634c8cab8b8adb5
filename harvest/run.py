"""The harvest: tokenise ahead, run the cut model, write behind. After any interruption the next run resumes."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ..models.capture import CompiledReader, SiteReader, check_attention, check_isolated, site_widths
from ..models.loading import load_cut, placed
from ..shared.cache import CacheWriter, Layout
from ..shared.cache.commits import load_commit
from ..shared.cache.documents import DocumentWriter, documents_name, documents_summary
from ..shared.cache.files import make_folder, read_json, sync_folder, write_file
from ..shared.cache.format import HISTORY, MANIFEST, TOKENIZER
from ..shared.cache.growth import read_head
from ..shared.cache.mirror import at_hand, shown
from ..shared.cache.reader import read_sequences
from ..shared.cache.writer import Share
from ..shared.console import Console, count, duration, si, size
from ..shared.errors import DataError, PipelineError
from ..shared.objects.address import is_address
from ..shared.provenance import provenance
from ..shared.ranks import Rank
from . import batch_size
from .check import tokenizer_content
from .config import HarvestConfig, cache_path
from .data.pack import Block
from .data.reading import BadRowError, Reading, keep_skipped, kept_skipped, skipped_files, skipped_path
from .data.tokenise import Ahead
from .disk import Disk
from .forward import Forward
from .job import Job, empty_dataset
from .memory import refuse_large_buffers, refuse_too_large
from .nonfinite import NonfiniteWatch
from .plan import free_disk, may_grow
from .prepare import identity_of, layout, prepare, probe_ids
from .ranks import begins, kept, progress_of, refuse_unsettled, shards_committed, wait_for_others
from .recognise import CHECKED, place_of, recognised, recorded_dataset
from .stages import Stages
from .units import Unit, dataset_units, stored_units

_PROBE_LENGTH = 32


@dataclass(frozen=True)
class HarvestResult:
    """The result of a harvest.

    Attributes:
        path: the complete cache.
        n_sequences, ctx, n_tokens: its size; tokens are rows that are not padding.
        bytes: of its chunk files.
        shards, shards_written: in total, and by this run.
        tokens_run: rows that this run put through the model.
        seconds: of this run, loading included.
        tokens_per_second: of this run, from the first batch to the last commit; 0.0 if nothing was missing.
        stages: share of that time in which the run waited for each stage (harvest.stages).
        massive_rows: of each site, as in the manifest.
        nonfinite_rows: site → rows with an infinity or a NaN, of the sites that have any.
    """

    path: Path
    n_sequences: int
    ctx: int
    n_tokens: int
    bytes: int
    shards: int
    shards_written: int
    tokens_run: int
    seconds: float
    tokens_per_second: float
    stages: dict[str, float]
    massive_rows: dict[str, int]
    nonfinite_rows: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """The ``--json`` document."""
        return {**self.__dict__, "path": shown(self.path), "complete": True}

    def __str__(self) -> str:
        done = (
            f"{self.shards_written} of {count(self.shards, 'shard')} in {duration(self.seconds)}, loading included; "
            f"{si(self.tokens_per_second)} rows/s from the first batch on"
            if self.shards_written
            else "complete already"
        )
        massive = ", ".join(f"{site} {n:,}" for site, n in self.massive_rows.items() if n)
        rows = f"; massive rows: {massive}" if massive else ""
        return f"{shown(self.path)}: {self.n_tokens:,} tokens, {size(self.bytes)} of chunk files ({done}){rows}"


@dataclass(frozen=True)
class ShareResult:
    """What one of several processes did while others still have shards to write.

    Attributes:
        path: the cache, not finished.
        rank: which process of how many.
        shards, shards_missing: in total, and those that other processes have to write.
        shards_written, tokens_run, tokens_per_second, stages: as in :class:`HarvestResult`.
    """

    path: Path
    rank: Rank
    shards: int
    shards_missing: int
    shards_written: int
    tokens_run: int
    tokens_per_second: float
    stages: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """The ``--json`` document."""
        rank = {"rank": self.rank.index, "ranks": self.rank.count}
        return {**self.__dict__, "path": shown(self.path), **rank, "complete": False}

    def __str__(self) -> str:
        left = f"{self.shards_missing} of {count(self.shards, 'shard')} are left to other processes"
        if not self.shards_missing:
            left = "another process finishes the cache"
        return f"{shown(self.path)}: process {self.rank} wrote {count(self.shards_written, 'shard')}; {left}"


def harvest(config: HarvestConfig, console: Console | None = None) -> HarvestResult:
    """Writes the cache that the config describes, or its missing parts.

    After an interruption or a kill at any moment, the next call with the same config computes the shards without a
    commit; the files are bit-identical to an uninterrupted run. A finished cache grows if the config has more tokens or
    further sites and is the same otherwise.

    Raises:
        UsageError: the model, the dataset, a site or the device was not found.
        DataError: the folder holds a cache with different settings, or the dataset has changed since.
        PipelineError: the disk is full or too small, or the memory is.
    """
    found = harvest_share(config, Rank(), console)
    assert isinstance(found, HarvestResult)  # a single process has nobody to leave shards to
    return found


def harvest_share(config: HarvestConfig, rank: Rank, console: Console | None = None) -> HarvestResult | ShareResult:
    """As :func:`harvest`, by one of several processes: writes the missing shards that it owns (Share).

    Each process tokenises the text itself, and nothing else is done twice. Whichever ends last finishes the cache,
    which then is bit-identical to that of one process. Shards of a process that died stay missing until it, or any
    number of processes, harvest with the same settings again.

    Raises:
        UsageError: as :func:`harvest`; or ``batch_tokens`` is null, which each process could settle differently.
    """
    console = console or Console(quiet=True)
    started = time.perf_counter()
    if rank.count > 1:
        refuse_unsettled(config)
    job = prepare(config)
    refuse_too_large(job)
    if not is_address(config.cache_dir):
        make_folder(config.cache_dir, "harvest.cache_dir")
    cut = load_cut(job.checkpoint, config.model, config.sites)
    model, sites, body = cut.model, cut.sites, placed(cut.body, job.checkpoint)
    path = place_of(config, lambda: identity_of(job))
    if path != cache_path(config):
        console.info(f"{shown(path)} was made from the same model and dataset, which lay elsewhere")
    with SiteReader(model, body, sites) as probe:
        job = _settled(job, probe, body, path)
        widths = site_widths(probe, probe_ids(job).to(job.checkpoint.device))
    reader_class = CompiledReader if job.compiled else SiteReader
    shapes = layout(job, sites, widths)
    refuse_large_buffers(job, shapes)
    identity, made_with = recognised(path, identity_of(job)), {**provenance(), "on_bad_row": config.on_bad_row}
    for note in skipped_files(job.dataset.skipped):
        console.info(note)
    with CacheWriter.create(
        path,
        shapes,
        identity,
        made_with,
        share=Share(rank.index, rank.count, job.unit_shards),
        may_grow=may_grow(config),
        set_up=lambda: _keep_tokenizer(at_hand(path), job),
    ) as writer:
        # in a cache that grows by sites, only the new ones are computed
        wanted = {name for shard in writer.missing_shards() for name in writer.missing_sites(shard)}
        with reader_class(model, body, [site for site in sites if site.name in wanted] or sites) as reader:
            work = _Work(job, reader, writer, rank, console)
            if not writer.complete:
                work.run()
    if not writer.complete:
        return work.share()
    return _result(writer, work, time.perf_counter() - started)


def _result(writer: CacheWriter, work: _Work, seconds: float) -> HarvestResult:
    """What a finished cache holds, and what this process did for it."""
    path, finished = writer.path, writer.layout
    nonfinite = work.watch.finish(path)
    commits = [load_commit(path, shard) for shard in range(finished.n_shards)]
    massive = read_json(path / MANIFEST).get("massive", {})
    return HarvestResult(
        path=path,
        n_sequences=finished.n_seq,
        ctx=finished.ctx,
        n_tokens=sum(commit.tokens for commit in commits),
        bytes=finished.bytes_on_disk(),
        shards=finished.n_shards,
        shards_written=work.shards_written,
        tokens_run=work.rows_run,
        seconds=seconds,
        tokens_per_second=work.rate,
        stages=work.stages.shares(),
        massive_rows={site: int(found["n_rows"]) for site, found in massive.items()},
        nonfinite_rows=nonfinite,
    )


def _settled(job: Job, probe: SiteReader, body: nn.Module, path: Path) -> Job:
    """The job after the checks that need the loaded model, with the size of a batch settled."""
    device, bos = job.checkpoint.device, job.specials.filler
    vocab, length = int(job.checkpoint.config.get_text_config().vocab_size), min(job.config.ctx, _PROBE_LENGTH)
    check_attention(probe, body, bos, vocab, length, device)
    if job.isolated:
        check_isolated(probe, bos, vocab, length, device)
    if job.config.batch_tokens is None and batch_size.recorded(path, job.config.ctx) is None:
        job = replace(job, batch_tokens=batch_size.probe(job, probe))
    return job


def _keep_tokenizer(path: Path, job: Job) -> None:
    """The model's tokenizer beside the arrays; that of an unfinished cache is compared with the model's own."""
    file = path / TOKENIZER
    content = tokenizer_content(job)
    if not file.exists() or (not (path / MANIFEST).exists() and file.read_bytes() != content):
        file.parent.mkdir(exist_ok=True)
        write_file(file, [content])
        sync_folder(file.parent)
        sync_folder(path)


class _Work:
    """The loop of a harvest, with its counts."""

    def __init__(self, job: Job, reader: SiteReader, writer: CacheWriter, rank: Rank, console: Console) -> None:
        self.job, self.reader, self.writer, self.rank, self.console = job, reader, writer, rank, console
        self.watch = NonfiniteWatch(job, console)
        self.shards_written = 0
        self.rows_run = 0
        self.seconds = 0.0
        self.stages = Stages()
        self.reading = Reading(job.config.on_bad_row)
        self.dataset_changed = job.dataset.identity != recorded_dataset(writer.path)

    def run(self) -> None:
        """Computes and writes every missing shard, then finishes the cache.

        Units come from the cache if a finished generation of it holds all tokens (it grows by sites), and else from the
        dataset, whose committed part is tokenised again: what is committed must be what the dataset gives.
        """
        job, writer = self.job, self.writer
        missing = writer.missing_shards()
        planned = writer.layout
        documents_file = documents_name(writer.parts.last_longer)
        stored = self._tokens_vouched_for(documents_file)
        self._check_disk()
        names = {name for shard in missing for name in writer.missing_sites(shard)}
        shapes = replace(planned, sites=tuple(site for site in planned.sites if site.name in names))
        on_device = job.checkpoint.device.type == "cuda"  # a CPU's cores would sum in the loop what its writers sum
        forward = Forward(job, self.reader, self.stages, shapes.sites if on_device else ())
        if missing and job.compiled:
            self.console.info("compiling the model")
            forward.warm_up()
        if self.rank.count > 1:
            self.console.info(begins(self.rank, missing, writer))
        n_seq = 0
        with (
            progress_of(self.rank, writer, self.console) as progress,
            self._interruptible(),
            nullcontext() if stored or self.rank.index else DocumentWriter(writer.path, documents_file) as documents,
            Ahead(self._units(stored), depth=2) as units,
            Disk(job, shapes, writer, progress, self.stages, self.watch.look) as disk,
        ):
            wanted, started = set(missing), time.perf_counter()  # the buffers are allocated
            for first, block in self._waiting_for(units):
                n_seq += len(block)
                if documents is not None:
                    documents.add(block.documents)
                shards = _shards_of(block, first, planned)
                self._check_committed([(shard, cut) for shard, cut in shards if writer.has_tokens(shard)], block)
                todo = [one for one in shards if one[0] in wanted and not writer.committed_elsewhere(one[0])]
                if todo:
                    with disk.buffer() as buffer:
                        disk.write(block, todo, buffer, forward.compute(block, buffer))
                    self.shards_written += len(todo)
                    self.rows_run += block.tokens.size
            forward.finish()
            if documents is not None:
                keep_skipped(writer.path, documents_file, self.reading)
                documents.finish()
                writer.publish(documents_file, skipped_path(writer.path, documents_file).name)
            disk.drain()
            self.seconds = time.perf_counter() - started
            if not stored and not n_seq:
                raise empty_dataset(job.config, self.reading)
            if self.rank.waits:
                wait_for_others(writer, None if stored else n_seq)
        self._end(_sequences_committed(writer) if stored else n_seq, stored, documents_file)

    def _end(self, n_seq: int, stored: bool, documents_file: str) -> None:
        """Finishes the cache, unless another process does or has done so."""
        writer = self.writer
        if writer.ranks_left(n_seq) or writer.complete:
            return
        if not (writer.path / documents_file).exists():
            return  # the first process writes it when it has read all of the text
        if stored:
            self._finish(n_seq, documents_file)
            return
        self._warn_if_short(n_seq)
        for note in self.reading.notes():
            self.console.warn(note)
        self._finish(n_seq, documents_file, {CHECKED: [self.job.dataset.identity]} if self.dataset_changed else {})

    @property
    def rate(self) -> float:
        """Rows through the model per second."""
        return self.rows_run / self.seconds if self.seconds else 0.0

    def share(self) -> ShareResult:
        """What this process did of a cache that others finish."""
        total = self.writer.layout.n_shards
        return ShareResult(
            path=self.writer.path,
            rank=self.rank,
            shards=total,
            shards_missing=total - shards_committed(self.writer.path, self.writer.parts),
            shards_written=self.shards_written,
            tokens_run=self.rows_run,
            tokens_per_second=self.rate,
            stages=self.stages.shares(),
        )

    def _units(self, stored: bool) -> Iterator[Unit]:
        """What the loop computes or checks, from the cache itself or from the dataset."""
        job, writer = self.job, self.writer
        if stored:
            return stored_units(writer, job.unit_shards)
        return dataset_units(job.blocks(self.reading), writer.parts.segments, job.unit_shards, job.seqs_per_shard)

    def _waiting_for(self, units: Iterable[Unit]) -> Iterator[Unit]:
        """The units, counting the time spent waiting for each."""
        iterator = iter(units)
        while True:
            with self.stages.of("tokenise"):
                unit = next(iterator, None)
            if unit is None:
                return
            yield unit

    def _warn_if_short(self, n_seq: int) -> None:
        planned = self.writer.layout
        required = planned.n_seq - self.writer.parts.padding
        if n_seq < required:
            self.console.warn(
                f"{self.job.config.dataset_name} ended after {n_seq:,} sequences of {planned.ctx} tokens; "
                f"the settings require {required:,}"
            )

    def _finish(self, n_seq: int, documents_file: str, more: Mapping[str, Any] | None = None) -> None:
        extra = {
            "bos": {
                "setting": self.job.config.bos,
                "token": self.job.specials.bos_token,
                "token_id": self.job.specials.bos,
            },
            "tokenizer": TOKENIZER,
            "tokenizer_sha256": hashlib.sha256((self.writer.path / TOKENIZER).read_bytes()).hexdigest(),
            "documents": documents_summary(self.writer.path, documents_file),
            "planned_sequences": self.writer.layout.n_seq,
            **kept_skipped(self.writer.path, documents_file),
            **(more or {}),
        }
        self.writer.finish(n_seq, extra)

    def _tokens_vouched_for(self, documents_file: str) -> bool:
        """Whether an earlier generation was finished with all tokens and documents of this one."""
        writer = self.writer
        if not (writer.path / MANIFEST).exists() or not (writer.path / documents_file).exists():
            return False
        finished = len(read_head(writer.path / MANIFEST).get(HISTORY, []))
        return finished >= writer.parts.last_longer and all(map(writer.has_tokens, range(writer.layout.n_shards)))

    def _check_committed(self, shards: list[tuple[int, slice]], block: Block) -> None:
        """Checks that the dataset still has the tokens and documents that were committed; otherwise the rest would be
        other text."""
        path = self.writer.path
        for shard, cut in shards:
            found = hashlib.sha256(np.ascontiguousarray(block.tokens[cut], dtype="<i4").tobytes()).hexdigest()
            expected = load_commit(path, shard).tokens_sha256
            kept = read_sequences(path, self.writer.parts, shard)
            names = ("doc_id", "pos_in_doc", "flags")
            other = [name for name in names if not _equal(kept[name], getattr(block, name)[cut])]
            if found == expected and other and not self.dataset_changed:
                raise DataError(
                    f"shard {shard} of {path} holds other values of {other[0]} than its tokens give",
                    hint="this program packs otherwise: harvest under another name (--set harvest.name=…)",
                )
            if found != expected or other:
                differs = f"documents ({', '.join(other)} differ)"
                if found != expected:
                    differs = f"tokens (sha256 {expected[:12]}…, now {found[:12]}…)"
                raise DataError(
                    f"{self.job.config.dataset_name} has changed: shard {shard} of {path} holds other {differs}",
                    hint="restore the dataset, or harvest under another name (--set harvest.name=…)",
                )

    def _check_disk(self) -> None:
        if self.writer.mirror is not None:
            return
        needed = self.writer.missing_bytes()
        free = free_disk(self.writer.path)
        if needed > free:
            raise PipelineError(
                f"{self.writer.path} needs {needed:,} bytes more, {free:,} are free on its disk",
                hint="free some space, set harvest.cache_dir to another disk, or lower harvest.tokens",
            )

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Says what is kept when the user or a bad row ends the harvest."""
        try:
            yield
        except (KeyboardInterrupt, BadRowError) as stop:
            left = kept(self.writer.path, self.writer.parts)
            if isinstance(stop, BadRowError):
                self.console.warn(f"stopped: {left}; when the row is repaired or skipped, the same command continues")
                raise
            raise KeyboardInterrupt(left) from None


def _equal(stored: np.ndarray, ours: np.ndarray) -> bool:
    """Whether the first sequences of a stored shard are these."""
    return np.array_equal(stored[: len(ours)], ours)


def _shards_of(block: Block, first: int, shapes: Layout) -> list[tuple[int, slice]]:
    """The shards that a unit fills, with their places in the block; the last one may be partly filled."""
    step = shapes.seqs_per_shard
    return [
        (first + index, slice(start, min(start + step, len(block))))
        for index, start in enumerate(range(0, len(block), step))
    ]


def _sequences_committed(writer: CacheWriter) -> int:
    """Sequences of data in a cache whose shards are all committed."""
    shapes = writer.layout
    last = shapes.n_shards - 1
    return last * shapes.seqs_per_shard + load_commit(writer.path, last).sequences - writer.parts.padding
