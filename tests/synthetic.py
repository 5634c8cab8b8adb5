"""Small made-up caches with the structure of real ones, for the tests of every package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparse_pipeline.models.site_names import parse_site
from sparse_pipeline.shared.cache import Cache, CacheWriter, Flag, Layout, SiteSpec, open_cache

BOS_ID, EOS_ID, PAD_ID, FIRST_ID = 2, 1, 0, 3

DEFAULT_SITES = {"layer_01.resid_mid": 32, "layer_01.mlp_out": 32}


@dataclass(frozen=True)
class TokenTable:
    """The token arrays of a cache, each [n_seq, ctx]."""

    tokens: NDArray[np.int32]
    doc_id: NDArray[np.uint32]
    pos_in_doc: NDArray[np.uint16]
    flags: NDArray[np.uint8]


def token_table(
    n_seq: int, ctx: int, seed: int = 0, doc_length: tuple[int, int] = (5, 60), vocab: int = 50, packing: str = "concat"
) -> TokenTable:
    """Random documents, packed into sequences that begin with BOS.

    Args:
        doc_length: shortest and longest document, its closing EOS included.
        packing: ``concat`` joins documents, so that one may continue in the next sequence; ``apart`` does so too, and
            puts a BOS before every document within a sequence; ``document`` gives each its own sequence, cut at ctx
            and padded.

    A BOS row belongs to the document of the token after it and has that token's position in it.
    """
    rng = np.random.default_rng(seed)
    tokens = np.full((n_seq, ctx), PAD_ID, np.int32)
    doc_id = np.zeros((n_seq, ctx), np.uint32)
    pos = np.zeros((n_seq, ctx), np.uint16)
    flags = np.full((n_seq, ctx), int(Flag.PADDING), np.uint8)
    doc, at, length = -1, 0, 0
    for s in range(n_seq):
        if packing == "document":
            at = length
        begins = [0]
        for p in range(1, ctx):
            if at == length:
                if p > 1 and (packing == "document" or (packing == "apart" and p == ctx - 1)):
                    break
                doc, at, length = doc + 1, 0, int(rng.integers(doc_length[0], doc_length[1] + 1))
                if packing == "apart" and p > 1:
                    begins.append(p)
                    continue
            last = at == length - 1
            tokens[s, p] = EOS_ID if last else rng.integers(FIRST_ID, vocab)
            doc_id[s, p], pos[s, p] = doc, at
            flags[s, p] = int(Flag.EOS if last else 0) | int(Flag.DOC_START if at == 0 else 0)
            at += 1
        for p in begins:
            tokens[s, p], flags[s, p] = BOS_ID, int(Flag.BOS)
            if ctx > 1:
                doc_id[s, p], pos[s, p] = doc_id[s, p + 1], pos[s, p + 1]
    return TokenTable(tokens, doc_id, pos, flags)


def place_and_position(table: TokenTable) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Place in the sequence of each row, and position: the same, but 0 for every BOS; [n_seq · ctx] each."""
    n_seq, ctx = table.tokens.shape
    place = np.tile(np.arange(ctx), n_seq)
    return place, np.array([0 if token == BOS_ID else p for token, p in zip(table.tokens.flat, place, strict=True)])


def sparse_acts(
    table: TokenTable, sites: Mapping[str, int], seed: int = 0, features: int = 48, active: int = 4
) -> dict[str, Tensor]:
    """Activations [n_rows, d] in bfloat16: every site mixes the same sparse features in directions of its own.

    BOS rows are one constant vector of large norm, as in a language model; padding rows are zeros.
    """
    rng = np.random.default_rng(seed)
    n_rows = table.tokens.size
    z = np.zeros((n_rows, features), np.float32)
    which = rng.integers(0, features, (n_rows, active))
    z[np.arange(n_rows)[:, None], which] = rng.exponential(1.0, (n_rows, active)) + 0.5
    flags = table.flags.reshape(-1)
    out = {}
    for name, width in sites.items():
        directions = rng.standard_normal((features, width)).astype(np.float32)
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        bos = rng.standard_normal(width).astype(np.float32) * 8
        x = z @ directions + 0.5 + 0.05 * rng.standard_normal((n_rows, width)).astype(np.float32)
        x[(flags & int(Flag.BOS)) != 0] = bos
        x[(flags & int(Flag.PADDING)) != 0] = 0
        out[name] = torch.from_numpy(x).bfloat16()
    return out


def make_cache(
    path: Path,
    n_seq: int = 64,
    ctx: int = 16,
    sites: Mapping[str, int] | None = None,
    acts: Mapping[str, Tensor | NDArray[Any]] | None = None,
    *,
    seed: int = 0,
    shard_rows: int = 256,
    doc_length: tuple[int, int] = (5, 60),
    vocab: int = 50,
    packing: str = "concat",
    table: TokenTable | None = None,
    config: Mapping[str, Any] | None = None,
    quantised: Mapping[str, Literal["fp8", "int8"]] | None = None,
    chunk_rows: int = 0,
) -> Cache:
    """Writes a finished cache below ``path`` and opens it.

    Args:
        sites: name → width; two sites of width 32 when not given.
        acts: name → [n_seq · ctx, d], bfloat16 or float32 tensors or uint16 bits; sparse mixtures when not given.
        shard_rows: rounded down to whole sequences, at least one. Small, so that a small cache has several shards.
        table: the token arrays; random documents when not given.
        config: the harvest config to record; a stand-in made of the arguments when not given.
        quantised: name → storage, for the sites that are quantised.
        chunk_rows: of the sharded layout; 0 is the chunked one.
    """
    sites = dict(sites or (DEFAULT_SITES if acts is None else {name: value.shape[1] for name, value in acts.items()}))
    table = table or token_table(n_seq, ctx, seed, doc_length, vocab, packing)
    acts = dict(sparse_acts(table, sites, seed) if acts is None else acts)
    specs = tuple(replace(_spec(n, w, acts[n]), quantised=(quantised or {}).get(n)) for n, w in sites.items())
    layout = Layout(n_seq, ctx, max(1, shard_rows // ctx) * ctx, specs, chunk_rows)
    settings = dict(config or {"model": "synthetic", "seed": seed, "n_seq": n_seq, "ctx": ctx, "sites": list(sites)})
    # a test folder need not outlive a power cut, and syncing is most of what a small cache costs
    with mock.patch("os.fsync"), CacheWriter.create(path, layout, settings, {"made_by": "tests"}) as writer:
        write_missing(writer, table, acts)
        if not writer.complete:
            writer.finish()
    return open_cache(path)


def write_missing(writer: CacheWriter, table: TokenTable, acts: Mapping[str, Tensor | NDArray[Any]]) -> None:
    """Writes every shard that has no commit yet from whole-cache arrays."""
    for shard in writer.missing_shards():
        seqs, rows = writer.layout.seqs_of(shard), writer.layout.rows_of(shard)
        cut = slice(seqs.start, seqs.stop)
        writer.write_shard(
            shard,
            tokens=table.tokens[cut],
            doc_id=table.doc_id[cut],
            pos_in_doc=table.pos_in_doc[cut],
            flags=table.flags[cut],
            acts={name: value[rows.start : rows.stop] for name, value in acts.items()},
        )


def _spec(name: str, width: int, acts: Tensor | NDArray[Any]) -> SiteSpec:
    layer, kind = parse_site(name)
    full = acts.dtype in (torch.float32, np.dtype(np.float32))
    return SiteSpec(name, width, "float32" if full else "bfloat16", f"model.layers.{layer}", layer, kind)
