"""Several datasets as one: shares, order, domains, identity, resuming."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from sparse_pipeline.harvest.config import DatasetPart, HarvestConfig, cache_path
from sparse_pipeline.harvest.data import hub
from sparse_pipeline.harvest.data.mixture import draws
from sparse_pipeline.harvest.data.reading import Reading
from sparse_pipeline.harvest.dataset import is_local, open_dataset
from sparse_pipeline.harvest.plan import plan
from sparse_pipeline.harvest.run import harvest
from sparse_pipeline.shared.cache.documents import read_documents
from sparse_pipeline.shared.cache.files import read_json
from sparse_pipeline.shared.config.settings import apply_set, validate
from sparse_pipeline.shared.dataset_text import dataset_text
from sparse_pipeline.shared.errors import ConfigError, DataError
from sparse_pipeline.shared.overview.describe import describe, describe_text
from tests.harvest.conftest import CTX
from tests.harvest.test_run import config_for, contents


@pytest.mark.parametrize("weights", [[1, 1], [0.7, 0.3], [5, 1, 1, 0.01], [1, 2, 3, 4, 5], [1]])
@pytest.mark.parametrize("seed", [0, 3])
def test_every_beginning_has_the_shares(weights: list[float], seed: int) -> None:
    taken, total = Counter[int](), sum(weights)
    for n, part in enumerate(islice(draws(weights, seed), 5000), 1):
        taken[part] += 1
        assert all(abs(taken[i] - n * weight / total) < 4 for i, weight in enumerate(weights))
    assert list(islice(draws(weights, seed), 50)) == list(islice(draws([10 * w for w in weights], seed), 50))
    if len(weights) > 1:
        assert list(islice(draws(weights, seed), 50)) != list(islice(draws(weights, seed + 1), 50))


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Three datasets of 400 documents that say where they come from; the second has another column."""
    found = {}
    for name, column in (("web", "text"), ("books", "content"), ("code", "text")):
        path = found[name] = tmp_path / f"{name}.jsonl"
        rows = [{column: f"{name} document number {n} of a few words", "kind": f"k{n % 2}"} for n in range(400)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return found


def mixture(files: dict[str, Path]) -> list[dict[str, Any]]:
    return [
        {"source": str(files["web"]), "weight": 2, "domain": "web"},
        {"source": [str(files["books"])], "text_column": "content", "domain": "books"},
        {"source": str(files["code"])},
    ]


def test_interleaved_in_order_with_domains_and_what_ended_it(files: dict[str, Path]) -> None:
    config = validate(HarvestConfig, {"dataset": mixture(files), "tokens": None})
    reading = Reading()
    documents = list(open_dataset(config).documents(reading))
    counts = Counter(document.text.split()[0] for document in documents)
    assert counts["web"] == 400
    assert all(abs(counts[name] - 200) < 4 for name in ("books", "code"))
    for name in counts:
        numbers = [int(one.text.split()[3]) for one in documents if one.text.startswith(name)]
        assert numbers == list(range(len(numbers)))
    assert {one.domain for one in documents} == {"web", "books", str(files["code"])}
    (note,) = reading.notes()
    assert note.startswith(f"the mixture ends where {files['web']} has no document left")
    assert f"{files['books']} {counts['books']}" in note
    by_kind = dataclasses.replace(config, domain_column="kind")
    assert {one.domain for one in open_dataset(by_kind).documents(Reading())} == {"web", "books", "k0", "k1"}


def test_settings_name_shape_and_mistakes(files: dict[str, Path]) -> None:
    text = f"dataset=[{{source: {files['web']}, weight: 3}}, {files['code']}]"
    config = validate(HarvestConfig, apply_set({}, [text]))
    assert config.mixture == (DatasetPart(str(files["web"]), 3.0), DatasetPart(str(files["code"])))
    assert dataset_text([{"source": "a", "weight": 3.0}, {"source": ["b", "c"], "subset": "x"}]) == (
        "a (0.75 of the documents), b + c x (0.25 of the documents)"
    )
    assert config.dataset_name == f"{files['web']} (0.75 of the documents), {files['code']} (0.25 of the documents)"
    for wrong, message in (
        ([{"source": "a", "weight": 0}], "weight: expected a positive number, found 0"),
        ([{"source": "a", "wieght": 1}], r"dataset\.0\.wieght: unknown key; did you mean 'weight'"),
        ([{"weight": 1}], r"dataset\.0\.source: is required"),
    ):
        with pytest.raises(ConfigError, match=message):
            validate(HarvestConfig, {"dataset": wrong})
    with pytest.raises(ConfigError, match="subset, split and revision belong to the parts"):
        validate(HarvestConfig, {"dataset": [{"source": "a"}], "dataset_split": "test"})


def test_a_harvest_of_a_mixture(tiny_model: Path, files: dict[str, Path], tmp_path: Path) -> None:
    """The manifest, domains in inspect, a resumed harvest, moved parts, and what makes it another cache."""
    parts = validate(HarvestConfig, {"dataset": mixture(files)}).dataset
    config = config_for(tiny_model, files["web"], tmp_path / "cache", dataset=parts, name="mix")
    assert [path for path, _ in plan(config).files] == [str(path) for path in files.values()]
    path = harvest(config).path
    head = read_json(path / "manifest.json")
    assert [one["weight"] for one in head["config"]["harvest"]["dataset"]] == [2.0, 1.0, 1.0]
    assert len(set(head["config"]["resolved"]["dataset_parts"])) == 3
    domains = Counter(one.domain for one in read_documents(path))
    assert f"web {domains['web']}, " in describe_text(describe(path))
    whole = contents(path)

    again = dataclasses.replace(config, cache_dir=tmp_path / "again")
    other = harvest(again).path
    for commit in sorted((other / "commits").iterdir())[2:]:
        commit.unlink()
    (other / "manifest.json").unlink()
    assert harvest(again).shards_written == 4
    assert contents(other) == whole

    moved = tmp_path / "moved"
    moved.mkdir()
    for file in files.values():
        file.rename(moved / file.name)
    there = validate(HarvestConfig, {"dataset": mixture({k: moved / v.name for k, v in files.items()})}).dataset
    assert harvest(dataclasses.replace(config, dataset=there)).shards_written == 0
    heavier = tuple(dataclasses.replace(one, weight=5.0) if n == 1 else one for n, one in enumerate(there))
    for changes in ({"dataset": heavier}, {"dataset": there, "shuffle_seed": 1}):
        with pytest.raises(DataError, match="made with a different config"):
            harvest(dataclasses.replace(config, **changes))
    assert cache_path(dataclasses.replace(config, name=None, dataset=heavier)) != cache_path(
        dataclasses.replace(config, name=None, dataset=there)
    )
    assert config.ctx == CTX


def test_parts_on_the_hub(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    def commit(name: str, revision: str | None) -> str:
        asked.append((name, revision))
        return f"commit of {name}"

    monkeypatch.setattr(hub, "resolve_revision", commit)
    parts = (DatasetPart("a/b", subset="s", split="test", revision="r"), DatasetPart(str(files["web"])))
    config = HarvestConfig(dataset=parts)
    assert not is_local(config)
    found = open_dataset(config)
    assert asked == [("a/b", "r")]
    assert found.parts[0] == "commit of a/b"
    assert found.bytes is None
