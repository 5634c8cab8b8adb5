"""What a harvest will be, settled before any weight is read: shapes, identity, the model's cost."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from harvest.capture import SiteReader, count_flops, site_widths
from harvest.config import HarvestConfig, Storage, cache_path, content_settings
from harvest.data.pack import Block, pack, pack_apart
from harvest.data.sources import Source, open_source
from harvest.data.tokenise import tokenise
from harvest.model import (
    Checkpoint,
    Specials,
    body_of,
    drop_later_layers,
    empty_model,
    find_checkpoint,
    fingerprint,
    load_tokenizer,
    special_tokens,
)
from harvest.sites import FAMILIES, resolve_sites
from shared.cache import Layout, SiteSpec
from shared.cache.format import default_chunk_rows, default_shard_rows
from shared.errors import UsageError
from shared.sites import Site

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBE_TOKENS = 8


@dataclass(frozen=True)
class Job:
    """A harvest's inputs, found and checked; no weights loaded and no document read.

    ``batch_tokens`` is the setting, or where that is null what the cache was begun with, else an estimate.
    """

    config: HarvestConfig
    checkpoint: Checkpoint
    tokenizer: PreTrainedTokenizerBase
    specials: Specials
    source: Source
    batch_tokens: int

    @property
    def compiled(self) -> bool:
        """The model is compiled."""
        if self.config.compile == "auto":
            return self.checkpoint.device.type == "cuda" and self.checkpoint.model_type in FAMILIES
        return self.config.compile == "on"

    @property
    def masked(self) -> bool:
        """Padding must be hidden from the model: causal attention never looks at what comes after, other kinds do."""
        config = self.checkpoint.config.get_text_config()
        both_ways = getattr(config, "use_bidirectional_attention", False)
        return bool(both_ways) or self.checkpoint.model_type not in FAMILIES

    @property
    def isolated(self) -> bool:
        """Documents share sequences, and must not see one another."""
        return self.config.packing == "concat" and not self.config.cross_document_attention

    @property
    def seqs_per_shard(self) -> int:
        rows = self.config.shard_rows or default_shard_rows(self.config.ctx)
        return rows // self.config.ctx

    @property
    def unit_shards(self) -> int:
        """Shards that are computed together: as many as one call of the model takes, at least one.

        A call never mixes sequences of two units, so a shard's bits do not depend on which other shards are computed.
        """
        return max(1, self.batch_seqs // self.seqs_per_shard)

    @property
    def batch_seqs(self) -> int:
        """Sequences in one call: a part of a shard, or a whole number of shards."""
        wanted = max(1, self.batch_tokens // self.config.ctx)
        if wanted >= self.seqs_per_shard:
            return wanted // self.seqs_per_shard * self.seqs_per_shard
        return wanted

    def blocks(self) -> Iterator[Block]:
        """All sequences of the dataset up to the budget, a unit of shards at a time."""
        config, specials = self.config, self.specials
        left = None if config.tokens is None else self.wanted_sequences
        prompts = config.packing == "prompts"
        tokenised = tokenise(self.source.documents(), self.tokenizer, targets=prompts)
        size = self.unit_shards * self.seqs_per_shard
        special = (specials.bos, specials.eos, specials.pad, config.separator == "eos")
        if config.packing == "concat" and config.cross_document_attention:
            packed = pack(tokenised, config.ctx, size, *special)
        else:
            alone = config.packing != "concat"
            packed = pack_apart(tokenised, config.ctx, size, *special, alone=alone, one_sequence=prompts)
        for block in packed:
            if left is not None:
                block = block.first(left)
                left -= len(block)
            yield block
            if left == 0:
                return

    @functools.cached_property
    def wanted_sequences(self) -> int:
        """Sequences that the budget asks for; the dataset may hold fewer."""
        if self.config.tokens is None:
            return self.count_sequences()
        return -(-self.config.tokens // self.config.ctx)

    def count_sequences(self) -> int:
        """Sequences that the dataset fills, up to the budget: reads and tokenises it.

        Raises:
            UsageError: it holds no text at all.
        """
        count = sum(len(block) for block in self.blocks())
        if not count:
            raise empty_dataset(self.config)
        return count


def prepare(config: HarvestConfig) -> Job:
    """Finds the model and the dataset. Raises UsageError for whatever is not there."""
    checkpoint = find_checkpoint(config)
    tokenizer = load_tokenizer(checkpoint, config.model)
    specials = special_tokens(tokenizer, config.model, config.separator)
    job = Job(config, checkpoint, tokenizer, specials, open_source(config), config.batch_tokens or config.ctx)
    if config.batch_tokens is None:
        from harvest.batch_size import estimate, recorded

        job = replace(job, batch_tokens=recorded(cache_path(config), config.ctx) or estimate(job))
    return job


def empty_dataset(config: HarvestConfig) -> UsageError:
    return UsageError(
        f"harvest.dataset: {config.dataset} holds no text (column {config.text_column!r})",
        hint="check the dataset, its split and harvest.text_column",
    )


def layout(job: Job, sites: list[Site], widths: dict[str, int], counted: int | None = None) -> Layout:
    """The shapes of the cache: of as many sequences as were asked for, or as were counted."""
    config = job.config
    specs = tuple(_spec(site, widths[site.name], config.storage_at(site.name)) for site in sites)
    shard_rows, chunk_rows = job.seqs_per_shard * config.ctx, 0
    if config.layout == "sharded":
        chunk_rows = config.chunk_rows or default_chunk_rows(config.ctx, shard_rows)
    return Layout(counted or job.wanted_sequences, config.ctx, shard_rows, specs, chunk_rows)


def _spec(site: Site, width: int, storage: Storage) -> SiteSpec:
    where = (site.module_path, site.layer, site.kind, site.io)
    if storage == "fp8" or storage == "int8":
        return SiteSpec(site.name, width, "bfloat16", *where, quantised=storage)
    return SiteSpec(site.name, width, storage, *where)


def identity_of(job: Job) -> dict[str, Any]:
    """Everything that decides the bits of the cache: the settings that do, and what they resolved to."""
    checkpoint, specials = job.checkpoint, job.specials
    return {
        "harvest": content_settings(job.config),
        "resolved": {
            "model_type": checkpoint.model_type,
            "model_revision": checkpoint.revision,
            "model_sha256": fingerprint(checkpoint),
            "dataset": job.source.identity,
            "device": checkpoint.device.type,
            "dtype": str(checkpoint.dtype).removeprefix("torch."),
            "attention": checkpoint.attention or "default",
            "compiled": job.compiled,
            "bos_token_id": specials.bos,
            "eos_token_id": specials.eos,
            "pad_token_id": specials.pad,
            "sequences_per_call": job.batch_seqs,
        },
    }


@dataclass(frozen=True)
class ModelCost:
    """Attributes:
    parameters: of the whole model.
    kept_bytes: weights that go to the device: no head, no later layer.
    flops_share: matrix products of the cut forward ÷ those of the full one with logits.
    flops_per_token: of the cut forward.
    """

    parameters: int
    kept_bytes: int
    flops_share: float
    flops_per_token: float


def cost(job: Job) -> tuple[list[Site], dict[str, int], ModelCost]:
    """The sites, their widths, and what the model will take, from a model without weights."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        model = empty_model(job.checkpoint)
        sites = resolve_sites(job.config.sites, model, job.checkpoint.model_type)
        ids = torch.zeros(1, job.config.ctx, dtype=torch.long)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        with torch.inference_mode(), count_flops() as full:
            model(input_ids=ids)
        drop_later_layers(model, job.checkpoint.model_type, sites)
        body = body_of(model)
        with SiteReader(model, body, sites) as reader, count_flops() as cut:
            widths = site_widths(reader, ids)
        kept = sum(tensor.nbytes for tensor in (*body.parameters(), *body.buffers()))
    flops = cut.get_total_flops()
    total = full.get_total_flops()
    return sites, widths, ModelCost(parameters, kept, flops / total if total else 0.0, flops / ids.numel())


def probe_ids(job: Job) -> torch.Tensor:
    """A short sequence of any tokens, [1, n]."""
    return torch.full((1, min(_PROBE_TOKENS, job.config.ctx)), job.specials.bos, dtype=torch.long)
