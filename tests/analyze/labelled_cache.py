"""The planted hierarchy as a cache with a tokenizer: the parent of each row is a label of its token's text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models

from sparse_pipeline.analyze.reports import REPORTS
from sparse_pipeline.analyze.result import ReportResult
from sparse_pipeline.analyze.stream.batches import stream
from sparse_pipeline.analyze.subject.subject import Subject
from sparse_pipeline.shared.cache import Cache, Flag
from sparse_pipeline.shared.cache.vocabulary import Vocabulary
from sparse_pipeline.shared.coders import Coder, build_coder
from sparse_pipeline.shared.coders.topk import TopKConfig
from tests.analyze.hierarchy import Hierarchy
from tests.synthetic import BOS_ID, EOS_ID, PAD_ID, TokenTable, make_cache

SITE = "layer_01.resid_mid"
CTX = 10
TOKEN_LABELS = ("digit", "punctuation", "capitalised")
"""Labels of the parents 0, 1, 2."""


def write_tokenizer(path: Path) -> None:
    """Token 3 is a digit (parent 0 of the tree), 4 punctuation (1), 5 capitalised (2), 6 none of them."""
    vocabulary = {"<pad>": PAD_ID, "<eos>": EOS_ID, "<bos>": BOS_ID, "7": 3, "!": 4, "▁Word": 5, "▁word": 6}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<pad>", "<eos>", "<bos>"])
    tokenizer.save(str(path))


def labelled_cache(tree: Hierarchy, path: Path) -> Cache:
    """A row of the tree at every position but the first, its parent spelt out by the token."""
    n_seq = len(tree.x) // (CTX - 1)
    tokens = np.full((n_seq, CTX), BOS_ID, np.int32)
    tokens[:, 1:] = np.where(tree.parent < 0, 6, 3 + tree.parent).reshape(n_seq, CTX - 1)
    flags = np.zeros((n_seq, CTX), np.uint8)
    flags[:, 0] = int(Flag.BOS)
    doc_id = np.repeat(np.arange(n_seq, dtype=np.uint32)[:, None], CTX, axis=1)
    position = np.tile(np.arange(CTX, dtype=np.uint16), (n_seq, 1))
    acts = torch.zeros(n_seq, CTX, tree.x.shape[1])
    acts[:, 1:] = tree.x.reshape(n_seq, CTX - 1, -1)
    acts[:, 0] = 50.0
    made = make_cache(
        path, n_seq, CTX, acts={SITE: acts.reshape(n_seq * CTX, -1)}, shard_rows=2000,
        table=TokenTable(tokens, doc_id, position, flags),
    )  # fmt: skip
    write_tokenizer(path / "tokenizer.json")
    return made


def untrained(width: int) -> Coder:
    generator = torch.Generator().manual_seed(0)
    return build_coder(TopKConfig(latents=64, k=4), width, width, tied=True, generator=generator).eval()


def report(kind: str, config: Any, cache: Cache, coder: Coder, halves: bool = False) -> ReportResult:
    """The report, from one pass; with `halves`, from two collectors that are merged."""
    of = Subject("planted", "run", coder, cache, SITE, SITE, Vocabulary.of(cache), tuple(cache.shards))
    middle = len(of.shards) // 2
    parts = []
    for shards in (of.shards[middle:], of.shards[:middle]) if halves else (of.shards,):
        collector = REPORTS[kind](config, of)
        for batches in stream(cache, [of.coder_sites(collector.reconstructs)], shards):
            collector.update(batches[0])
        parts.append(collector)
    for other in parts[1:]:
        parts[0].merge(other)
    return parts[0].finalise()
