"""Seconds of the absorption and probing reports on running text: two SAEs and their untrained control.

    python -m benchmarks.absorption [--rows 20000] [--latents 4096] [--profile]

A made-up cache of width 640 whose tokens are words, numbers and punctuation, so that every default family has labels.
Each row is the sum of directions for its token's letter, ending, case and class, for the next token's class, and noise
with a spectrum that falls as a residual stream's does. The coders are not trained: decoder rows are those directions,
directions of single tokens and random ones, so their codes say of the labels what a lightly trained coder's do.
Everything runs on one thread, so that seconds of the processor are comparable on a shared machine.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import string
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models

from sparse_pipeline.analyze.config import AnalyzeConfig
from sparse_pipeline.analyze.reports.absorption.config import AbsorptionConfig
from sparse_pipeline.analyze.reports.probing.report import ProbingConfig
from sparse_pipeline.analyze.run import analyze
from sparse_pipeline.shared.cache import Cache, CacheWriter, Flag, Layout, SiteSpec, open_cache
from sparse_pipeline.shared.coders import Coder, build_coder
from sparse_pipeline.shared.coders.topk import TopKConfig
from sparse_pipeline.shared.runs.folder import create_run

SITE = "layer_09.resid_mid"
WIDTH, CTX, DOC = 640, 128, 256
SPECIAL = ["<pad>", "<eos>", "<bos>"]
ENDINGS = ("s", "ed", "ing", "er", "ly", "tion", "al", "able")
SUFFIX_SHARE = 0.4


def vocabulary(rng: np.random.Generator, words: int = 4000) -> list[str]:
    """Pieces: words with and without a leading space (as ▁) and capital, numbers, punctuation."""
    letters = rng.dirichlet(np.full(26, 4.0))
    pieces = [str(n) for n in range(100)] + list(".,;:!?()-\"'") + ["▁("]
    for _ in range(words):
        stem = "".join(rng.choice(list(string.ascii_lowercase), int(rng.integers(3, 7)), p=letters))
        word = stem + (str(rng.choice(ENDINGS)) if rng.random() < SUFFIX_SHARE else "")
        word = word.capitalize() if rng.random() < 0.2 else word
        pieces.append(("▁" if rng.random() < 0.7 else "") + word)
    return SPECIAL + list(dict.fromkeys(pieces))


def features(pieces: list[str]) -> NDArray[np.bool_]:
    """[V, features] of each token's text: 26 letters, the endings, capital, number, punctuation, leading space."""
    table = []
    for piece in pieces:
        word = piece.replace("▁", "")
        spelt = word.isalpha() and word.isascii()
        table.append(
            [spelt and word[0].lower() == letter for letter in string.ascii_lowercase]
            + [spelt and word.endswith(ending) for ending in ENDINGS]
            + [word[:1].isupper(), word.isdigit(), not word.isalnum(), piece.startswith("▁")]
        )
    return np.array(table)


def write_cache(path: Path, rows: int, rng: np.random.Generator) -> tuple[Cache, NDArray[np.float32]]:
    """A cache of at least `rows` rows, and the directions that its rows are made of [features + V, WIDTH]."""
    pieces = vocabulary(rng)
    table = features(pieces)
    n_seq = -(-rows // (CTX - 1)) + 2
    rank = np.arange(1, len(pieces) - 2)
    frequency = np.append(0.3 / 112 * np.ones(112), 1 / (rank[112:] + 20.0))
    tokens = np.full((n_seq, CTX), 2, np.int32)
    tokens[:, 1:] = 3 + rng.choice(len(rank), (n_seq, CTX - 1), p=frequency / frequency.sum())
    n_features = table.shape[1]
    directions = rng.standard_normal((2 * n_features + len(pieces), WIDTH)).astype(np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    own = directions[:n_features], directions[2 * n_features :]
    flat, after = tokens.reshape(-1), np.roll(tokens.reshape(-1), -1)
    x = table[flat].astype(np.float32) * rng.uniform(2, 4, (len(flat), 1)).astype(np.float32) @ own[0]
    x += 3.0 * own[1][flat] + 0.7 * table[after].astype(np.float32) @ directions[n_features : 2 * n_features]
    mixing = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0] * (np.arange(1, WIDTH + 1) ** -0.5 * 5.0)
    x += rng.standard_normal((len(flat), WIDTH)).astype(np.float32) @ mixing.T.astype(np.float32)
    flags = np.zeros((n_seq, CTX), np.uint8)
    flags[:, 0] = int(Flag.BOS)
    doc_id = (np.arange(n_seq * CTX) // DOC).astype(np.uint32).reshape(n_seq, CTX)
    layout = Layout(n_seq, CTX, n_seq * CTX, (SiteSpec(SITE, WIDTH, "bfloat16", "made up", 9, "resid_mid"),))
    with CacheWriter.create(path, layout, {"model": "made up"}, {}) as writer:
        writer.write_shard(
            0,
            tokens=tokens,
            doc_id=doc_id,
            pos_in_doc=(np.arange(n_seq * CTX) % DOC).astype(np.uint16).reshape(n_seq, CTX),
            flags=flags,
            acts={SITE: torch.from_numpy(x).bfloat16()},
        )
        writer.finish()
    tokenizer = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="<pad>"))
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.save(str(path / "tokenizer.json"))
    return open_cache(path), np.concatenate([directions[:n_features], *own[1:]])


def coder(directions: NDArray[np.float32], latents: int, k: int, noise: float, rng: np.random.Generator) -> Coder:
    """A tied TopK SAE: the directions with noise of this relative size, filled up with random rows."""
    rows = rng.standard_normal((latents, WIDTH)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    known = min(len(directions), latents)
    rows[:known] = directions[:known] + noise * rows[:known]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    made = build_coder(TopKConfig(latents=latents, k=k), WIDTH, WIDTH, tied=True)
    with torch.no_grad():
        made.w_enc.copy_(torch.from_numpy(rows))
        made.w_dec.copy_(torch.from_numpy(rows))
    return made.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description="absorption and probing reports: seconds")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--latents", type=int, default=4096)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--profile", action="store_true", help="list the functions that take longest")
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        cache, directions = write_cache(Path(folder) / "cache", options.rows, rng)
        runs = []
        for name, noise in (("one", 0.5), ("two", 1.0)):
            run = create_run(Path(folder) / "runs", name, {"seed": 0}, {})
            where = {"source": SITE, "target": SITE, "cache": {"path": str(cache.path), "identity": cache.identity}}
            run.finish(coder(directions, options.latents, options.k, noise, rng), {}, where)
            runs.append(run.path)
        reports = {"absorption": AbsorptionConfig(rows=options.rows), "probing": ProbingConfig(rows=options.rows)}
        config = AnalyzeConfig(out=Path(folder) / "reports", compare=False, device="cpu", reports=reports)
        profile = cProfile.Profile()
        began, worked = time.perf_counter(), time.process_time()
        if options.profile:
            profile.enable()
        result = analyze(runs, config)
        profile.disable()
        print(
            f"{time.perf_counter() - began:.1f} s of the clock, {time.process_time() - worked:.1f} s of the processor"
        )
        print(result.headlines)
        if options.profile:
            pstats.Stats(profile).sort_stats("cumulative").print_stats(45)


if __name__ == "__main__":
    main()
