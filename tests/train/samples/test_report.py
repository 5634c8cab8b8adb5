"""What is written of samples: text and places against the cache and the tokenizers library, figures by counting."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from sparse_pipeline.shared.cache import Flag, open_cache
from sparse_pipeline.shared.coders.topk import TopKConfig
from sparse_pipeline.shared.runs.samples import load_samples
from sparse_pipeline.train.config import TrainConfig
from sparse_pipeline.train.data.config import DataConfig
from sparse_pipeline.train.loop import train
from sparse_pipeline.train.samples.config import SamplesConfig
from tests.browser import NARROW_AND_WIDE, faults_of, needs_chromium
from tests.synthetic import make_cache


@pytest.fixture(scope="module")
def run(workshop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a harvested cache, with all samples saved."""
    (cache,) = (path.parent for path in (workshop / "cache").glob("*/manifest.json"))
    config = TrainConfig(
        cache=cache,
        runs=tmp_path_factory.mktemp("runs"),
        coder=TopKConfig(latents=64, k=4),
        data=DataConfig(batch_size=256, epochs=1),
        samples=SamplesConfig(every=10, per_latent=30, save_latents=None, save_per_latent=None),
        min_steps=1,
    )
    train([config])
    return config.path


def test_every_sample_says_where_it_comes_from(run: Path, workshop: Path) -> None:
    (path,) = (path.parent for path in (workshop / "cache").glob("*/manifest.json"))
    cache = open_cache(path)
    tokenizer = Tokenizer.from_file(str(cache.path / "tokenizer/tokenizer.json"))
    special = set(tokenizer.get_added_tokens_decoder())
    compared = 0
    for latent in load_samples(run).latents:
        for s in latent.samples:
            sequence, position = divmod(s.row, cache.ctx)
            assert position == s.position
            assert (s.token, s.pos_in_doc, s.doc_id) == (
                cache.tokens[sequence, position],
                cache.pos_in_doc[sequence, position],
                cache.doc_id[sequence, position],
            )
            start = position - s.peak
            assert s.context == tuple(cache.tokens[sequence, start : start + len(s.context)])
            assert (cache.doc_id[sequence, position : start + len(s.context)] == s.doc_id).all()
            assert s.context[s.peak] == s.token
            assert s.peak <= 20
            if special.isdisjoint(s.context):
                text = tokenizer.decode(list(s.context))
                before, _, rest = s.text.partition("«")
                peak, _, after = rest.partition("»")
                if "\ufffd" not in s.text:
                    assert before + peak + after == text
                    compared += 1
    assert compared > 100


def test_a_bos_within_a_sequence_is_at_position_0(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "c", n_seq=160, ctx=16, packing="apart", doc_length=(3, 20))
    config = TrainConfig(
        cache=cache.path,
        source="layer_01.resid_mid",
        target="layer_01.resid_mid",
        runs=tmp_path / "runs",
        coder=TopKConfig(latents=32, k=4),
        data=DataConfig(batch_size=128, epochs=1),
        samples=SamplesConfig(
            every=2, per_latent=10, save_latents=None, save_per_latent=None, distinct=False, max_bos_share=1.0
        ),
        min_steps=1,
    )
    train([config])
    samples = [s for latent in load_samples(config.path).latents for s in latent.samples]
    bos = {int(row) for row in np.flatnonzero(cache.flags.reshape(-1) & int(Flag.BOS))}
    assert [s.position for s in samples] == [0 if s.row in bos else s.row % 16 for s in samples]
    inside = {s.row for s in samples} & bos - set(range(0, cache.n_rows, 16))
    assert inside
    statistics = json.loads((config.path / "samples/statistics.json").read_bytes())
    assert statistics["position_0_or_massive"]["share"] == pytest.approx(np.mean([s.row in bos for s in samples]))


def test_figures_are_those_of_the_samples(run: Path) -> None:
    found = load_samples(run)
    statistics = json.loads((run / "samples/statistics.json").read_bytes())
    samples = [s for latent in found.latents for s in latent.samples]
    values = np.array([s.value for s in samples])
    counts = np.array([len(latent.samples) for latent in found.latents])
    contexts = {(s.position == 0, s.context[: s.peak + 1]) for s in samples}
    shares = [np.mean([s.position == 0 for s in latent.samples]) for latent in found.latents]
    assert statistics["step"] == found.step
    assert statistics["collections"] == found.collections
    assert statistics["latents"] == {"all": 64, "with_samples": len(found.latents)}
    assert statistics["samples"]["total"] == len(samples)
    per_latent = statistics["samples"]["per_latent"]
    assert (per_latent["mean"], per_latent["median"]) == pytest.approx((counts.mean(), np.median(counts)))
    assert (per_latent["min"], per_latent["max"]) == (counts.min(), counts.max())
    activation = statistics["activation"]
    assert (activation["min"], activation["max"]) == (values.min(), values.max())
    assert activation["mean"] == pytest.approx(values.mean())
    assert statistics["contexts"]["unique"] == len(contexts)
    assert statistics["contexts"]["diversity_percent"] == pytest.approx(100 * len(contexts) / len(samples))
    assert statistics["position_0_or_massive"]["share"] == pytest.approx(np.mean([s.position == 0 for s in samples]))
    assert statistics["position_0_or_massive"]["largest_share_of_a_latent"] == pytest.approx(max(shares))
    verdicts = [latent.specialised for latent in found.latents] + ["none"] * (64 - len(found.latents))
    assert statistics["specialisation"] == {name: verdicts.count(name) for name in sorted(set(verdicts))}


def test_the_table_holds_them_in_cells_of_their_own(run: Path) -> None:
    found = load_samples(run)
    lines = (run / "samples/statistics.md").read_text(encoding="utf-8").splitlines()
    assert lines[0] == f"# Activation samples after step {found.step:,}"
    first = lines[lines.index("|---:|---:|---:|---:|---|---|") + 1]
    cells = first.replace("\\|", "").strip("| ").split(" | ")
    assert cells[0] == str(found.latents[0].latent)
    assert cells[1] == f"{found.latents[0].max:.4g}"
    assert "«" in cells[5]
    assert all(line.replace("\\|", "").count("|") in (0, 3, 7) for line in lines)


def test_the_page_shows_the_samples_as_they_are(run: Path) -> None:
    page = html.unescape((run / "samples/index.html").read_text(encoding="utf-8"))
    samples = load_samples(run)
    assert page.count("<h2>Latent ") == min(30, len(samples.latents))
    for latent in samples.latents[:30]:
        for sample in latent.samples[:5]:
            assert sample.text.replace("\r", "").replace("\n", "↵").replace("\t", "⇥") in page
    assert "<script" not in page.split("<main>")[0]


@needs_chromium
@pytest.mark.slow
def test_nothing_on_the_page_overflows_and_axe_finds_no_fault(run: Path, browser: Any) -> None:
    assert faults_of(browser, run / "samples/index.html", NARROW_AND_WIDE) == {}
