from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from sparse_pipeline.train.kernels import decode, lists, select, update
from sparse_pipeline.train.kernels.update import Matrix
from tests.train.kernels.oracles import dense, relative

LR, BETA1, BETA2, EPS, T = 1e-2, 0.9, 0.999, 1e-8, 3
INF = float("inf")


@dataclass
class Expected:
    """Gradients of one step in float64, their norm, and Adam's result."""

    gradients: dict[str, Tensor]
    norm: float

    def after(self, before: dict[str, tuple[Tensor, ...]], clip: float, unit: bool) -> dict[str, tuple[Tensor, ...]]:
        out = {}
        for name, gradient in self.gradients.items():
            w, m, v = (x.double() for x in before[name])
            g = gradient * min(1.0, clip / (self.norm + 1e-6))
            m, v = BETA1 * m + (1 - BETA1) * g, BETA2 * v + (1 - BETA2) * g * g
            w = w - LR / (1 - BETA1**T) * m / ((v / (1 - BETA2**T)).sqrt() + EPS)
            out[name] = (w / w.norm(dim=1, keepdim=True) if unit and name == "w_dec" else w, m, v)
        return out


@pytest.mark.parametrize(
    ("rows", "latents", "k", "d_in", "d_out", "groups", "over_batch", "unit", "extras"),
    [
        (4, 11, 3, 16, 20, [11], False, True, False),
        (12, 8, 3, 11, 24, [2, 2, 4], False, True, False),  # lists longer than a segment, and empty ones
        (6, 11, 4, 24, 9, [2, 4, 3, 1, 1], True, False, True),
    ],
)
def test_rows_move_as_adam_moves_them(
    device: torch.device,
    rows: int,
    latents: int,
    k: int,
    d_in: int,
    d_out: int,
    groups: list[int],
    over_batch: bool,
    unit: bool,
    extras: bool,
) -> None:
    pre = torch.randn(rows, latents) + torch.linspace(3, -4, latents)
    codes = select.allocate(rows, n_latents=latents, k=k, dtype=torch.float32, device=device, over_batch=over_batch)
    select.select(pre.to(device), codes)
    by_latent = lists.allocate(codes, segment_length=4)
    lists.build_lists(codes, by_latent)
    if rows == 12:
        assert by_latent.segment[-1] > 0
        assert (by_latent.fired == 0).any()
    n, scale = len(groups), 2 / (len(groups) * rows * d_out)
    prefixes = torch.tensor(groups).cumsum(0).to(torch.int32)
    whole = torch.tensor([latents], dtype=torch.int32, device=device)
    w_dec = torch.randn(latents, d_out)
    w_dec = torch.nn.functional.normalize(w_dec, dim=1) if unit else w_dec
    weights = {"w_enc": torch.randn(latents, d_in), "b_enc": torch.randn(latents), "w_dec": w_dec}
    b_dec, u, t = torch.randn(d_out), torch.randn(rows, d_in), torch.randn(rows, d_out)
    slots = torch.full((latents,), -1, dtype=torch.int32)
    slots[[1, 5, latents - 1]] = torch.arange(3, dtype=torch.int32)
    further = {"w_enc": torch.randn(3, d_in), "b_enc": torch.randn(3), "w_dec": torch.randn(3, d_out)}

    suffix, grad_value = torch.zeros(n, rows, d_out, device=device), torch.zeros(rows * k, device=device)
    squares, reach = torch.zeros(rows, n, device=device), torch.zeros(n, rows, device=device)
    decode.nested_decode(
        codes, w_dec=w_dec.to(device), b_dec=b_dec.to(device), target=t.to(device), prefixes=prefixes.to(device),
        skip=None, extra=None, suffix=suffix, grad_value=grad_value, squares=squares, reach=reach,
    )  # fmt: skip
    expected = reference(codes, prefixes, w_dec, b_dec, u, t, unit, (slots, further) if extras else None)

    before = {name: (w, torch.randn(w.shape) * 1e-2, torch.rand(w.shape) * 1e-4) for name, w in weights.items()}
    list_grad, bound = torch.zeros(rows * k, device=device), torch.zeros(latents, device=device)
    state, norms = torch.zeros(update.STATE_SIZE, device=device), torch.zeros(2, latents, device=device)
    others = torch.zeros(1, device=device)
    added = others + (sum(g.square().sum().item() for g in further.values()) if extras else 0.0)
    partial = {
        name: torch.full((max(1, by_latent.max_segments), d), float("nan"), device=device)
        for name, d in (("w_enc", d_in), ("w_dec", d_out))
    }
    inputs = u.to(device).unsqueeze(0)
    on_device = {name: g.to(device) if extras else None for name, g in further.items()}
    slot = slots.to(device) if extras else None
    for clip, wanted in ((INF, False), (expected.norm / 2, False), (expected.norm * 99, True)):
        state[update.FINITE.value] = 1
        hyper = torch.tensor(
            [LR / (1 - BETA1**T), (1 - BETA2**T) ** -0.5, BETA1, BETA2, 1 - BETA1, 1 - BETA2, EPS, clip, float(wanted)]
        ).to(device)
        moved = {
            name: Matrix(w.clone().to(device), m.clone().to(device), v.clone().to(device), w.to(device, torch.bfloat16))
            for name, (w, m, v) in before.items()
        }
        update.bound_rows(
            by_latent, grad_value=grad_value, list_grad=list_grad, input_norm=u.norm(dim=1).to(device), reach=reach,
            prefixes=prefixes.to(device), bound=bound, scale=scale,
        )  # fmt: skip
        update.decide(bound=bound, others=others, extra=added, state=state, hyper=hyper)
        encoder = {"weight": list_grad, "table": inputs, "prefixes": whole, "partial": partial["w_enc"]}
        decoder = {
            "weight": by_latent.code, "table": suffix, "prefixes": prefixes.to(device), "partial": partial["w_dec"]
        }  # fmt: skip
        update.sum_segments(by_latent, **encoder)
        update.sum_segments(by_latent, **decoder)
        for moving in (False, True):
            update.rows(
                by_latent, moved["w_enc"], **encoder, state=state, hyper=hyper, scale=1.0,
                unit=False, update=moving, norms=norms[0], bias=moved["b_enc"], extra=on_device["w_enc"],
                extra_bias=on_device["b_enc"], slots=slot,
            )  # fmt: skip
            update.rows(
                by_latent, moved["w_dec"], **decoder, state=state, hyper=hyper,
                scale=scale, unit=unit, update=moving, norms=norms[1], extra=on_device["w_dec"], slots=slot,
            )  # fmt: skip
            if not moving:
                update.factor(norms=norms, others=others, state=state, hyper=hyper)

        exact = wanted or clip < expected.norm
        assert bool(state[update.EXACT.value]) == exact
        if exact:
            assert state[update.NORM.value].item() == pytest.approx(expected.norm, rel=1e-5)
        else:
            assert torch.isnan(state[update.NORM.value])
        assert state[update.BOUND.value].item() >= expected.norm
        for name, (w, m, v) in expected.after(before, clip, unit).items():
            assert relative(moved[name].weight, w) < 1e-6, name
            assert relative(moved[name].exp_avg, m) < 1e-5, name
            assert relative(moved[name].exp_avg_sq, v) < 1e-4, name  # a square of differences of large sums
            assert relative(moved[name].shadow, w) < 6e-3, name


def reference(
    codes: select.Selection,
    prefixes: Tensor,
    w_dec: Tensor,
    b_dec: Tensor,
    u: Tensor,
    t: Tensor,
    unit: bool,
    further: tuple[Tensor, dict[str, Tensor]] | None,
) -> Expected:
    """The gradients by float64 autograd and the chain rule through the pre-activations."""
    z = dense(codes, codes.value).requires_grad_()
    w = w_dec.double().requires_grad_()
    errors = [b_dec.double() - t.double() + z[:, :m] @ w[:m] for m in prefixes.tolist()]
    (sum(e.square().sum() for e in errors) / (len(errors) * t.numel())).backward()  # type: ignore[union-attr]
    assert z.grad is not None
    assert w.grad is not None
    grad_pre = torch.where(z > 0, z.grad, 0.0)
    gradients = {"w_enc": grad_pre.T @ u.double(), "b_enc": grad_pre.sum(dim=0), "w_dec": w.grad}
    if further is not None:
        slots, rows = further
        for name, gradient in gradients.items():
            gradient[slots >= 0] += rows[name][slots[slots >= 0].long()].double()
    if unit:
        along = (gradients["w_dec"] * w_dec.double()).sum(dim=1, keepdim=True)
        gradients["w_dec"] = gradients["w_dec"] - along * w_dec.double()
    norm = torch.stack([g.square().sum() for g in gradients.values()]).sum().sqrt()
    return Expected(gradients, norm.item())


@pytest.mark.parametrize("bad", [float("nan"), INF])
def test_a_gradient_that_is_not_finite_moves_nothing(device: torch.device, bad: float) -> None:
    codes = select.allocate(2, n_latents=4, k=2, dtype=torch.float32, device=device, over_batch=False)
    select.select(torch.rand(2, 4, device=device) + 0.1, codes)
    by_latent = lists.allocate(codes, segment_length=8)
    lists.build_lists(codes, by_latent)
    grad_value = torch.ones(4, device=device)
    grad_value[2] = bad
    state, hyper = torch.zeros(update.STATE_SIZE, device=device), torch.ones(update.HYPER_SIZE, device=device)
    state[update.FINITE.value] = 1
    whole = torch.tensor([4], dtype=torch.int32, device=device)
    bound, list_grad, norms = (torch.zeros(n, device=device) for n in (4, 4, 8))
    w = Matrix(*(torch.ones(4, 8, device=device) for _ in range(3)), shadow=None)
    others, partial = torch.zeros(1, device=device), torch.zeros(1, 8, device=device)
    ones, table = torch.ones(1, 2, device=device), torch.ones(1, 2, 8, device=device)
    for attempt in range(2):  # and the step after it, whose gradient is finite, moves nothing either
        update.bound_rows(
            by_latent, grad_value=grad_value, list_grad=list_grad, input_norm=ones[0], reach=ones, prefixes=whole,
            bound=bound, scale=1.0,
        )  # fmt: skip
        update.decide(bound=bound, others=others, extra=torch.zeros_like(others), state=state, hyper=hyper)
        for moving in (False, True):
            update.rows(
                by_latent, w, weight=list_grad, table=table, prefixes=whole, partial=partial, state=state, hyper=hyper,
                scale=1.0, unit=False, update=moving, norms=norms[:4],
            )  # fmt: skip
            if not moving:
                update.factor(norms=norms, others=others, state=state, hyper=hyper)
        assert state[update.FINITE.value] == 0
        assert (w.weight == 1).all(), attempt
        grad_value.fill_(1.0)
