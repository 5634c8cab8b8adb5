"""The objective and the state around it: weights, periods, what a checkpoint carries, what is learned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import Tensor

import sparse_pipeline
from sparse_pipeline.shared.cache import Cache
from sparse_pipeline.shared.cache.batch import Batch
from sparse_pipeline.shared.coders import Coder, Codes, build_coder
from sparse_pipeline.shared.coders.matryoshka import MatryoshkaConfig
from sparse_pipeline.shared.coders.topk import TopKConfig
from sparse_pipeline.shared.runs.folder import open_run
from sparse_pipeline.train.config import OptimizerConfig, TrainConfig
from sparse_pipeline.train.data.stream import open_stream
from sparse_pipeline.train.loop import plan
from sparse_pipeline.train.loop import train as train_runs
from sparse_pipeline.train.penalties import Penalty, PenaltyConfig, StepBatch
from sparse_pipeline.train.penalties.decoder_orthogonality import DecoderOrthogonalityConfig
from sparse_pipeline.train.penalties.weights import AdaptiveConfig, LinearConfig
from sparse_pipeline.train.runs import checkpoint
from sparse_pipeline.train.runs.saving import Saving, writing
from sparse_pipeline.train.runs.session import open_runs
from sparse_pipeline.train.samplers import build_sampler
from sparse_pipeline.train.step.autograd import train_step
from sparse_pipeline.train.step.begin import new_trainee
from sparse_pipeline.train.step.objective import Objective
from sparse_pipeline.train.step.trainee import Trainee
from tests.synthetic import make_cache, token_table
from tests.train.conftest import MATRYOSHKA, SOURCE, TARGET, TOPK

MakeConfig = Callable[..., TrainConfig]


@dataclass(frozen=True, kw_only=True)
class NoisyConfig(PenaltyConfig):
    """A toy."""

    kind: Literal["noisy"] = "noisy"
    weight: float = 0.1


class Noisy(Penalty):
    """A toy penalty with everything a real one may have: gradients through codes, random numbers, state, metrics."""

    config_class: ClassVar[type[PenaltyConfig]] = NoisyConfig

    def __init__(self, config: PenaltyConfig) -> None:
        super().__init__(config)
        self.average = torch.zeros(())

    def __call__(self, batch: StepBatch, coder: Coder, codes: Codes) -> Tensor:
        chosen = torch.randperm(codes.n_latents, generator=batch.generator)[:5]
        value = codes.columns(chosen).square().mean()
        self.average = 0.9 * self.average + 0.1 * value.detach()
        return value + 0.01 * self.average

    def metrics(self) -> dict[str, float]:
        return {"average": float(self.average)}

    def state(self) -> dict[str, Tensor]:
        return {"average": self.average}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.average = state["average"]


@pytest.fixture
def noisy(monkeypatch: pytest.MonkeyPatch) -> NoisyConfig:
    """The toy, registered: one line in the registry is all it takes."""
    monkeypatch.setitem(sparse_pipeline.train.penalties.PENALTIES, "noisy", Noisy)
    return NoisyConfig(schedule=AdaptiveConfig(target=0.05, rate=3.0, ema=0.5))


def step_batch(coder: Coder, step: int, total: int = 100) -> StepBatch:
    g = torch.Generator().manual_seed(step)
    u, t = torch.randn(16, coder.d_in, generator=g), torch.randn(16, coder.d_out, generator=g)
    zeros = torch.zeros(16, dtype=torch.int64)
    rows = Batch({}, zeros, zeros, zeros, zeros, zeros, zeros)
    return StepBatch(u, t, rows, step, total, torch.Generator().manual_seed(0), ctx=8)


def test_the_total_is_the_weighted_sum_of_the_named_terms() -> None:
    coder = build_coder(TOPK, 8, 8, tied=True)
    schedule = LinearConfig(steps=10)
    objective = Objective({"ortho": DecoderOrthogonalityConfig(weight=0.5, every=3, schedule=schedule)})
    for step in range(1, 8):
        batch = step_batch(coder, step)
        terms = objective(batch, coder, coder.encode_normalised(batch.u))
        if step % 3:
            assert "ortho" not in terms.values
            assert terms.total.item() == pytest.approx(terms.values["reconstruction"].item())
        else:
            assert terms.weights["ortho"] == pytest.approx(0.5 * 3 * min(step / 10, 1))
            expected = terms.values["reconstruction"] + terms.weights["ortho"] * terms.values["ortho"]
            assert terms.total.item() == pytest.approx(expected.item())


def test_a_penalty_may_not_take_the_name_of_a_loss_term() -> None:
    coder = build_coder(TOPK, 8, 8, tied=True)
    objective = Objective({"reconstruction": DecoderOrthogonalityConfig()})
    batch = step_batch(coder, 1)
    with pytest.raises(ValueError, match="has the name of a loss term"):
        objective(batch, coder, coder.encode_normalised(batch.u))


def trainee_of(config: TrainConfig) -> Trainee:
    group = plan([config]).groups[0]
    return new_trainee(config, group.cache, group.steps, group.stream.rows_per_epoch, group.device)


def test_resuming_carries_penalty_state_random_numbers_and_adaptive_weights(
    config: MakeConfig, cache: Cache, noisy: NoisyConfig, tmp_path: Path
) -> None:
    """In one process: 30 steps, against 13 steps, a checkpoint and 17 more."""
    made = config(penalties={"noisy": noisy}, dead_after=200, coder=TopKConfig(latents=256, k=2))  # AuxK is at work too
    sites = [SOURCE, TARGET]

    def steps(trainee: Trainee, n: int, start: Mapping[str, int] | None = None) -> dict[str, int]:
        with open_stream(cache, sites, made.data, build_sampler(made.sampler), start) as stream:
            for _ in range(n):
                result = train_step(trainee, next(stream))
            assert "aux" in result.terms.values
            return stream.position()

    whole = trainee_of(made)
    steps(whole, 30)
    first = trainee_of(made)
    position = steps(first, 13)
    run = open_runs(plan([made]).groups, resume=False)[made.path]
    with writing() as thread:
        Saving(run, thread, torch.device("cpu")).save(first, position)
    second = trainee_of(made)
    saved = run.load_checkpoint()
    assert saved is not None
    checkpoint.restore(run, second, saved)
    steps(second, 17, saved.state["position"])
    for (name, a), b in zip(whole.coder.state_dict().items(), second.coder.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert whole.objective.state() == second.objective.state()
    assert torch.equal(whole.generator.get_state(), second.generator.get_state())
    assert whole.averages.keys() == second.averages.keys() > {"loss", "reconstruction"}
    assert all(torch.equal(value, second.averages[name]) for name, value in whole.averages.items())


def test_a_toy_penalty_trains_and_is_logged_by_its_name(config: MakeConfig, noisy: NoisyConfig) -> None:
    made = config(penalties={"noisy": noisy})
    train_runs([made])
    last = open_run(made.path).metrics()[-1]
    assert last["noisy"] > 0
    assert last["noisy/weight"] > 0
    assert last["noisy/average"] > 0


def test_the_optimizer_is_adam_with_the_schedule_and_clipping(config: MakeConfig) -> None:
    """Three steps against Adam written out in float64."""
    made = config(optimizer=OptimizerConfig(lr=1e-2, grad_clip=0.05, warmup_steps=4), coder=MATRYOSHKA)
    trainee = trainee_of(made)
    coder = trainee.coder
    with open_stream(plan([made]).groups[0].cache, [SOURCE, TARGET], made.data, build_sampler(made.sampler)) as stream:
        moments: dict[str, list[Tensor]] = {}
        for step in range(1, 4):
            rows = next(stream)
            before = {name: p.detach().clone() for name, p in coder.named_parameters()}
            u, t = coder.normalise_input(rows.acts[SOURCE]), coder.normalise_target(rows.acts[TARGET])
            coder.zero_grad()
            sum(coder.losses(u, t, coder.encode_normalised(u)).values()).backward()  # type: ignore[union-attr]
            coder.project_gradients()
            grads = {name: p.grad.double().clone() for name, p in coder.named_parameters() if p.grad is not None}
            coder.zero_grad()
            norm = torch.cat([g.flatten() for g in grads.values()]).norm()
            result = train_step(trainee, rows)
            assert float(result.grad_norm) == pytest.approx(float(norm), rel=1e-5)
            lr = 1e-2 * step / 4
            assert result.lr == pytest.approx(lr)
            for name, gradient in grads.items():
                g = gradient * min(1.0, 0.05 / float(norm))
                m, v = moments.setdefault(name, [torch.zeros_like(g), torch.zeros_like(g)])
                m.mul_(0.9).add_(g, alpha=0.1)
                v.mul_(0.999).add_(g.square(), alpha=0.001)
                update = lr * (m / (1 - 0.9**step)) / (torch.sqrt(v / (1 - 0.999**step)) + 1e-8)
                expected = before[name].double() - update
                if name == "w_dec":
                    expected = torch.nn.functional.normalize(expected, dim=1)
                torch.testing.assert_close(
                    dict(coder.named_parameters())[name].double(), expected, rtol=1e-3, atol=2e-5, msg=name
                )


def planted(folder: Path, n: int) -> tuple[Cache, Tensor]:
    """A cache of rows that are sums of 3 of n fixed unit directions in 24 dimensions, and the directions."""
    g = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(n, 24, generator=g), dim=1)
    z = torch.zeros(1024 * 16, n)
    chosen = torch.rand(z.shape, generator=g).topk(3, dim=1).indices
    z.scatter_(1, chosen, 1 + torch.rand(len(z), 3, generator=g))
    acts = {SOURCE: (z @ directions).bfloat16()}
    table = token_table(1024, 16, doc_length=(5, 10))
    return make_cache(folder / "planted", 1024, 16, acts=acts, table=table), directions


@pytest.mark.parametrize("architecture", [TopKConfig, MatryoshkaConfig])
def test_a_planted_dictionary_is_recovered(config: MakeConfig, tmp_path: Path, architecture: type[TopKConfig]) -> None:
    cache, directions = planted(tmp_path, 32)
    made = config(
        cache=cache.path,
        target=None,
        coder=architecture(latents=48, k=3),
        data={"batch_size": 256, "epochs": 12},
        optimizer=OptimizerConfig(lr=5e-3),
    )
    (summary,) = train_runs([made])
    found = open_run(made.path).load_coder().w_dec.detach()
    unit = torch.nn.functional.normalize
    assert (unit(directions, dim=1) @ unit(found, dim=1).T).amax(dim=1).mean() > 0.9
    assert summary.fvu is not None
    assert summary.fvu < 0.1


def test_skip_rms_free_and_bfloat16_train(config: MakeConfig) -> None:
    base = TopKConfig(latents=64, k=4)
    kinds: dict[str, dict[str, Any]] = {
        "skip": {"coder": TopKConfig(latents=64, k=4, skip=True)},
        "rms": {"coder": TopKConfig(latents=64, k=4, input_transform="rms")},
        "free": {"coder": TopKConfig(latents=64, k=4, decoder_norm="free")},
        "bf16": {"coder": base, "precision": "bfloat16"},
    }
    same: dict[str, Any] = {"optimizer": OptimizerConfig(lr=5e-3), "data": {"epochs": 4}}
    for summary in train_runs([config(name=name, **same, **kind) for name, kind in kinds.items()]):
        assert summary.fvu is not None
        assert summary.fvu_untrained is not None
        assert summary.fvu < 0.8 * summary.fvu_untrained, summary.name


def test_a_latent_is_dead_after_ten_million_tokens_or_an_epoch_or_half_of_the_run(config: MakeConfig) -> None:
    group = plan([config()]).groups[0]

    def dead_after(steps: int, epoch: int, **settings: Any) -> int | None:
        return new_trainee(config(**settings), group.cache, steps, epoch, group.device).coder.dead_after

    batch = config().data.batch_size
    assert dead_after(10**7, 10**9) == 10_000_000
    assert dead_after(10**4, 1234) == 1234
    assert dead_after(100, 100 * batch) == 50 * batch, "a run of one epoch"
    assert dead_after(100, 100 * batch, dead_after=7) == 7


def test_aux_revives_latents_that_never_win(config: MakeConfig, tmp_path: Path) -> None:
    """Encoder rows too short to be among the top k get no gradient of their own; AuxK makes them useful again."""
    cache, _ = planted(tmp_path, 64)
    silent = 40
    figures = {}
    for coef in (0.0, 1 / 32):
        made = config(
            cache=cache.path,
            target=None,
            coder=TopKConfig(latents=64, k=3, aux_coef=coef),
            data={"batch_size": 256, "epochs": 8},
            dead_after=5000,
            optimizer=OptimizerConfig(lr=5e-3),
        )
        trainee = trainee_of(made)
        with torch.no_grad():
            trainee.coder.w_enc[:silent] *= 1e-3
        with open_stream(cache, [SOURCE], made.data, build_sampler(made.sampler)) as stream:
            for rows in stream:
                result = train_step(trainee, rows)
        figures[coef] = int(trainee.coder.dead.sum()), float(result.terms.values["reconstruction"])
    assert figures[0.0][0] == silent
    assert figures[1 / 32][0] < silent / 4
    assert figures[1 / 32][1] < 0.5 * figures[0.0][1]
