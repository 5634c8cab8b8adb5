"""The loss of tuning and its gradients, against the literal formula in float64 on the plain model with plain hooks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from sparse_pipeline.models.folder import DEMO_MODEL
from sparse_pipeline.tune.config import TuneConfig
from sparse_pipeline.tune.loss import TINY, balanced, mean_kl
from sparse_pipeline.tune.plan import plan
from sparse_pipeline.tune.step import Tuned, loss_of, tune_step
from sparse_pipeline.tune.update import LowRank, Update

NAMES = ("w_enc", "b_enc", "w_dec", "b_dec")

IN_THE_MODEL = 1e-5
"""Relative tolerance of what passes through the model above the coder: its norms and its softmax are in float32."""


@pytest.fixture
def make(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Tuned]:
    """A tuning of the workshop's TopK transcoder in float64, before its first step."""
    monkeypatch.chdir(workshop)

    def tuned(run: str = "topk", **changes: Any) -> Tuned:
        config = TuneConfig(run=Path("runs") / run, sequences=2, tokens=300, **changes)
        planned = plan(config)
        coder = planned.parent.load_coder().double()
        model = AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype=torch.float64, attn_implementation="eager")
        return Tuned(planned, coder, model.eval().requires_grad_(False), Update(coder, config))

    return tuned


class Literal:
    """MSE and KL of a TopK transcoder from its tensors: no code of the project between tokens and loss."""

    def __init__(self, tuned: Tuned) -> None:
        self.tuned, self.model = tuned, tuned.model
        self.k = int(tuned.coder.config.k)  # type: ignore[attr-defined]
        self.w = {name: getattr(tuned.coder, name).detach().clone().requires_grad_() for name in NAMES}

    def terms(self, step: int) -> tuple[Tensor, Tensor]:
        """(MSE, KL) of a step's sequences."""
        cache, coder = self.tuned.plan.cache, self.tuned.coder
        sequences = self.tuned.plan.sequences(step)
        ids = torch.from_numpy(cache.tokens[sequences].astype("int64"))
        rows = torch.from_numpy(self.tuned.plan.rows.train.reshape(-1, cache.ctx)[sequences])
        layer: Any = self.model.model.layers[2]  # type: ignore[union-attr, index]
        held: dict[str, Tensor] = {}

        def after(_m: Any, _a: Any, y: Tensor) -> Tensor:
            u = (held["x"] - coder.input_mean) / coder.input_scale
            t = (y - coder.target_mean) / coder.target_scale
            pre = u @ self.w["w_enc"].T + self.w["b_enc"]
            smallest = pre.topk(self.k, dim=-1).values[..., -1:]
            z = torch.relu(torch.where(pre >= smallest, pre, 0.0))
            t_hat = z @ self.w["w_dec"] + self.w["b_dec"]
            held["mse"] = (t - t_hat)[rows].square().mean()
            return torch.where(rows[..., None], t_hat * coder.target_scale + coder.target_mean, y)

        with torch.no_grad():
            clean = self.model(input_ids=ids).logits
        handles = [
            layer.pre_feedforward_layernorm.register_forward_pre_hook(
                lambda _m, a: held.__setitem__("x", a[0].clone())
            ),
            layer.post_feedforward_layernorm.register_forward_hook(after),
        ]
        logits = self.model(input_ids=ids).logits
        for handle in handles:
            handle.remove()
        p = clean.softmax(-1)
        kl = (p * (clean.log_softmax(-1) - logits.log_softmax(-1))).sum(-1)[rows].mean()
        return held["mse"], kl

    def gradients(self, step: int, beta: float) -> dict[str, Tensor]:
        mse, kl = self.terms(step)
        alpha = float(mse.detach()) / (float(kl.detach()) + 1e-8)
        loss = (mse + alpha * beta * kl) / (1 + beta)
        return dict(zip(NAMES, torch.autograd.grad(loss, list(self.w.values())), strict=True))


def test_loss_and_gradients_are_those_of_the_formula(make: Callable[..., Tuned]) -> None:
    tuned = make(beta=0.7)
    literal = Literal(tuned)
    mse, kl = (value.detach() for value in literal.terms(1))
    terms, codes, n_rows = loss_of(tuned, 1)
    torch.testing.assert_close(terms.values["reconstruction"], mse, rtol=1e-10, atol=0)
    torch.testing.assert_close(terms.values["kl"], kl, rtol=IN_THE_MODEL, atol=0)
    alpha = float(mse / (kl + 1e-8))
    assert float(terms.values["alpha"]) == pytest.approx(alpha, rel=IN_THE_MODEL)
    assert float(terms.total.detach()) == pytest.approx(float(mse + 0.7 * alpha * kl) / 1.7, rel=IN_THE_MODEL)
    assert float(terms.total.detach()) == pytest.approx(float(mse), rel=1e-6), (
        "the balance: the loss has the size of the MSE"
    )
    assert n_rows == codes.n_rows == int(tuned.plan.rows.train.reshape(-1, 64)[tuned.plan.sequences(1)].sum())
    terms.total.backward()  # type: ignore[no-untyped-call]
    for name, expected in literal.gradients(1, 0.7).items():
        found = getattr(tuned.coder, name).grad
        assert float(expected.abs().max()) > 0
        torch.testing.assert_close(
            found, expected, rtol=10 * IN_THE_MODEL, atol=IN_THE_MODEL * float(expected.abs().max())
        )


def test_alpha_is_a_constant_of_the_gradient(make: Callable[..., Tuned]) -> None:
    """A central difference of the loss with α as it was at the point agrees with the gradient."""
    tuned = make(beta=3.0)
    terms, _, _ = loss_of(tuned, 1)
    terms.total.backward()  # type: ignore[no-untyped-call]
    alpha, step = float(terms.values["alpha"]), 1e-2
    gradient = tuned.coder.b_dec.grad
    assert gradient is not None
    place = int(gradient.abs().argmax())
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            tuned.coder.b_dec[place] += sign * step
            moved = loss_of(tuned, 1)[0].values
            tuned.coder.b_dec[place] -= sign * step
        ends.append(float(moved["reconstruction"] + alpha * 3.0 * moved["kl"]) / 4)
    assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(float(gradient[place]), rel=0.01)


def test_beta_0_is_training_on_the_squared_error(make: Callable[..., Tuned]) -> None:
    """Two updates against Adam, written out, on the MSE alone with unit decoder rows."""
    tuned = make(beta=0.0, grad_clip=None)
    literal = Literal(tuned)
    optimizer = torch.optim.Adam(literal.w.values(), lr=0.0)
    for step in (1, 2):
        literal.terms(step)[0].backward()  # type: ignore[no-untyped-call]
        w_dec = literal.w["w_dec"]
        assert w_dec.grad is not None
        with torch.no_grad():
            w_dec.grad -= (w_dec.grad * w_dec).sum(1, keepdim=True) * w_dec
            optimizer.param_groups[0]["lr"] = tuned.plan.config.rate(step, tuned.plan.steps, 128)
            optimizer.step()
            w_dec /= w_dec.norm(dim=1, keepdim=True)
        optimizer.zero_grad()
        tune_step(tuned)
        for name in NAMES:
            torch.testing.assert_close(
                getattr(tuned.coder, name).detach(), literal.w[name].detach(), rtol=1e-8, atol=1e-11
            )


def test_mean_kl_is_that_of_torch_in_every_dtype() -> None:
    generator = torch.Generator().manual_seed(1)
    clean, spliced = (3 * torch.randn(700, 50, generator=generator, dtype=torch.float64) for _ in range(2))
    spliced.requires_grad_()
    expected = torch.nn.functional.kl_div(
        spliced.log_softmax(-1), clean.log_softmax(-1), log_target=True, reduction="batchmean"
    )
    (gradient,) = torch.autograd.grad(expected, spliced)
    found = mean_kl(clean, spliced)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.autograd.grad(2 * found, spliced)[0], 2 * gradient, rtol=1e-10, atol=1e-16)
    low = spliced.detach().bfloat16().requires_grad_()
    in_low = mean_kl(clean.bfloat16(), low)
    assert in_low.dtype == torch.float32
    assert float(in_low.detach()) == pytest.approx(float(expected.detach()), rel=1e-2)


def test_the_other_terms_keep_their_weight() -> None:
    own = {"reconstruction": torch.tensor(0.5), "sparsity": torch.tensor(0.2), "gate": torch.tensor(0.1)}
    terms = balanced(own, torch.tensor(0.04), 2.0)
    assert float(terms.values["alpha"]) == pytest.approx(0.5 / (0.04 + TINY))
    assert float(terms.total) == pytest.approx((0.5 + 2 * 0.5) / 3 + 0.3)


@pytest.mark.parametrize("unit", [False, True])
def test_low_rank_gradients_are_those_of_autograd(unit: bool) -> None:
    generator = torch.Generator().manual_seed(2)
    start = torch.randn(9, 6, generator=generator, dtype=torch.float64)
    start[4] = 0
    if unit:
        start = torch.nn.functional.normalize(start)
    matrix = torch.nn.Parameter(start.clone())
    low = LowRank(matrix, 2, unit=unit, generator=generator)
    with torch.no_grad():
        low.a.copy_(0.3 * torch.randn(9, 2, generator=generator))
    low.merge()
    a, b = (value.detach().clone().requires_grad_() for value in (low.a, low.b))
    total = start + a @ b
    if unit:
        keep = (start.norm(dim=1, keepdim=True) > 0).double()
        total = keep * total / total.norm(dim=1, keepdim=True)
    torch.testing.assert_close(matrix.detach(), total.detach(), rtol=1e-12, atol=1e-15)
    weights = torch.randn(9, 6, generator=generator, dtype=torch.float64)
    expected = torch.autograd.grad((total.square() * weights).sum(), (a, b))
    (matrix.square() * weights).sum().backward()  # type: ignore[no-untyped-call]
    low.take_gradient()
    torch.testing.assert_close((low.a.grad, low.b.grad), expected, rtol=1e-10, atol=1e-13)
    assert matrix.grad is None
