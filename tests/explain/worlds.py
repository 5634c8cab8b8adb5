"""A cache and a run in which it is known what each latent fires on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers

from sparse_pipeline.shared.cache import Cache
from sparse_pipeline.shared.coders import build_coder
from sparse_pipeline.shared.coders.configs.relu import ReLUConfig
from sparse_pipeline.shared.runs.folder import Run, create_run
from tests.synthetic import make_cache, place_and_position, token_table

SITE = "layer_01.resid_post"
TOKEN, AFTER, NOISE, RARE, DEAD = range(5)
"""Latents: fires on one token; after another token; on random rows; on three rows; never."""

OWN, AHEAD = 7, 11
N_SEQ, CTX, VOCAB = 600, 32, 60


@dataclass(frozen=True)
class World:
    """A run on a cache.

    Attributes:
        z: [n_rows, 5] the codes.
        tokens: [n_rows].
    """

    cache: Cache
    run: Run
    z: NDArray[np.float32]
    tokens: NDArray[np.int64]


def word(token: int) -> str:
    """The text of a token."""
    return f"w{token:02d}"


def world(folder: Path) -> World:
    """The run `planted` in folder/runs, on the cache folder/cache/planted."""
    rng = np.random.default_rng(5)
    table = token_table(N_SEQ, CTX, 1, doc_length=(20, 60), vocab=VOCAB)
    tokens, position = table.tokens.reshape(-1).astype(np.int64), place_and_position(table)[1]
    ahead = np.concatenate([[0], tokens[:-1]])
    n = len(tokens)
    z = np.zeros((n, 5), np.float32)
    strength = rng.exponential(1.0, n).astype(np.float32) + 1
    z[:, TOKEN] = np.where(tokens == OWN, strength, 0)
    z[:, AFTER] = np.where((ahead == AHEAD) & (position > 1), strength, 0)
    z[:, NOISE] = np.where(rng.random(n) < 0.01, strength, 0)
    z[rng.choice(n, 3, replace=False), RARE] = 1
    z[position == 0] = 0
    cache = make_cache(
        folder / "cache" / "planted", N_SEQ, CTX, acts={SITE: torch.from_numpy(z)}, table=table, shard_rows=4800
    )
    letters = Tokenizer(models.WordLevel({word(token): token for token in range(VOCAB + 3)}, unk_token=word(0)))
    letters.pre_tokenizer = pre_tokenizers.Whitespace()
    letters.save(str(cache.path / "tokenizer.json"))
    coder = build_coder(ReLUConfig(latents=5), 5, 5, tied=True, generator=torch.Generator().manual_seed(0)).eval()
    with torch.no_grad():
        for value in coder.parameters():
            value.copy_(torch.eye(5) if value.ndim == 2 else torch.zeros_like(value))
    coder.source, coder.target = SITE, SITE
    extra: dict[str, Any] = {"cache": {"path": str(cache.path), "identity": cache.identity}, "training": {"seed": 0}}
    run = create_run(folder / "runs", "planted", {"seed": 0}, {})
    run.finish(coder, {"steps": 1, "tokens": 1}, {"source": SITE, "target": SITE, **extra})
    return World(cache, run, z, tokens)
