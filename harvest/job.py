"""The inputs of a harvest, found and checked, and the arithmetic of its batches, units and shards."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..models.checkpoint import ModelCheckpoint
from ..models.families import family_of
from ..models.tokenizer import Specials, vocabulary_size
from ..shared.cache.format import default_shard_rows
from ..shared.errors import UsageError
from .config import HarvestConfig
from .data.choose import limited, shuffled
from .data.encode import Encoder
from .data.fit import embedded, refuse_unknown
from .data.pack import Block, PackSpec, TokenDocument, pack, pack_apart
from .data.reading import Reading
from .data.tokenise import tokenise
from .dataset import Dataset

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Job:
    """The inputs of a harvest, found and checked; no weights loaded and no document read.

    A *batch* is one call of the model, a *shard* one file of each site, a *unit* the shards that are computed
    together: as many as one batch fills, at least one. Either a unit is one shard of several batches, or one batch of
    several shards, so a batch never mixes units and a shard's values do not depend on which others are computed.

    ``batch_tokens`` is the setting; if that is null, the number recorded in the cache, or else an estimate. A plan may
    lack the tokenizer; then no dataset is read.
    """

    config: HarvestConfig
    checkpoint: ModelCheckpoint
    tokenizer: PreTrainedTokenizerBase | None
    specials: Specials
    dataset: Dataset
    batch_tokens: int

    @property
    def compiled(self) -> bool:
        """Whether the model is compiled."""
        if self.config.compile == "auto" and not self.checkpoint.whole:
            return False
        if self.config.compile == "auto":
            family = family_of(self.checkpoint.config)
            return self.checkpoint.device.type == "cuda" and family is not None and family.compiles
        return self.config.compile == "on"

    @property
    def masked(self) -> bool:
        """Whether padding must be masked: causal attention never sees what comes after a token, other kinds do."""
        config = self.checkpoint.config.get_text_config()
        both_ways = getattr(config, "use_bidirectional_attention", False)
        return bool(both_ways) or family_of(config) is None

    @property
    def isolated(self) -> bool:
        """Whether documents share sequences and must not attend to one another."""
        return self.config.packing == "concat" and not self.config.cross_document_attention

    @property
    def seqs_per_shard(self) -> int:
        """Sequences of a whole shard."""
        rows = self.config.shard_rows or default_shard_rows(self.config.ctx)
        return rows // self.config.ctx

    @property
    def unit_shards(self) -> int:
        """Shards in a unit: as many as one batch fills, at least one."""
        return max(1, self.batch_seqs // self.seqs_per_shard)

    @property
    def batch_seqs(self) -> int:
        """Sequences in a batch: at most a shard, or rounded down to whole shards."""
        wanted = max(1, self.batch_tokens // self.config.ctx)
        if wanted >= self.seqs_per_shard:
            return wanted // self.seqs_per_shard * self.seqs_per_shard
        return wanted

    def blocks(self, reading: Reading | None = None) -> Iterator[Block]:
        """All sequences of the dataset up to the budget, one unit at a time. The reading counts what is found."""
        config, specials = self.config, self.specials
        reading = reading or Reading(config.on_bad_row)
        left = None if config.tokens is None else self.wanted_sequences
        prompts = config.packing == "prompts"
        tokenised = embedded(self.tokenised(reading), vocabulary_size(self.checkpoint), config.model)
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

    def tokenised(self, reading: Reading) -> Iterator[TokenDocument]:
        """The tokens of every document."""
        assert self.tokenizer is not None
        encoder = Encoder(
            self.tokenizer,
            special=self.config.special_tokens,
            train_roles=self.config.train_roles,
            targets=self.config.packing == "prompts",
            bos=self.specials.bos,
            eos=self.specials.eos,
            vocab=vocabulary_size(self.checkpoint),
        )
        config = self.config
        documents = shuffled(self.dataset.documents(reading), config.shuffle_documents, config.shuffle_seed)
        tokenised = tokenise(documents, encoder, reading)
        return limited(tokenised, config.max_document_tokens, config.long_documents == "split")

    def refuse_unknown(self) -> None:
        """Reads the first documents. Raises UsageError if the tokenizer does not know what they are made of."""
        assert self.tokenizer is not None
        unknown = self.tokenizer.unk_token_id
        reading = Reading(self.config.on_bad_row)
        refuse_unknown(self.tokenised(reading), unknown, self.config.model, self.config.dataset_name)

    @functools.cached_property
    def wanted_sequences(self) -> int:
        """Sequences of the budget; the dataset may hold fewer."""
        if self.config.tokens is None:
            return self.count_sequences()
        return -(-self.config.tokens // self.config.ctx)

    def count_sequences(self, reading: Reading | None = None) -> int:
        """Sequences that the dataset fills, at most the budget; reads and tokenises it.

        Raises:
            UsageError: the dataset holds no text.
        """
        reading = reading or Reading(self.config.on_bad_row)
        count = sum(len(block) for block in self.blocks(reading))
        if not count:
            raise empty_dataset(self.config, reading)
        return count


def empty_dataset(config: HarvestConfig, reading: Reading) -> UsageError:
    """The error for a dataset without text."""
    skipped = "".join(f"; {note}" for note in reading.notes())
    return UsageError(
        f"harvest.dataset: {config.dataset_name} holds no text (column {config.content_column!r}){skipped}",
        hint="check the dataset, its split and harvest.text_column",
    )
