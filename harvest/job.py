"""A harvest's inputs, found and checked: no weights loaded and no document read."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..shared.cache.format import default_shard_rows
from ..shared.errors import UsageError
from .config import HarvestConfig
from .data.pack import Block, PackSpec, pack, pack_apart
from .data.tokenise import tokenise
from .dataset import Dataset
from .model import ModelCheckpoint, Specials
from .sites import FAMILIES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Job:
    """A harvest's inputs, found and checked; no weights loaded and no document read.

    ``batch_tokens`` is the setting, or where that is null what the cache was begun with, else an estimate.
    """

    config: HarvestConfig
    checkpoint: ModelCheckpoint
    tokenizer: PreTrainedTokenizerBase
    specials: Specials
    dataset: Dataset
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
        tokenised = tokenise(self.dataset.documents(), self.tokenizer, targets=prompts)
        spec = PackSpec(
            ctx=config.ctx,
            block=self.unit_shards * self.seqs_per_shard,
            bos=specials.bos,
            eos=specials.eos,
            pad=specials.pad,
            close=config.separator == "eos",
        )
        if config.packing == "concat" and config.cross_document_attention:
            packed = pack(tokenised, spec)
        else:
            packed = pack_apart(tokenised, spec, alone=config.packing != "concat", one_sequence=prompts)
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


def empty_dataset(config: HarvestConfig) -> UsageError:
    return UsageError(
        f"harvest.dataset: {config.dataset} holds no text (column {config.text_column!r})",
        hint="check the dataset, its split and harvest.text_column",
    )
