"""One fused step compared with float64: selection, loss, every gradient, the norm; bit-identical on every run.

At learning rate 0 and from zero moments, Adam's first moment after a step is 0.1 times the gradient. So the gradients,
which the kernels never write to memory, can be read off.
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from sparse_pipeline.shared.coders import Coder, build_coder
from sparse_pipeline.shared.coders.base import CoderConfig
from sparse_pipeline.shared.coders.batchtopk import BatchTopKConfig
from sparse_pipeline.shared.coders.matryoshka import MatryoshkaConfig
from sparse_pipeline.shared.coders.topk import TopKConfig
from sparse_pipeline.train.kernels.fused_step import FusedStep

from .record import Record
from .setting import FULL_K, FULL_LATENTS, FULL_WIDTH, Setting, relative_error, synchronise

CASES = ("full", "odd", "batch", "float32")
TOLERANCE = {torch.bfloat16: 2e-2, torch.float32: 1e-4}


@dataclass(frozen=True)
class Case:
    """A coder and a batch: the shape of the goal, or one that divides by nothing."""

    config: CoderConfig
    d_in: int
    d_out: int
    rows: int
    dtype: torch.dtype


def case_of(which: str, setting: Setting) -> Case:
    """The case of this name at this size."""
    low, full = torch.bfloat16, torch.float32
    odd = {"skip": True, "input_transform": "rms"}
    toy = {
        "full": Case(MatryoshkaConfig(latents=8, k=2), 5, 5, 3, low),
        "odd": Case(MatryoshkaConfig(latents=11, k=3, groups=(2, 4, 5), **odd), 5, 3, 4, low),
        "batch": Case(MatryoshkaConfig(latents=11, k=2, groups=(3, 8), selection="batchtopk"), 5, 3, 4, low),
        "float32": Case(TopKConfig(latents=9, k=3), 4, 4, 3, full),
    }
    real = {
        "full": Case(MatryoshkaConfig(latents=FULL_LATENTS, k=FULL_K), FULL_WIDTH, FULL_WIDTH, 1024, low),
        "odd": Case(MatryoshkaConfig(latents=5003, k=37, groups=(1000, 2000, 2003), **odd), 777, 515, 1021, low),
        "batch": Case(BatchTopKConfig(latents=4099, k=33), 770, 516, 509, low),
        "float32": Case(TopKConfig(latents=3077, k=130), 301, 301, 257, full),
    }
    return (toy if setting.toy else real)[which]


def kernels(record: Record, setting: Setting, which: str) -> None:
    """Check one case."""
    case = case_of(which, setting)
    generator = torch.Generator().manual_seed(setting.seed)
    coder = _coder(case, generator).to(setting.device).train()
    x = (torch.randn(case.rows, case.d_in, generator=generator) * 1.5).bfloat16().to(setting.device)
    y = torch.randn(case.rows, case.d_out, generator=generator).bfloat16().to(setting.device)
    _one_step(record, setting, case, coder, (x, y))
    _same_bits(record, setting, case, coder, (x, y))


def _coder(case: Case, generator: torch.Generator) -> Coder:
    """Random weights, and one latent that fires on nearly every row: its list is cut into segments."""
    coder = build_coder(case.config, case.d_in, case.d_out, tied=False, generator=generator)
    with torch.no_grad():
        coder.randomise_decoder(generator)
        coder.b_enc.normal_(std=0.05, generator=generator)
        coder.b_dec.normal_(std=0.2, generator=generator)
        if coder.w_skip is not None:
            coder.w_skip.normal_(std=0.02, generator=generator)
        coder.b_enc[case.config.latents // 7] = 3.0
    return coder


def _fused(case: Case, coder: Coder, setting: Setting, graphs: bool = False) -> FusedStep:
    optimizer = torch.optim.Adam(coder.parameters(), lr=0.0, fused=not setting.toy)
    return FusedStep(coder, optimizer, grad_clip=None, dtype=case.dtype, graphs=graphs)


def _one_step(record: Record, setting: Setting, case: Case, start: Coder, rows: tuple[Tensor, Tensor]) -> None:
    coder = copy.deepcopy(start)
    began = time.perf_counter()
    step = _fused(case, coder, setting)
    b = step._prepare(case.rows)
    for buffer in (
        b.pre,
        b.suffix,
        b.squares,
        b.reach,
        b.grad_value,
        b.list_grad,
        b.partial_enc,
        b.partial_dec,
        b.u,
        b.t,
    ):
        buffer.fill_(float("nan"))  # whatever is read before it was written shows
    decoder = step.w_dec.compute.double().clone()
    result = step.step_raw(*rows, 0.0, want_norm=True)
    synchronise(setting)
    record.put("first step, compiling, s", round(time.perf_counter() - began, 1))
    record.check("finite", step.finite)

    z = step.codes().dense().double()
    _check_selection(record, step, z)
    loss, wanted = _gradients(step, start, decoder, z)
    found = float(result.reconstruction)
    record.check("loss", abs(found / loss - 1) < 1e-3, f"{found:.6f}, expected {loss:.6f}")
    tolerance = TOLERANCE[case.dtype]
    for name, gradient in wanted.items():
        moment = step.optimizer.state[getattr(coder, name)]["exp_avg"].double() / 0.1
        error = relative_error(moment, gradient)
        record.check(f"gradient of {name}", error < tolerance, f"{error:.2e} from float64")
    norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in wanted.values()))
    found = float(result.grad_norm)
    record.check("norm", abs(found / norm - 1) < tolerance, f"{found:.3e}, expected {norm:.3e}")
    bound = float(step.state[4])
    record.check("the bound is no lower than the norm", bound >= norm * 0.999, f"{bound / norm:.1f} × the norm")


def _check_selection(record: Record, step: FusedStep, z: Tensor) -> None:
    """The selected values against torch.topk of the pre-activations that the kernel saw; firing counts against z."""
    b, k = step.buffers, step.k
    pre = b.pre.float().clamp_min(0)
    over_batch = step.coder.selection == "batch"
    expected = pre.flatten().topk(k * len(pre)).values if over_batch else pre.topk(k, dim=1).values.flatten()
    expected = expected[expected > 0].sort().values
    found = step.codes().values.flatten()
    found = found[found > 0].sort().values
    same = found.shape == expected.shape and torch.equal(found, expected)
    record.check("selection", same, f"{len(found)} entries, expected {len(expected)}")
    off = int((b.lists.fired.long() - (z > 0).sum(0)).abs().sum())
    record.check("firing counts", off == 0, off)


@torch.no_grad()
def _gradients(step: FusedStep, start: Coder, decoder: Tensor, z: Tensor) -> tuple[float, dict[str, Tensor]]:
    """The loss and its gradients in float64, from the codes that were selected and the decoder as the kernels read it.

    L = mean over prefixes m, rows and dimensions of (b_dec − t + W_skip u + z[:, :m] W_dec[:m])².
    """
    u, t = (rows.double() for rows in step.rows)
    prefixes = start.prefixes or (start.n_latents,)
    base = start.b_dec.double() - t
    if start.w_skip is not None:
        base = base + u @ start.w_skip.to(step.dtype).double().T
    errors = torch.stack([base + z[:, :m] @ decoder[:m] for m in prefixes])
    suffix = errors.flip(0).cumsum(0).flip(0)
    scale = 2 / errors.numel()
    of_decoder, of_pre = torch.zeros_like(decoder), torch.zeros_like(z)
    for group, (low, high) in enumerate(zip((0, *prefixes), prefixes, strict=False)):
        of_decoder[low:high] = scale * z[:, low:high].T @ suffix[group]
        of_pre[:, low:high] = scale * suffix[group] @ decoder[low:high].T
    of_pre = torch.where(z > 0, of_pre, 0.0)
    if start.config.decoder_norm == "unit":  # the component along a row is removed
        rows = start.w_dec.detach().double()
        of_decoder = of_decoder - (of_decoder * rows).sum(1, keepdim=True) * rows
    wanted = {
        "w_enc": of_pre.T @ u,
        "b_enc": of_pre.sum(0),
        "w_dec": of_decoder,
        "b_dec": scale * suffix[0].sum(0),
    }
    if start.w_skip is not None:
        wanted["w_skip"] = scale * suffix[0].T @ u
    return float(errors.square().mean()), wanted


def _same_bits(record: Record, setting: Setting, case: Case, start: Coder, rows: tuple[Tensor, Tensor]) -> None:
    """Several steps end bit-identical on a second run, and with a graph as without."""
    ends = []
    for graphs in setting.of((False, False), (True, True, False)):
        coder = copy.deepcopy(start)
        step = _fused(case, coder, setting, graphs)
        for _ in range(setting.of(1, 7)):
            step.step_raw(*rows, 1e-3)
        synchronise(setting)
        ends.append({name: parameter.detach().clone() for name, parameter in coder.named_parameters()})
        if graphs:
            record.check("a graph was captured", step.buffers.graph is not None)
    for name, other in zip(("on a second run", "without a graph"), ends[1:], strict=False):
        different = [key for key, value in ends[0].items() if not torch.equal(value, other[key])]
        record.check(f"bit-identical {name}", not different, different or "all parameters")
