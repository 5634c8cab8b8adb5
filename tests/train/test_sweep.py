"""Sweeps: the runs are the product by hand, finished runs stay as they are, interrupted ones end with the same bits."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import sparse_pipeline
from sparse_pipeline.shared.config.settings import to_dict
from sparse_pipeline.shared.console import Console
from sparse_pipeline.shared.errors import ConfigError, DataError, UsageError
from sparse_pipeline.shared.runs.folder import open_run
from sparse_pipeline.train.config import TrainConfig
from sparse_pipeline.train.parts import side_by_side
from sparse_pipeline.train.plan import plan
from sparse_pipeline.train.step.autograd import train_step
from sparse_pipeline.train.sweep import (
    Cell,
    SweepConfig,
    check_sets,
    expand,
    nested,
    plan_sweep,
    portable_command,
    train_sweep,
)

MakeConfig = Callable[..., TrainConfig]
SHIPPED: dict[str, dict[str, Any]] = {
    "topk": {"variant": "topk", "coder": {"architecture": "topk"}},
    "matryoshka": {"variant": "matryoshka", "coder": {"architecture": "matryoshka"}},
}


def cells_of(sweep: SweepConfig, base: TrainConfig, **changes: Any) -> list[Cell]:
    return expand(sweep, to_dict(base), SHIPPED.__getitem__, lambda settings: {**settings, **changes})


def test_the_grid_is_the_product_by_hand(config: MakeConfig) -> None:
    base = config(name="ignored")
    grid = {"coder.k": (2, 4), "optimizer.lr": (1e-3, 3e-3, None)}
    sweep = SweepConfig(name="s", variants={"a": "topk", "b": "matryoshka"}, grid=grid, seeds=(0, 5))
    cells = cells_of(sweep, base)
    expected = [
        (architecture, k, lr, seed)
        for architecture, k, lr, seed in itertools.product(
            ("topk", "matryoshka"), grid["coder.k"], grid["optimizer.lr"], (0, 5)
        )
    ]
    found = [
        (one.config.coder.architecture, one.config.coder.k, one.config.optimizer.lr, one.config.seed)  # type: ignore[attr-defined]
        for one in cells
    ]
    assert found == expected
    assert cells[0].setting == "a-k=2-lr=0.001"
    assert cells[-1].config.run_name == "s-b-k=4-lr=null-seed5"
    assert len({one.config.path for one in cells}) == 24
    assert {one.config.variant for one in cells} == {"topk", "matryoshka"}
    # What the sweep does not vary is the base's.
    kept = {"cache", "source", "target", "runs", "data", "min_steps", "log_every"}
    for one in cells:
        assert {key: to_dict(one.config)[key] for key in kept} == {key: to_dict(base)[key] for key in kept}


def test_names_tell_the_settings_apart(config: MakeConfig) -> None:
    grid = {"coder.k": (2,), "penalties.topk_pairs.weight": (0.1,), "penalties.ortsae.weight": (0.5,), "freeze": ([],)}
    (cell,) = cells_of(SweepConfig(name="s", size="tiny", grid=grid), config(seed=7))
    assert cell.setting == "k=2-topk_pairs.weight=0.1-ortsae.weight=0.5-freeze=#1"
    assert (cell.seed, cell.config.seed) == (7, 7)
    assert cell.config.run_name == f"s-tiny-{cell.setting}", "no seeds: no seed in the name"
    assert {name: one.weight for name, one in cell.config.penalties.items()} == {"topk_pairs": 0.1, "ortsae": 0.5}
    assert nested("a.b.c", 3) == {"a": {"b": {"c": 3}}}


def test_an_overlay_may_start_from_a_variant(config: MakeConfig) -> None:
    sweep = SweepConfig(
        name="s",
        variants={"mine": {"variant": "matryoshka", "penalties": {"ortsae": {"weight": 2.0}}}, "plain": {}},
        baseline="plain",
    )
    mine, plain = cells_of(sweep, config())
    assert (mine.config.coder.architecture, mine.config.variant) == ("matryoshka", "matryoshka")
    assert mine.config.penalties["ortsae"].weight == 2.0
    assert (plain.config.coder.architecture, dict(plain.config.penalties)) == ("topk", {})


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ({"variants": {"a": {}, "b": {}}}, "a and b are the same settings"),
        ({"grid": {"coder.k": (2, 2)}}, "two runs of the sweep would be named s-k=2"),
        ({"variants": {"first": {}}, "baseline": "frist"}, "no such setting: 'frist'; did you mean 'first'?"),
    ],
)
def test_sweeps_that_make_no_sense(sweep: dict[str, Any], message: str, config: MakeConfig) -> None:
    with pytest.raises(UsageError, match=message):
        cells_of(SweepConfig(name="s", **sweep), config())


def test_an_error_says_in_which_setting(config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match=r"k=2-kk=3: train\.coder\.kk: unknown key; did you mean 'k'"):
        cells_of(SweepConfig(name="s", grid={"coder.k": (2,), "coder.kk": (3,)}), config())


@pytest.mark.parametrize(
    "wrong", [{"name": "a/b"}, {"size": ""}, {"grid": {"seed": ()}}, {"seeds": (1, 1)}, {"at_once": 0}]
)
def test_settings_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        SweepConfig(**{"name": "s", **wrong})


def test_a_set_over_what_is_varied_is_refused() -> None:
    sweep = SweepConfig(name="s", grid={"coder.k": (1, 2)}, seeds=(0,))
    check_sets(sweep, ["coder.latents", "optimizer.lr"])
    with pytest.raises(ConfigError) as caught:
        check_sets(sweep, ["coder.k", "coder", "seed", "name"])
    assert [problem.partition(":")[0] for problem in caught.value.problems] == [
        "--set train.coder.k",
        "--set train.coder",
        "--set train.seed",
        "--set train.name",
    ]


def test_runs_side_by_side_fit_into_memory(config: MakeConfig) -> None:
    cells = cells_of(SweepConfig(name="s", seeds=tuple(range(5))), config())
    (group,) = plan([cell.config for cell in cells]).groups
    one = group.to_dict()["runs"][0]["bytes"]
    everything = {cell.config.path for cell in cells}

    def sizes(at_once: int | None, free: int) -> list[int]:
        return [len(part) for part in side_by_side(group, at_once, everything, free)]

    pool = group.stream.pool_bytes
    assert sizes(2, 0) == [2, 2, 1]
    assert sizes(None, 2 * (pool + 5 * one)) == [5]
    assert sizes(None, 2 * (pool + 3 * one)) == [3, 2]
    assert sizes(None, 0) == [1] * 5, "one at a time at least"
    assert [len(part) for part in side_by_side(group, 2, {cells[3].config.path})] == [1]


def test_finished_runs_stay_and_interrupted_ones_end_with_the_same_bits(
    config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = SweepConfig(name="s", grid={"coder.k": (2, 4)}, seeds=(0, 1), at_once=2)
    quiet = Console(quiet=True)
    whole = cells_of(sweep, config(), runs=str(tmp_path / "whole"))
    train_sweep(plan_sweep(sweep, whole), quiet)

    cells = cells_of(sweep, config(), runs=str(tmp_path / "cut"))
    steps = 0

    def interrupted(*arguments: Any, **options: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 2 * 75 + 50:  # in the second part, between two checkpoints
            raise KeyboardInterrupt
        return train_step(*arguments, **options)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(sparse_pipeline.train.loop, "train_step", interrupted)
        train_sweep(plan_sweep(sweep, cells), quiet)
    planned = plan_sweep(sweep, cells)
    states = [run["state"] for run in planned.to_dict()["runs"]]
    assert states == ["finished", "finished", "at step 20", "at step 20"]
    assert [len(part) for part in planned.parts] == [2]
    assert "4 runs, 2 to train in 1 part;" in str(planned)

    final = "final/coder.safetensors"
    before = {cell.setting: (cell.config.path / final).stat().st_mtime_ns for cell in cells[:2]}
    train_sweep(planned, quiet)
    assert {cell.setting: (cell.config.path / final).stat().st_mtime_ns for cell in cells[:2]} == before
    for cut, straight in zip(cells, whole, strict=True):
        assert (cut.config.path / final).read_bytes() == (straight.config.path / final).read_bytes()

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing is trained twice")

    monkeypatch.setattr(sparse_pipeline.train.loop, "train_step", refuse)
    again = plan_sweep(sweep, cells)
    assert again.parts == []
    train_sweep(again, quiet)


def test_a_run_of_other_settings_is_refused_before_anything_is_trained(config: MakeConfig) -> None:
    sweep = SweepConfig(name="s", grid={"coder.k": (2, 4)})
    cells = cells_of(sweep, config())
    sparse_pipeline.train.loop.train([cells[1].config])
    others = cells_of(sweep, config(), min_steps=11)
    with pytest.raises(DataError, match=r"run s-k=4 was started with different settings:\n.*min_steps"):
        plan_sweep(sweep, others)
    assert not others[0].config.path.exists()


def test_only_some_settings(config: MakeConfig) -> None:
    sweep = SweepConfig(name="s", grid={"coder.k": (2, 4)})
    cells = cells_of(sweep, config())
    train_sweep(plan_sweep(sweep, cells, ["k=4"]), Console(quiet=True))
    assert [cell.config.path.exists() for cell in cells] == [False, True]
    assert open_run(cells[1].config.path).complete
    with pytest.raises(UsageError, match=r"--only k=3: no such setting; did you mean 'k="):
        plan_sweep(sweep, cells, ["k=3"])


def test_too_short_a_sweep_is_refused(config: MakeConfig) -> None:
    sweep = SweepConfig(name="s")
    with pytest.raises(UsageError, match="fewer than train.min_steps = 1000"):
        plan_sweep(sweep, cells_of(sweep, config(), min_steps=1000))


def test_commands_name_no_folder_of_this_machine() -> None:
    sets = ["train.cache=/data/cache/x", "sweep.seeds=[0]"]
    command = portable_command("studies/a.yaml", ["/home/me/over.yaml"], sets, "large")
    expected = "studies/a.yaml --size large -c over.yaml --set train.cache=CACHE --set 'sweep.seeds=[0]'"
    assert command == f"pipeline sweep {expected}"
