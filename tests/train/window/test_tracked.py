"""The two forms of a batch's sums over pairs, against the plain matrix algebra and one another."""

from __future__ import annotations

import pytest
import torch

from sparse_pipeline.shared.coders import Codes
from sparse_pipeline.train.window import tracked
from sparse_pipeline.train.window.tracked import PairIds, columns, firings
from tests.second_device import DEVICE, second_device
from tests.train.penalties.conftest import Case, make_case

PAIRS = PairIds(torch.tensor([0, 2, 5, 8]), torch.tensor([0, 0, 1, 2]), torch.tensor([1, 3, 2, 3]))


@pytest.mark.parametrize("dense", [False, True])
def test_both_forms_have_the_sums_and_the_gradient(dense: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case()
    codes, rest = case.codes(dense), case.position > 0
    z = codes.dense()[rest][:, PAIRS.ids]
    monkeypatch.setattr(tracked, "PIECE_NUMBERS", 3 * len(rest))  # two pieces of pairs
    sparse, matrix = firings(codes, rest, PAIRS), columns(codes, rest, PAIRS)
    for here in (sparse, matrix):
        torch.testing.assert_close(here.sums.total, z.sum(0))
        torch.testing.assert_close(here.sums.square, z.square().sum(0))
        torch.testing.assert_close(here.sums.cross, (z[:, PAIRS.left] * z[:, PAIRS.right]).sum(0))
        assert int(here.sums.rows) == int(rest.sum())
    r, pull = sparse.sums.r(PAIRS), torch.tensor([0.3, -0.7, 1.1, 0.2], dtype=z.dtype)
    moved = (torch.tensor([1.0, 0, 1, 1], dtype=z.dtype), torch.tensor([1.0, 1, 0, 1], dtype=z.dtype))
    gradients = [here.gradient(here.sums, PAIRS, r, pull, moved, like=codes.values) for here in (sparse, matrix)]
    assert int((gradients[0] != 0).sum()) > 20
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-12, atol=1e-14)


def test_the_matrix_makes_no_host_wait() -> None:
    case: Case = make_case()
    with second_device() as second:
        codes = Codes(case.values.to(DEVICE), case.latents.to(DEVICE), 9)
        pairs = PairIds(*(part.to(DEVICE) for part in (PAIRS.ids, PAIRS.left, PAIRS.right)))
        rest = (case.position > 0).to(DEVICE)
        here = columns(codes, rest, pairs)
        ones = torch.ones_like(here.sums.cross)
        here.gradient(here.sums, pairs, here.sums.r(pairs), ones, (ones, ones), like=codes.values)
    assert not second.reads
