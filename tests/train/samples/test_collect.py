"""Samples against brute force: every activation that was shown, sorted, filtered and capped in plain Python."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sparse_pipeline
from sparse_pipeline.shared.cache import Cache, Flag
from sparse_pipeline.shared.cache.batch import Batch
from sparse_pipeline.shared.coders import ARCHITECTURES, Codes
from sparse_pipeline.shared.runs.samples import load_samples
from sparse_pipeline.train.config import TrainConfig
from sparse_pipeline.train.loop import train as train_runs
from sparse_pipeline.train.samplers.position_stratified import PositionStratifiedConfig
from sparse_pipeline.train.samples.collect import Kept, SampleCollector
from sparse_pipeline.train.samples.config import SamplesConfig
from sparse_pipeline.train.samples.report import SampleWriter
from tests.synthetic import make_cache, token_table
from tests.train.conftest import train_until_power_cut
from tests.train.test_architectures import coder_config

MakeConfig = Callable[..., TrainConfig]
EVERYTHING = {"save_latents": None, "save_per_latent": None}


@dataclass(frozen=True)
class Entry:
    """An activation that was shown."""

    value: float
    row: int
    step: int


@pytest.fixture(scope="module")
def repetitive(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """Few tokens, short documents, and one of five tokens at position 0: contexts repeat, there too."""
    table = token_table(160, 16, doc_length=(2, 9), vocab=6)
    table.tokens[:, 0] = np.random.default_rng(1).integers(50, 55, 160)
    return make_cache(tmp_path_factory.mktemp("caches") / "repetitive", table=table)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[int, list[Entry]]:
    """By latent, everything that collectors are shown; the cap is checked each time."""
    entries: dict[int, list[Entry]] = defaultdict(list)
    real = SampleCollector.collect

    def watched(self: SampleCollector, step: int, codes: Codes, rows: Batch) -> None:
        dense = codes.detach().dense().numpy()
        for place, latent in zip(*np.nonzero(dense), strict=True):
            entries[int(latent)].append(Entry(float(dense[place, latent]), int(rows.row[place]), step))
        real(self, step, codes, rows)
        kept = self.kept()
        assert (kept.apart.sum(axis=1) <= self.max_bos_share * kept.count + 1e-9).all()
        assert (kept.count <= self.config.per_latent).all()

    monkeypatch.setattr(SampleCollector, "collect", watched)
    return entries


def context(cache: Cache, row: int, before: int) -> tuple[int, ...]:
    """The token and those before it, back to the last BOS of its sequence."""
    tokens, flags = cache.tokens.reshape(-1), cache.flags.reshape(-1)
    found = [int(tokens[row])]
    while row % cache.ctx and not flags[row] & Flag.BOS and len(found) <= before:
        row -= 1
        found.append(int(tokens[row]))
    return tuple(reversed(found))


def best(cache: Cache, entries: list[Entry], config: SamplesConfig, share: float, limit: int) -> list[Entry]:
    """What ought to be kept of a latent: of all allowed choices the one with the largest sum."""
    bos = (cache.flags.reshape(-1) & int(Flag.BOS)) != 0
    ordered = sorted((e for e in entries if e.value > config.threshold), key=lambda e: (-e.value, e.row, e.step))
    shelves: dict[bool, list[Entry]] = {True: [], False: []}
    known = set()
    for entry in ordered:
        key = (entry.row % cache.ctx == 0, context(cache, entry.row, config.context)) if config.distinct else entry
        if key not in known:
            known.add(key)
            shelves[bool(bos[entry.row]) or entry.row % cache.ctx == 0].append(entry)
    choices = []
    for n_bos in range(min(len(shelves[True]), limit) + 1):
        chosen = shelves[True][:n_bos] + shelves[False][: limit - n_bos]
        if n_bos <= share * len(chosen) + 1e-9:
            choices.append(chosen)
    return sorted(max(choices, key=lambda c: sum(e.value for e in c)), key=lambda e: (-e.value, bos[e.row], e.row))


CASES: list[dict[str, Any]] = [
    {"every": 10, "per_latent": 10, "context": 1, "threshold": 0.5, "max_bos_share": 0.3},
    {"every": 7, "per_latent": 12, "context": 2, "distinct": False},
    {"every": 20, "per_latent": 5, "context": 0, "max_bos_share": 1.0},
    {"every": 20, "per_latent": 9, "context": 20, "max_bos_share": 0.0},
]


@pytest.mark.parametrize(
    ("settings", "architecture"),
    [(CASES[0], name) for name in ARCHITECTURES] + [(case, "topk") for case in CASES[1:]],
    ids=str,
)
def test_a_run_keeps_what_brute_force_keeps(
    settings: dict[str, Any],
    architecture: str,
    config: MakeConfig,
    repetitive: Cache,
    seen: dict[int, list[Entry]],
) -> None:
    samples = SamplesConfig(**settings, **EVERYTHING)
    made = config(cache=repetitive.path, samples=samples, coder=coder_config(architecture))
    (summary,) = train_runs([made])
    share = 0.2 if samples.max_bos_share is None else samples.max_bos_share
    found = load_samples(made.path)
    expected_steps = {*range(samples.every, summary.steps + 1, samples.every), summary.steps}
    assert {entry.step for entries in seen.values() for entry in entries} == expected_steps
    assert (found.step, found.collections) == (summary.steps, len(expected_steps))
    wanted = {i: best(repetitive, entries, samples, share, samples.per_latent) for i, entries in seen.items()}
    wanted = {i: entries for i, entries in wanted.items() if entries}
    assert {latent.latent for latent in found.latents} == wanted.keys()
    for latent in found.latents:
        assert [Entry(s.value, s.row, s.step) for s in latent.samples] == wanted[latent.latent]
        assert latent.kept == len(wanted[latent.latent])
        assert latent.mean == pytest.approx(np.mean([e.value for e in wanted[latent.latent]]))
    largest = [latent.max for latent in found.latents]
    assert largest == sorted(largest, reverse=True)


def test_the_saved_ones_are_the_strongest_under_the_same_cap(
    config: MakeConfig, repetitive: Cache, seen: dict[int, list[Entry]]
) -> None:
    samples = SamplesConfig(every=10, per_latent=20, context=1, save_latents=5, save_per_latent=6)
    made = config(cache=repetitive.path, samples=samples)
    train_runs([made])
    found = load_samples(made.path)
    by_latent = {i: best(repetitive, entries, samples, 0.2, 20) for i, entries in seen.items()}
    largest = {i: max((e.value for e in entries if e.row % 16), default=0.0) for i, entries in by_latent.items()}
    strongest = sorted((i for i in by_latent if by_latent[i]), key=lambda i: (-largest[i], -by_latent[i][0].value, i))
    assert [latent.latent for latent in found.latents] == strongest[:5]
    for latent in found.latents:
        assert latent.max == largest[latent.latent]
        assert all(s.ordinary == (s.position > 0) for s in latent.samples)
        want = best(repetitive, seen[latent.latent], samples, 0.2, 6)
        assert [Entry(s.value, s.row, s.step) for s in latent.samples] == want
        assert sum(s.position == 0 for s in latent.samples) <= 0.2 * len(latent.samples)


def collector(cache: Cache, n_latents: int, **settings: Any) -> SampleCollector:
    return SampleCollector(SamplesConfig(**settings), cache, n_latents, 1000, 0.2)


def batches(cache: Cache, n_latents: int, at_bos: float) -> Iterator[tuple[Codes, Batch]]:
    """Batches in which latents fire mostly at position 0, and most strongly there."""
    rng = np.random.default_rng(3)
    flags = torch.from_numpy(cache.flags.reshape(-1).copy())
    for _ in range(30):
        row = rng.integers(0, cache.n_seq, 8) * cache.ctx + np.where(rng.random(8) < at_bos, 0, rng.integers(1, 16, 8))
        dense = (
            rng.exponential(1.0, (8, n_latents))
            * (rng.random((8, n_latents)) < 0.2)
            * (1 + 9 * (row % 16 == 0))[:, None]
        )
        index = torch.from_numpy(row)
        nothing = torch.zeros(8)
        batch = Batch({}, nothing, index % cache.ctx, nothing, nothing, flags[index], index)
        yield Codes(torch.from_numpy(dense).float(), None, n_latents), batch


def test_the_cap_holds_at_every_moment_and_what_is_kept_only_gets_stronger(repetitive: Cache) -> None:
    made = collector(repetitive, 40, per_latent=10, context=3)
    before: Kept | None = None
    for step, (codes, rows) in enumerate(batches(repetitive, 40, at_bos=0.7), 1):
        made.collect(step, codes, rows)
        kept = made.kept()
        assert (kept.apart.sum(axis=1) * 5 <= kept.count).all()
        assert ((kept.row % 16 == 0) & (kept.value > 0) == kept.apart).all()
        assert (np.diff(kept.value, axis=1) <= 0).all()
        if before is not None:
            assert (kept.value.sum(axis=1) >= before.value.sum(axis=1) - 1e-4).all()
        before = kept
    assert before is not None
    assert (before.count == 10).any()
    assert before.apart.any()


def test_massive_rows_are_set_apart_like_position_0(repetitive: Cache) -> None:
    """Both fall under one cap, and a latent's largest sample is that of an ordinary row."""
    massive = np.zeros(repetitive.n_rows, np.bool_)
    massive[5::16] = True
    config = SamplesConfig(per_latent=10, context=3)
    made = SampleCollector(config, repetitive, 40, 1000, 0.2, massive)
    ordinary = np.zeros(40)
    for codes, rows in batches(repetitive, 40, at_bos=0.2):
        strong = codes.values * (1 + 9 * torch.from_numpy(massive)[rows.row])[:, None]
        made.collect(1, Codes(strong, None, 40), rows)
        aside = (rows.row % 16 == 0) | torch.from_numpy(massive)[rows.row]
        ordinary = np.maximum(ordinary, strong[~aside].amax(0).numpy())
        kept = made.kept()
        assert (kept.apart.sum(axis=1) * 5 <= kept.count).all()
        assert (((kept.row % 16 == 0) | massive[kept.row]) & (kept.value > 0) == kept.apart).all()
    assert (kept.apart & massive[kept.row]).any()
    assert (kept.value[:, 0] > kept.largest).any(), "a massive row is the strongest of some latent"
    np.testing.assert_allclose(kept.largest, ordinary)


def test_the_order_in_which_batches_come_does_not_matter(repetitive: Cache) -> None:
    shown = list(batches(repetitive, 20, at_bos=0.3))
    kept = []
    for order in (shown, shown[::-1]):
        made = collector(repetitive, 20, per_latent=7, context=2)
        for codes, rows in order:
            made.collect(1, codes, rows)
        kept.append(made.kept())
    for name in ("value", "row", "key", "apart"):
        np.testing.assert_array_equal(getattr(kept[0], name), getattr(kept[1], name))


def test_a_window_is_the_context_and_what_follows_in_the_document(tmp_path: Path) -> None:
    for packing in ("concat", "document", "apart"):
        cache = make_cache(tmp_path / packing, n_seq=40, ctx=16, doc_length=(2, 30), packing=packing)
        made = collector(cache, 1, context=5, after=3)
        bos = (cache.flags.reshape(-1) & int(Flag.BOS)) != 0
        doc_id, padding = cache.doc_id.reshape(-1), (cache.flags.reshape(-1) & int(Flag.PADDING)) != 0
        for row in np.flatnonzero(~padding).tolist():
            want = [row]
            while len(want) < 6 and want[0] % 16 and not bos[want[0]]:
                want.insert(0, want[0] - 1)
            for after in (row + 1, row + 2, row + 3):
                if after % 16 == 0 or doc_id[after] != doc_id[row] or padding[after]:
                    break
                want.append(after)
            assert list(made.window(row)) == want


def files(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((run / "samples").iterdir())}


def test_a_resumed_run_has_the_same_samples_and_none_has_other_weights(
    config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = SamplesConfig(every=6, per_latent=8, context=3, **EVERYTHING)
    plain, whole, cut = (
        config(runs=tmp_path / name, samples=s) for name, s in (("p", None), ("w", samples), ("c", samples))
    )
    train_runs([plain])
    train_runs([whole])
    train_until_power_cut([cut], 50, monkeypatch)
    assert load_samples(cut.path).step == 40  # those of the last checkpoint
    train_runs([cut], resume=True)
    assert files(cut.path) == files(whole.path)
    assert set(files(whole.path)) == {"index.html", "samples.json", "statistics.json", "statistics.md"}
    coder = "final/coder.safetensors"
    assert (whole.path / coder).read_bytes() == (plain.path / coder).read_bytes() == (cut.path / coder).read_bytes()
    assert not (plain.path / "samples").exists()


def test_the_samplers_cap_governs_the_samples_unless_they_have_their_own(config: MakeConfig) -> None:
    sampler = PositionStratifiedConfig(max_bos_share=0.1)
    for own, want in ((None, 0.1), (0.05, 0.05)):
        made = config(name=str(own), sampler=sampler, samples=SamplesConfig(every=50, max_bos_share=own))
        train_runs([made])
        assert load_samples(made.path).settings["max_bos_share"] == want


def test_with_the_stratified_sampler_position_zero_is_a_fifth_at_most_of_batches_and_of_every_latents_samples(
    tmp_path: Path, config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A third of all rows lies at position 0, whole epochs: the batches reach the cap and never pass it."""
    cache = make_cache(tmp_path / "c", n_seq=600, ctx=3)
    real, at_zero = sparse_pipeline.train.loop.train_step, []

    def counted(trainee: Any, rows: Batch, **kwargs: Any) -> Any:
        at_zero.append(int((rows.position == 0).sum()))
        return real(trainee, rows, **kwargs)

    monkeypatch.setattr(sparse_pipeline.train.loop, "train_step", counted)
    share = {}
    for name, sampler in (("all", {}), ("capped", {"sampler": PositionStratifiedConfig(bos_factor=1.0)})):
        # Repeats and all: what becomes of the samples without a cap of their own, and with it.
        for cap in (1.0, None):
            samples = SamplesConfig(every=1, distinct=False, max_bos_share=cap, per_latent=50, **EVERYTHING)
            made = config(name=f"{name}-{cap}", cache=cache.path, data={"batch_size": 50}, samples=samples, **sampler)
            train_runs([made])
            found = [[s.position == 0 for s in latent.samples] for latent in load_samples(made.path).latents]
            share[name, cap] = [np.mean(latent) for latent in found]
        steps = len(at_zero)
        if name == "capped":
            assert max(at_zero) == 10
            assert sum(at_zero) >= 9.5 * steps
        at_zero.clear()
    assert max(share["all", 1.0]) == 1.0  # every one of the latent's samples is the same vector
    assert max(share["all", None]) <= 0.2
    assert max(share["capped", None]) <= 0.2


def test_specialised_general_rare_or_none(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "c", n_seq=400, ctx=16, vocab=200, doc_length=(20, 30))
    tokens = cache.tokens.reshape(-1)
    flags = torch.from_numpy(cache.flags.reshape(-1).copy())
    row = torch.arange(cache.n_rows)
    rng = np.random.default_rng(0)
    dense = np.zeros((cache.n_rows, 4), np.float32)
    dense[:, 0] = np.isin(tokens, (20, 21)) * (1 + rng.random(cache.n_rows))
    dense[rng.choice(cache.n_rows, 300, replace=False), 1] = 1 + rng.random(300)
    dense[rng.choice(cache.n_rows, 9, replace=False), 2] = 1.5
    nothing = torch.zeros(cache.n_rows)
    made = collector(cache, 4, per_latent=40, **EVERYTHING)
    made.collect(1, Codes(torch.from_numpy(dense), None, 4), Batch({}, nothing, row % 16, nothing, nothing, flags, row))
    found = SampleWriter(tmp_path, made, cache).write(1)
    assert {latent.latent: latent.specialised for latent in found.latents} == {0: "token", 1: "general", 2: "rare"}


@pytest.mark.parametrize(
    "wrong", [{"every": 0}, {"per_latent": 0}, {"threshold": -1.0}, {"context": -1}, {"max_bos_share": 1.1}]
)
def test_settings_that_cannot_be_used(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SamplesConfig(**wrong)
