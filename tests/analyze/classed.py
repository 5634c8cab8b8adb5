"""A cache whose documents have a topic and a tone, and a coder whose latents say something of both."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import optimize

from sparse_pipeline.analyze.reports import AnyReport, Report, ReportConfig
from sparse_pipeline.analyze.stream.batches import stream
from sparse_pipeline.analyze.subject.subject import Subject
from sparse_pipeline.shared.cache import Cache
from sparse_pipeline.shared.cache.vocabulary import Vocabulary
from sparse_pipeline.shared.coders import Coder, build_coder
from sparse_pipeline.shared.coders.topk import TopKConfig
from sparse_pipeline.shared.runs.folder import Run, create_run
from tests.synthetic import make_cache, token_table

SITE = "layer_01.resid_mid"
D, F, K, CTX = 20, 24, 5, 16
TOPICS, TONES = ("art", "law", "sport", "tech"), ("calm", "cross")

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Classed:
    """The cache, the coder, and topic and tone of each document, "" where it has none."""

    cache: Cache
    coder: Coder
    topic: NDArray[np.str_]
    tone: NDArray[np.str_]

    def subject(self) -> Subject:
        """The coder on the whole cache."""
        return Subject(
            "classed", "run", self.coder, self.cache, SITE, SITE, Vocabulary.of(self.cache), tuple(self.cache.shards)
        )

    def run(self, folder: Path, name: str = "classed") -> Run:
        """The coder as a finished run."""
        run = create_run(folder, name, {"seed": 0}, {})
        cache = {"path": str(self.cache.path), "identity": self.cache.identity}
        extra = {"source": SITE, "target": SITE, "cache": cache, "training": {"seed": 0}}
        run.finish(self.coder, {"steps": 1, "tokens": 1}, extra)
        return run

    def collected(self, report: type[Report[ReportConfig]], config: ReportConfig) -> AnyReport:
        """A report's collector after the pass, merged from two."""
        subject = self.subject()
        halves = []
        for shards in (subject.shards[1::2], subject.shards[::2]):
            collector = report(config, subject)
            for (batch,) in stream(self.cache, [subject.coder_sites(False)], shards):
                collector.update(batch)
            halves.append(collector)
        halves[0].merge(halves[1])
        return halves[0]

    def rows_of(self, document: int, tokens: int) -> NDArray[np.int64]:
        """Rows of a document's first tokens but BOS and EOS, straight from the token arrays."""
        flags, doc = self.cache.flags.reshape(-1), self.cache.doc_id.reshape(-1)
        first = self.cache.pos_in_doc.reshape(-1) < tokens
        place = np.arange(len(flags)) % CTX
        return np.flatnonzero((doc == document) & (place > 0) & (flags & (1 | 2 | 4) == 0) & first)

    @cached_property
    def dense(self) -> torch.Tensor:
        """The codes of every row [n_rows, F] float64."""
        with torch.inference_mode():
            return self.coder.encode(self.cache.rows(SITE, np.arange(self.cache.n_rows)).float()).dense().double()

    @torch.inference_mode()
    def mean(self, document: int, tokens: int, off: NDArray[np.int64] | None = None) -> tuple[Doubles, Doubles]:
        """(mean activation, mean code) of a document, with latents set to 0 row by row in the reconstruction."""
        rows = self.rows_of(document, tokens)
        x, dense = self.cache.rows(SITE, rows).double(), self.dense[rows]
        if off is not None:
            directions = self.coder.raw_directions(self.coder.w_dec.double())
            kept = dense.clone()
            kept[:, off] = 0
            x = kept @ directions + (x - dense @ directions)  # decoded without them, and the error that was there
        return x.mean(dim=0).numpy(), dense.mean(dim=0).numpy()


def classed(path: Path, n_seq: int = 240, seed: int = 0) -> Classed:
    """Documents of 8 to 24 tokens that cross sequences; topics are not equally frequent, and one in 20 has none."""
    rng = np.random.default_rng(seed)
    table = token_table(n_seq, CTX, seed, doc_length=(8, 24))
    n_docs = int(table.doc_id.max()) + 1
    topic = np.array([*TOPICS, ""])[rng.choice(5, n_docs, p=[0.35, 0.25, 0.2, 0.15, 0.05])]
    tone = np.array(TONES)[rng.choice(2, n_docs)]
    doc = table.doc_id.reshape(-1)
    rate = np.full((len(doc), 16), 0.12)
    for number, name in enumerate(TOPICS):
        rate[:, 3 * number : 3 * number + 3] += 0.22 * (topic[doc] == name)[:, None]
    for number, name in enumerate(TONES):
        rate[:, 12 + 2 * number : 14 + 2 * number] += 0.3 * (tone[doc] == name)[:, None]
    z = np.where(rng.random(rate.shape) < rate, rng.exponential(1.0, rate.shape) + 0.3, 0)
    directions = np.linalg.qr(rng.standard_normal((D, D)))[0]
    x = z @ directions[:16] + 0.5 + 0.1 * rng.standard_normal((len(doc), D))
    x[(table.flags.reshape(-1) & 1) != 0] = 9
    x[(table.flags.reshape(-1) & 4) != 0] = 0
    cache = make_cache(
        path, n_seq, CTX, acts={SITE: torch.from_numpy(x.astype(np.float32))}, table=table, shard_rows=1000
    )
    with (path / "documents.jsonl").open("w") as lines:
        for number in np.unique(doc[(table.flags.reshape(-1) & 4) == 0]).tolist():
            line = {"doc_id": number, "domain": str(topic[number]), "labels": {"tone": str(tone[number])}}
            lines.write(json.dumps(line) + "\n")
    coder = build_coder(TopKConfig(latents=F, k=K, decoder_norm="unit"), D, D, tied=True)
    rows = (
        directions[np.arange(F) % 16] + 0.45 * directions[(np.arange(F) * 5 + 1) % 16]
    )  # each says a little of others
    rows = torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True)).float()
    with torch.no_grad():
        coder.w_enc.copy_(rows)
        coder.w_dec.copy_(rows)
        for side in (coder.input_mean, coder.target_mean):
            side.fill_(0.5)
        for side in (coder.input_scale, coder.target_scale):
            side.fill_(2.0)
    return Classed(cache, coder.eval(), topic, tone)


def fitted(x: Doubles, truth: NDArray[np.bool_], l2: float = 1e-3) -> tuple[Doubles, float]:
    """(weight, bias) of the class-balanced logistic regression of standardised x, by SciPy's BFGS in float64."""
    mean, std = x.mean(axis=0), x.std(axis=0)
    u = (x - mean) / std
    weight = np.where(truth, (~truth).sum() / truth.sum(), 1.0) / len(truth)
    sign = np.where(truth, 1.0, -1.0)

    def loss(at: Doubles) -> tuple[float, Doubles]:
        margin = sign * (u @ at[:-1] + at[-1])
        slope = -weight * sign / (1 + np.exp(margin))
        value = (weight * np.logaddexp(0, -margin)).sum() + 0.5 * l2 * (at[:-1] ** 2).sum()
        return float(value), np.append(slope @ u + l2 * at[:-1], slope.sum())

    found = optimize.minimize(loss, np.zeros(x.shape[1] + 1), jac=True, method="BFGS", options={"gtol": 1e-9}).x
    w = found[:-1] / std
    return w, float(found[-1] - w @ mean)
