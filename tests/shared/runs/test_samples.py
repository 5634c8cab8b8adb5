"""Samples to disk and back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sparse_pipeline.shared.errors import DataError
from sparse_pipeline.shared.runs.samples import (
    LatentSamples,
    Sample,
    SampleSet,
    load_samples,
    samples_summary,
    save_samples,
)


def some() -> SampleSet:
    rng = np.random.default_rng(0)
    samples = tuple(
        Sample(
            float(np.float32(value)), 7, 3, 11, 2, 19, 400, (5, 6, 7, 8), 2, place > 1, 'ein "« Wort»"\n\t| ␣ \u2028'
        )
        for place, value in enumerate(sorted(rng.random(5), reverse=True))
    )
    first = LatentSamples(12, 40, samples[2].value, 0.1, "token + domain", samples)
    latents = (first, LatentSamples(3, 1, 0.0, 2.5, "rare", samples[:1]))
    return SampleSet(800, 8, {"every": 100, "max_bos_share": 0.2}, latents)


def test_they_come_back_as_they_were(tmp_path: Path) -> None:
    path = save_samples(tmp_path, some())
    assert load_samples(tmp_path) == some()
    found = load_samples(str(tmp_path))
    assert found[12].strongest.value == found[12].max
    assert found[3].strongest == some().latents[1].samples[0]  # none of an ordinary row: the strongest of all
    with pytest.raises(KeyError):
        some()[4]
    document = json.loads(path.read_text(encoding="utf-8"))  # plain JSON, one line for each latent
    assert document["latents"][0]["samples"][0]["context"] == [5, 6, 7, 8]
    assert len(path.read_text(encoding="utf-8").split("\n")) == 5
    assert [file.name for file in path.parent.iterdir()] == ["samples.json"]


def test_none_of_any_latent(tmp_path: Path) -> None:
    empty = SampleSet(5, 0, {}, ())
    save_samples(tmp_path, empty)
    assert load_samples(tmp_path) == empty


def test_what_cannot_be_read(tmp_path: Path) -> None:
    assert samples_summary(tmp_path) is None
    with pytest.raises(DataError, match="has no samples") as raised:
        load_samples(tmp_path)
    assert "train.samples" in str(raised.value.hint)
    path = save_samples(tmp_path, some())
    for text, message in (
        ("{}", "not a samples file"),
        ("{", "not valid JSON"),
        ('{"format_version": 2}', "format version 2"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            load_samples(tmp_path)
