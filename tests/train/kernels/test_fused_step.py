"""The whole step against the coder's own losses, float64 autograd, torch's Adam and clipping."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sparse_pipeline.shared.coders import Coder, Codes, build_coder
from sparse_pipeline.shared.coders.batchtopk import BatchTopKConfig
from sparse_pipeline.shared.coders.configs.base import Normalise, StepContext
from sparse_pipeline.shared.coders.matryoshka import MatryoshkaConfig
from sparse_pipeline.shared.coders.normalisation import SiteMoments
from sparse_pipeline.shared.coders.topk import TopKConfig
from sparse_pipeline.train.kernels.fused_step import FusedResult, FusedStep
from tests.train.kernels.oracles import relative

LR = 1e-2


def made(config: TopKConfig, d_in: int, d_out: int, tied: bool) -> Coder:
    """A coder none of whose parameters is zero."""
    coder = build_coder(config, d_in, d_out, tied=tied, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in coder.parameters():
            if not parameter.any():
                parameter.normal_(std=0.3)
    coder.project_parameters()
    return coder


class Reference:
    """The same coder in float64, trained by autograd as train/step.py does it."""

    def __init__(self, coder: Coder, clip: float | None) -> None:
        self.coder = copy.deepcopy(coder).cpu().double()
        self.optimizer = torch.optim.Adam(self.coder.parameters(), lr=LR)
        self.clip = clip

    def step(self, u: Tensor, t: Tensor, penalise: Callable[[Codes, Coder], Tensor] | None) -> dict[str, float]:
        u, t, coder = u.double(), t.double(), self.coder
        codes = coder.encode_normalised(u)
        terms = coder.losses(u, t, codes)
        total = sum(terms.values(), start=torch.zeros((), dtype=torch.float64))
        (total if penalise is None else total + penalise(codes, coder)).backward()
        coder.project_gradients()
        norm = torch.nn.utils.clip_grad_norm_(coder.parameters(), float("inf") if self.clip is None else self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        coder.project_parameters()
        coder.after_step(codes)
        return {name: value.item() for name, value in terms.items()} | {
            "norm": norm.item(),
            "l0": codes.l0().sum().item(),
        }


def compare(step: FusedStep, reference: Reference, tolerance: float, moments: float) -> None:
    mine, theirs = dict(step.coder.named_parameters()), dict(reference.coder.named_parameters())
    for name, parameter in mine.items():
        assert relative(parameter, theirs[name]) < tolerance, name
        for moment in ("exp_avg", "exp_avg_sq"):
            found, expected = step.optimizer.state[parameter][moment], reference.optimizer.state[theirs[name]][moment]
            assert relative(found, expected) < moments, (name, moment)
    assert torch.equal(step.coder.since_fired.cpu(), reference.coder.since_fired)


def rows_for(coder: Coder, n: int, duplicates: bool = False) -> tuple[Tensor, Tensor]:
    u = torch.randn(n, coder.d_in)
    if duplicates:
        u[1:4] = u[0]
    return u, (u.clone() if coder.tied else torch.randn(n, coder.d_out))


def check(result: FusedResult, expected: dict[str, float], n_rows: int) -> None:
    assert result.reconstruction.item() == pytest.approx(expected["reconstruction"], rel=1e-5)
    assert (0.0 if result.aux is None else result.aux.item()) == pytest.approx(expected.get("aux", 0.0), rel=1e-5)
    assert result.l0.sum().item() == expected["l0"]
    assert result.squares.shape[0] == n_rows


def penalties(codes: Codes, coder: Coder) -> Tensor:
    """Terms that reach the codes and each parameter."""
    gram = coder.w_dec @ coder.w_dec.T
    return (
        0.3 * codes.values.square().sum() / codes.n_rows + 0.1 * gram.square().mean() + 0.2 * coder.b_enc.square().sum()
        + 0.1 * coder.b_dec.pow(3).sum()
    )  # fmt: skip


# Small: the interpreter's time goes with the rows and the latents, and hardly with the widths.
ROWS, DEAD_AFTER = 5, 4
GROUPS = (1, 3, 2, 2, 1)
CASES = {
    "SAE": (TopKConfig(latents=8, k=3), 12, 12, True, 1.0, {}),
    "SAE, clipped": (TopKConfig(latents=9, k=4), 9, 9, True, 0.05, {"duplicates": True}),
    "nested transcoder, skip": (MatryoshkaConfig(latents=9, k=3, groups=(3, 6), skip=True), 12, 20, False, 0.1, {}),
    "five groups, free rows": (
        MatryoshkaConfig(latents=9, k=3, groups=GROUPS, decoder_norm="free"), 10, 7, False, None, {},
    ),
    "AuxK, fewer than dead": (TopKConfig(latents=14, k=1, aux_k=3), 12, 12, True, 0.2, {"dead_after": DEAD_AFTER}),
    "AuxK, all dead": (MatryoshkaConfig(latents=12, k=2, aux_k=30), 8, 10, False, 0.2, {"dead_after": DEAD_AFTER}),
    "penalties": (MatryoshkaConfig(latents=9, k=3, groups=(2, 5, 2)), 8, 10, False, 0.1, {"penalise": penalties}),
    "penalties and AuxK": (
        TopKConfig(latents=12, k=2, aux_k=3), 8, 10, False, 0.1, {"penalise": penalties, "dead_after": DEAD_AFTER},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=list(CASES))
def test_steps_of_the_reference(device: torch.device, case: str) -> None:
    config, d_in, d_out, tied, clip, extra = CASES[case]
    coder = made(config, d_in, d_out, tied)
    coder.dead_after = extra.get("dead_after")
    reference = Reference(coder, clip)
    coder = coder.to(device)
    optimizer = torch.optim.Adam(coder.parameters(), lr=0.0)
    step = FusedStep(coder, optimizer, grad_clip=clip, dtype=torch.float32)
    penalise = extra.get("penalise")
    dead = 0
    for n in range(2):
        u, t = rows_for(coder, ROWS, extra.get("duplicates", False))
        dead += int(reference.coder.dead.sum())
        expected = reference.step(u, t, penalise)
        mine = None if penalise is None else lambda codes: penalise(codes, coder)
        result = step.step(u.to(device), t.to(device), LR, penalise=mine, want_norm=n == 1)
        check(result, expected, ROWS)
        if n == 1:
            assert result.grad_norm.item() == pytest.approx(expected["norm"], rel=1e-5)
    assert step.finite
    assert (dead > 0) == ("dead_after" in extra)
    if case == "AuxK, fewer than dead":
        assert config.aux_k < dead
    compare(step, reference, 1e-5, 1e-3)


OVER_BATCH = {
    "plain": BatchTopKConfig(latents=9, k=3),
    "nested": MatryoshkaConfig(latents=9, k=3, groups=(3, 6), selection="batchtopk"),
}


@pytest.mark.parametrize("penalise", [None, penalties], ids=["plain", "penalties"])
@pytest.mark.parametrize("config", OVER_BATCH.values(), ids=OVER_BATCH)
def test_selection_over_the_batch(
    device: torch.device, config: BatchTopKConfig, penalise: Callable[[Codes, Coder], Tensor] | None
) -> None:
    coder = made(config, 12, 10, tied=False)
    reference = Reference(coder, 0.1)
    coder = coder.to(device)
    step = FusedStep(coder, torch.optim.Adam(coder.parameters()), grad_clip=0.1, dtype=torch.float32)
    for _ in range(2):
        u, t = rows_for(coder, ROWS)
        u[0] *= 5  # takes most of the batch's codes
        codes = reference.coder.encode_normalised(u.double())
        expected = reference.step(u, t, penalise)
        mine = None if penalise is None else lambda codes: penalise(codes, coder)
        check(step.step(u.to(device), t.to(device), LR, penalise=mine), expected, ROWS)
        smallest = codes.values[codes.values > 0].min().item()
        assert coder.threshold.item() == pytest.approx(smallest, rel=1e-5)  # type: ignore[operator]
        assert relative(step.codes().dense(), codes.dense()) < 1e-5
    compare(step, reference, 1e-5, 1e-3)


def test_prefixes_that_are_redrawn(device: torch.device) -> None:
    coder = made(MatryoshkaConfig(latents=9, k=3, prefixes="random", n_prefixes=3), 12, 12, tied=True)
    reference = Reference(coder, None)
    coder = coder.to(device)
    step = FusedStep(coder, torch.optim.Adam(coder.parameters()), grad_clip=None, dtype=torch.float32)
    drawn = set()
    for n in range(1, 4):
        for one in (coder, reference.coder):
            one.begin_step(StepContext(5, n))
        drawn.add(coder.prefixes)
        u, t = rows_for(coder, 4)
        check(step.step(u.to(device), t.to(device), LR), reference.step(u, t, None), 4)
    assert len(drawn) == 3
    compare(step, reference, 1e-5, 1e-3)


def test_bfloat16_stays_near_the_reference(device: torch.device) -> None:
    coder = made(MatryoshkaConfig(latents=9, k=3, groups=(2, 5, 2), skip=True), 24, 20, False)
    reference = Reference(coder, 0.1)
    coder = coder.to(device)
    step = FusedStep(coder, torch.optim.Adam(coder.parameters()), grad_clip=0.1, dtype=torch.bfloat16)
    for _ in range(2):
        u, t = rows_for(coder, 6)
        u = u.bfloat16().float()
        expected = reference.step(u, t, None)
        result = step.step(u.to(device), t.to(device), LR)
        assert result.reconstruction.item() == pytest.approx(expected["reconstruction"], rel=1e-2)
    compare(step, reference, 2e-2, 5e-2)
    for matrix in (step.w_enc, step.b_enc, step.w_dec):
        assert matrix.shadow is not None
        assert relative(matrix.shadow, matrix.weight) < 6e-3  # the update keeps the copies


@pytest.mark.parametrize("normalise", ["scalar", "per_dimension"])
def test_raw_rows_are_normalised_on_the_way(device: torch.device, normalise: Normalise) -> None:
    coder = made(TopKConfig(latents=8, k=3, input_transform="rms", normalise=normalise), 12, 10, False)
    coder.set_normalisation(
        SiteMoments(torch.randn(12), torch.rand(12)), SiteMoments(torch.randn(10), torch.rand(10) + 1)
    )
    twin = copy.deepcopy(coder).to(device)
    coder = coder.to(device)
    steps = [FusedStep(c, torch.optim.Adam(c.parameters()), grad_clip=1.0, dtype=torch.float32) for c in (coder, twin)]
    x, y = torch.randn(3, 12).bfloat16().to(device), torch.randn(3, 10).bfloat16().to(device)
    steps[0].step_raw(x, y, LR)
    steps[1].step(twin.normalise_input(x), twin.normalise_target(y), LR)
    for a, b in zip(coder.parameters(), twin.parameters(), strict=True):
        assert relative(a, b) < 1e-5
    assert relative(steps[0].rows[0], twin.normalise_input(x)) < 1e-6
    assert relative(steps[0].rows[1], twin.normalise_target(y)) < 1e-6


def test_either_path_goes_on_where_the_other_stopped(device: torch.device) -> None:
    coder = made(TopKConfig(latents=8, k=3), 12, 12, True)
    reference = Reference(coder, None)
    coder = coder.to(device)
    optimizer = torch.optim.Adam(coder.parameters(), lr=LR, fused=True)
    step = FusedStep(coder, optimizer, grad_clip=None, dtype=torch.float32)
    for n in range(4):
        u, t = rows_for(coder, 4)
        reference.step(u, t, None)
        if n % 2:  # autograd and the same optimizer
            codes = coder.encode_normalised(u.to(device))
            sum(coder.losses(u.to(device), t.to(device), codes).values()).backward()  # type: ignore[union-attr]
            coder.project_gradients()
            optimizer.step()
            optimizer.zero_grad()
            coder.project_parameters()
            coder.after_step(codes)
        else:
            step.step(u.to(device), t.to(device), LR)
    compare(step, reference, 1e-5, 1e-3)
    restored = torch.optim.Adam(coder.parameters(), lr=LR, fused=True)
    restored.load_state_dict(optimizer.state_dict())
    assert float(restored.state[coder.w_enc]["step"]) == 4


def test_codes_of_the_last_step(device: torch.device) -> None:
    coder = made(TopKConfig(latents=8, k=3), 12, 12, True).to(device)
    step = FusedStep(coder, torch.optim.Adam(coder.parameters()), grad_clip=1.0, dtype=torch.float32)
    u, t = rows_for(coder, 6)
    expected = coder.encode_normalised(u.to(device)).detach().dense()
    step.step(u.to(device), t.to(device), LR)
    assert relative(step.codes().dense(), expected) < 1e-6


def test_what_is_not_finite_moves_nothing(device: torch.device) -> None:
    coder = made(TopKConfig(latents=8, k=3), 12, 12, True).to(device)
    step = FusedStep(coder, torch.optim.Adam(coder.parameters()), grad_clip=1.0, dtype=torch.float32)
    u, t = rows_for(coder, 4)
    step.step(u.to(device), t.to(device), LR)
    before = copy.deepcopy(coder.state_dict())
    t[2, 3] = float("nan")
    step.step(u.to(device), t.to(device), LR)
    assert not step.finite
    for name, parameter in coder.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_what_the_fused_step_does_not_do(device: torch.device) -> None:
    coder = made(TopKConfig(latents=16, k=3), 12, 12, True)
    with pytest.raises(ValueError, match="SGD, not Adam"):
        FusedStep(coder, torch.optim.SGD(coder.parameters(), lr=0.1), grad_clip=1.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="weight_decay"):
        FusedStep(coder, torch.optim.Adam(coder.parameters(), weight_decay=0.1), grad_clip=1.0)
    coder.w_dec.requires_grad_(False)
    with pytest.raises(ValueError, match=r"frozen parameters \(w_dec\)"):
        FusedStep(coder, torch.optim.Adam([coder.w_enc]), grad_clip=1.0)
    many = MatryoshkaConfig(latents=17, k=3, groups=(1,) * 17)
    with pytest.raises(ValueError, match="17 groups, at most 16"):
        coder = made(many, 12, 12, True)
        FusedStep(coder, torch.optim.Adam(coder.parameters()), grad_clip=1.0)


@pytest.mark.slow
def test_only_steps_of_the_kind_that_is_captured_count_before_a_capture(device: torch.device) -> None:
    """A kernel that a capture meets first would be compiled and loaded within it, which CUDA refuses."""
    coder = made(TopKConfig(latents=16, k=2), 8, 8, True).to(device)
    step = FusedStep(coder, torch.optim.Adam(coder.parameters()), grad_clip=1.0, dtype=torch.float32)
    step.graphs = True
    seen: list[int] = []
    step._capture = lambda b: seen.append(number)  # type: ignore[method-assign]
    for number in range(9):
        u, t = rows_for(coder, 4)
        step.step(u.to(device), t.to(device), LR, penalise=(lambda codes: codes.values.sum()) if number < 4 else None)
    assert seen[0] == 4 + 3


@pytest.mark.slow
def test_more_dead_latents_begin_a_graph_anew(device: torch.device) -> None:
    """A graph holds buffers of one size; a step that needs larger ones is launched by itself first."""
    coder = made(TopKConfig(latents=9, k=2, aux_k=3), 4, 4, True).to(device)
    coder.dead_after = 10_000
    step = FusedStep(coder, torch.optim.Adam(coder.parameters()), grad_clip=1.0, dtype=torch.float32)
    step.graphs = True
    rooms: list[int] = []
    step._capture = lambda b: rooms.append(b.room)  # type: ignore[method-assign]
    for number in range(8):
        if number == 4:
            coder.since_fired[:] = 20_000
        u, t = rows_for(coder, 2)
        step.step(u.to(device), t.to(device), LR)
    assert rooms == [0, 9]  # steps 4 and 8: three of each kind came before


@pytest.mark.gpu
def test_a_graph_repeats_the_launches(device: torch.device) -> None:
    config = MatryoshkaConfig(latents=2048, k=16)
    coders = [made(config, 256, 384, False).to(device) for _ in range(2)]
    steps = [
        FusedStep(c, torch.optim.Adam(c.parameters()), grad_clip=1.0, dtype=torch.bfloat16, graphs=graphs)
        for c, graphs in zip(coders, (True, False), strict=True)
    ]
    for _ in range(12):
        u, t = (rows.to(device) for rows in rows_for(coders[0], 512))
        for step in steps:
            step.step(u, t, LR)
    for a, b in zip(coders[0].parameters(), coders[1].parameters(), strict=True):
        assert torch.equal(a, b)  # the same bits: nothing depends on the order in which programs run


@pytest.mark.gpu
def test_five_hundred_steps_end_where_autograd_ends(device: torch.device) -> None:
    config = MatryoshkaConfig(latents=2048, k=16)
    coder = build_coder(config, 256, 256, tied=True, generator=torch.Generator().manual_seed(0)).to(device)
    plain = copy.deepcopy(coder)
    step = FusedStep(coder, torch.optim.Adam(coder.parameters()), grad_clip=1.0, dtype=torch.bfloat16)
    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-3)
    directions = torch.nn.functional.normalize(torch.randn(512, 256, device=device), dim=1)
    losses = []
    for _ in range(500):
        active = torch.rand(1024, 512, device=device) < 16 / 512
        u = (active * torch.rand(1024, 512, device=device) * 4) @ directions
        mine = step.step(u, u, 1e-3).reconstruction.item()
        codes = plain.encode_normalised(u)
        loss = sum(plain.losses(u, u, codes).values())
        loss.backward()  # type: ignore[union-attr]
        plain.project_gradients()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        plain.project_parameters()
        losses.append((mine, float(loss)))
    mine, theirs = (sum(values[-50:]) / 50 for values in zip(*losses, strict=True))
    assert mine == pytest.approx(theirs, rel=0.02)
