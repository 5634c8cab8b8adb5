"""BatchTopK: the selection is exact, the loss is the formula, θ is the stated average, inference is JumpReLU with θ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sparse_pipeline.shared.coders import load_coder, save_coder
from sparse_pipeline.shared.coders.batchtopk import BatchTopK, BatchTopKConfig, select_batch
from sparse_pipeline.shared.coders.codes import Codes
from sparse_pipeline.shared.config.settings import validate
from sparse_pipeline.shared.errors import ConfigError
from tests.shared.coders.test_coders import make, rows


def literal(pre: np.ndarray, k: int) -> np.ndarray:
    """The k·B largest of relu(pre), written out."""
    z = np.maximum(pre, 0)
    out = np.zeros_like(z)
    for flat in np.argsort(-z, axis=None, kind="stable")[: k * len(pre)]:
        out.flat[flat] = z.flat[flat]
    return out


def coder_and_rows(skip: bool = False, tied: bool = False) -> tuple[BatchTopK, Tensor, Tensor]:
    coder = make(BatchTopKConfig(latents=13, k=3, skip=skip, threshold_warmup=1), tied)
    assert isinstance(coder, BatchTopK)
    u, t = rows(coder)
    u[0] *= 4  # this row takes more than its share
    return coder, u, t


@pytest.mark.parametrize("greedy", [1.0, 100.0])
def test_the_selection_is_exact_also_where_a_row_wants_more_than_its_candidates(greedy: float) -> None:
    g = torch.Generator().manual_seed(0)
    for k in (1, 2, 3):
        pre = torch.randn(7, 40, generator=g, dtype=torch.float64)
        pre[2] = pre[2].abs() * greedy
        latents, kept = select_batch(pre, k)
        z = torch.zeros_like(pre).scatter_add_(1, latents, pre.gather(1, latents) * kept)
        np.testing.assert_array_equal(z, literal(pre.numpy(), k))
        assert int(kept.sum()) == 7 * k
    if greedy > 1:
        assert int(kept[2].sum()) == 21 > 4 * k  # the candidates alone would have been wrong


def test_ties_keep_exactly_as_many_and_nothing_negative_is_kept() -> None:
    _, kept = select_batch(torch.ones(5, 20), 2)
    assert int(kept.sum()) == 10
    _, kept = select_batch(-torch.ones(5, 20), 2)
    assert not kept.any()


@pytest.mark.parametrize(("tied", "skip"), [(True, False), (False, False), (False, True)])
def test_codes_and_loss_equal_the_formula(tied: bool, skip: bool) -> None:
    coder, u, t = coder_and_rows(skip, tied)
    codes = coder.encode_normalised(u)
    pre = u.numpy() @ coder.w_enc.detach().numpy().T + coder.b_enc.detach().numpy()
    z = literal(pre, 3)
    np.testing.assert_allclose(codes.dense().detach(), z, rtol=1e-12, atol=1e-12)
    assert len(set(codes.l0().tolist())) > 1
    y = z @ coder.w_dec.detach().numpy() + coder.b_dec.detach().numpy()
    if coder.w_skip is not None:
        y = y + u.numpy() @ coder.w_skip.detach().numpy().T
    terms = coder.losses(u, t, codes)
    assert list(terms) == ["reconstruction"]
    assert terms["reconstruction"].item() == pytest.approx(((t.numpy() - y) ** 2).mean(), rel=1e-12)


def test_gradients_by_dense_autograd() -> None:
    coder, u, t = coder_and_rows()
    coder.losses(u, t, coder.encode_normalised(u))["reconstruction"].backward()
    w_enc, b_enc, w_dec = (p.detach().clone().requires_grad_() for p in (coder.w_enc, coder.b_enc, coder.w_dec))
    pre = u @ w_enc.T + b_enc
    z = pre * torch.from_numpy(literal(pre.detach().numpy(), 3) > 0)
    (t - z @ w_dec - coder.b_dec.detach()).square().mean().backward()
    for mine, other in ((coder.w_enc, w_enc), (coder.b_enc, b_enc), (coder.w_dec, w_dec)):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-12, atol=1e-14)


def test_the_threshold_is_the_average_from_its_first_value_on() -> None:
    coder = make(BatchTopKConfig(latents=13, k=3, threshold_ema=0.9, threshold_warmup=2))
    assert isinstance(coder, BatchTopK)
    expected, seen = [], []
    for n, smallest in enumerate((0.5, 0.3, 0.4, 0.8)):
        values = torch.tensor([[0.0, smallest], [2.0, 0.0]], dtype=torch.float64)
        coder.after_step(Codes(values, torch.tensor([[1, 2], [3, 4]]), 13))
        expected.append(smallest if n < 2 else 0.9 * expected[-1] + 0.1 * smallest)
        seen.append(coder.threshold.item())
    assert seen == pytest.approx(expected, rel=1e-12)
    coder.after_step(Codes(torch.zeros(2, 2, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.int64), 13))
    assert coder.threshold.item() == seen[-1]  # nothing fired: nothing learnt


def test_inference_is_jumprelu_and_does_not_depend_on_the_batch(tmp_path: Path) -> None:
    coder, u, _ = coder_and_rows()
    coder.eval()
    before = coder.encode_normalised(u)
    assert int(before.l0().sum()) == 27  # without a threshold: the batch's own selection
    coder.after_step(before)
    theta = coder.threshold.item()
    assert theta == before.values[before.values > 0].min().item()
    pre = u.numpy() @ coder.w_enc.detach().numpy().T + coder.b_enc.detach().numpy()
    whole = coder.encode_normalised(u).dense().detach()
    np.testing.assert_allclose(whole, np.where(pre > theta, pre, 0), rtol=1e-12)
    single = torch.cat([coder.encode_normalised(u[i : i + 1]).dense() for i in range(len(u))]).detach()
    torch.testing.assert_close(single, whole)
    nothing = coder.encode_normalised(torch.zeros(3, coder.d_in, dtype=torch.float64) - 0 * u[:3])
    assert nothing.values.shape[0] == 3
    save_coder(coder.float(), tmp_path)
    again = load_coder(tmp_path)
    torch.testing.assert_close(again.encode_normalised(u.float()).dense(), whole.float(), rtol=1e-4, atol=1e-5)
    assert torch.equal(again.threshold, coder.threshold)  # type: ignore[arg-type]


def test_selecting_in_bfloat16_keeps_exact_values() -> None:
    coder = make(BatchTopKConfig(latents=13, k=3), dtype=torch.float32)
    coder.selection_dtype = torch.bfloat16
    u, _ = rows(coder)
    codes = coder.encode_normalised(u)
    pre = u.double() @ coder.w_enc.double().T + coder.b_enc.double()
    dense = codes.dense().double()
    assert int(codes.l0().sum()) == 27
    torch.testing.assert_close(dense[dense > 0], pre[dense > 0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"threshold_ema": 1.0}, "threshold_ema must be in"), ({"threshold_warmup": 0}, "threshold_warmup must be at")],
)
def test_impossible_settings_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        validate(BatchTopKConfig, settings, "coder")
