"""The arithmetic of `pipeline plan`, by hand, and its command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sparse_pipeline import pipeline
from sparse_pipeline.shared.config.yaml import load_yaml
from sparse_pipeline.shared.costs.constants import FILE, Constants, load
from sparse_pipeline.shared.costs.estimate import (
    CacheWork,
    CoderWork,
    Costs,
    Machine,
    analyze_step,
    harvest_step,
    train_step,
)
from sparse_pipeline.shared.errors import UsageError


def constants(section: str, **values: float) -> Constants:
    return Constants(
        section, {k: {"value": v, "measured": k != "price", "source": "made up"} for k, v in values.items()}, {}
    )


def machine(devices: int = 1, machines: int = 1, **changes: float) -> Machine:
    device = {"forward_flops": 1e12, "matmul_flops": 2e12, "memory_rate": 1e12, "step_a": 2.0, "step_b": 3.0}
    device |= {"memory": 1e10, "price": 4.0}
    disk, host = (
        {"write": 1e9, "read": 2e9},
        {"tokenise": 1e6, "copy": 5e8, "analyze": 1000.0, "memory": 1e9, "bucket": 0.1},
    )
    parts = {"device": device, "disk": disk, "host": host}
    made = {name: constants(name, **{k: changes.get(k, v) for k, v in part.items()}) for name, part in parts.items()}
    return Machine(**made, devices=devices, machines=machines)


CACHE = CacheWork(rows=10_000_000, row_bytes=1000, bytes=10_000_000_000, flops=1e6, weights=2_000_000_000)


def test_harvest_is_as_slow_as_its_slowest_resource() -> None:
    step = harvest_step(CACHE, machine(devices=2))
    assert step.seconds == {"forward pass": 5.0, "disk": 10.0, "host copies": 10.0, "tokenising": 10.0}
    assert (step.after, step.total) == (5.0, 15.0)
    four = harvest_step(CACHE, machine(devices=4, machines=2, tokenise=1e7))
    assert four.seconds == {"forward pass": 2.5, "disk": 5.0, "host copies": 5.0, "tokenising": 1.0}
    slow = harvest_step(CACHE, machine(write=1e8))
    assert slow.binds == "disk"
    assert slow.unbind.endswith("5 times as much of it, and host copies binds")


def coder(latents: int = 1000, n_bytes: int = 10**9, steps: int = 100, sites: str = "ab") -> CoderWork:
    """Of a site `a` or more, 200 bytes a row each."""
    return CoderWork(
        "c",
        d_in=100,
        latents=latents,
        parameters=200 * latents,
        bytes=n_bytes,
        batch=500,
        steps=steps,
        reads=dict.fromkeys(sites, 200),
    )


def test_coders_are_placed_whole_on_the_devices() -> None:
    """A step: 2 · (2·500·100·1000 / 2e12) + 3 · (26 · 200,000 / 1e12) = 100 µs + 15.6 µs; five on two devices."""
    step = train_step([coder()] * 5, machine(devices=2))
    assert step.seconds["steps"] == pytest.approx(3 * 100 * 115.6e-6)
    # each of the two processes reads both sites once
    assert step.seconds["disk"] == pytest.approx(2 * 2 * 200 * 500 * 100 / 2e9)
    layers = train_step([coder(sites=site) for site in "abcde"], machine(devices=2))
    assert layers.seconds["disk"] == pytest.approx(5 * 200 * 500 * 100 / 2e9)
    assert step.memory == ("device memory", pytest.approx(3e9 / 0.9), 1e10)
    longest_first = train_step([coder(steps=n) for n in (100, 100, 100, 300)], machine(devices=2))
    assert longest_first.seconds["steps"] == pytest.approx(300 * 115.6e-6)


def test_a_coder_larger_than_a_device_does_not_fit() -> None:
    step = train_step([coder(n_bytes=10**11)], machine(devices=8))
    assert (step.fits, step.binds) == (False, "device memory")
    assert "train.parallel: latents" in step.unbind
    many = train_step([coder(n_bytes=8 * 10**9)] * 4, machine(devices=2))
    assert not many.fits
    assert "more devices" in many.unbind


def test_a_coder_on_all_devices_shares_its_product_and_sliced_its_parameters_too() -> None:
    """Of 100 µs and 15.6 µs; every process reads all rows."""
    whole = coder(sites="a")
    rows, latents = (
        train_step([replace(whole, processes=4, sliced=sliced)], machine(devices=4)) for sliced in (False, True)
    )
    assert rows.seconds["steps"] == pytest.approx(100 * (100e-6 / 4 + 15.6e-6))
    assert latents.seconds["steps"] == pytest.approx(100 * 115.6e-6 / 4)
    assert rows.seconds["disk"] == latents.seconds["disk"] == pytest.approx(4 * 200 * 500 * 100 / 2e9)
    assert rows.memory[1] == pytest.approx(1e9 / 0.9)
    assert "on all 4 devices" in rows.facts["coders"]


def test_money_is_that_of_all_devices_and_assumptions_are_named() -> None:
    here = machine(devices=2)
    costs = Costs([harvest_step(CACHE, here), analyze_step([coder()], 1_000_000, 4.0, here)], here, CACHE.bytes)
    document = costs.to_dict()
    assert document["seconds"] == pytest.approx(15 + 2000)  # the run and its untrained control, at 1,000 rows a second
    assert document["dollars"] == pytest.approx((15 + 2000) / 3600 * 8)
    assert document["bucket_dollars_per_month"] == pytest.approx(1.0)
    assert costs.assumed == ["device price 4 (made up)"]
    pairs = analyze_step([coder(latents=20_000)], 1, 4.0, here)
    assert not pairs.fits  # 12 bytes for each of 200 million pairs, of the run and of its control
    least = analyze_step([coder(latents=20_000)], 1, None, here).memory[1]
    assert analyze_step([coder(latents=20_000)], 1, 1.0, here).memory[1] == least  # codes on disk in their place
    assert pairs.memory[1] == least + 2 * 12 * 20_000 * 20_001 // 2
    # Fifty times as many latents take less than fifty times as much: what is counted later is bounded.
    assert least == 2 * 20_000 * (15_000 + 19_000 + 10_000)
    assert analyze_step([coder(latents=1_000_000)], 1, 4.0, here).memory[1] == 2 * (1_000_000 * 15_000 + 2 * 2**30)


def test_every_constant_says_where_it_comes_from() -> None:
    document = load_yaml(FILE)
    sections = [*document["devices"].values(), *document["disks"].values(), document["host"]]
    found = [(key, one) for section in sections for key, one in section.items() if key != "name"]
    for key, one in found:
        assert set(one) == {"value", "measured", "source"}, key
        assert one["value"] > 0, key
        assert one["source"], key
    root = Path(__file__).resolve().parents[3]
    for key, one in found:
        for page in (word.rstrip(":,") for word in one["source"].split() if word.startswith("docs/")):
            assert (root / page).is_file(), (key, page)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UsageError, match="device 'h1000': not found in constants.yaml") as error:
        load("devices", "h1000")
    assert "one of: h200" in str(error.value.hint)


def test_the_command_plans_the_demo(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Any) -> None:
    """Its bytes and steps are those of the dry runs, and what is given is not assumed."""
    monkeypatch.chdir(tmp_path)
    words = ["--device", "cpu", "--disk-rate", "100", "--price", "2", "--json"]
    assert pipeline.run(["plan", *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert pipeline.run(["harvest", "--dry-run", "--json"]) == 0
    harvest = json.loads(capsys.readouterr().out)
    assert found["cache_bytes"] == harvest["bytes"]
    step = found["steps"][0]
    assert step["seconds_by_resource"]["disk"] == pytest.approx(harvest["bytes"] / 1e8)
    flops = harvest["model"]["flops_per_token"] * harvest["rows"]
    assert step["seconds_by_resource"]["forward pass"] == pytest.approx(flops / 41.8e9)
    assert found["dollars"] == pytest.approx(found["seconds"] / 3600 * 2)
    assert not any("price" in line or "virtual" in line or "local" in line for line in found["assumed"])
