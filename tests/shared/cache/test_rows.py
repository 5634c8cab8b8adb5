"""Which rows count, against a loop over the flags."""

from __future__ import annotations

import numpy as np
import pytest

from sparse_pipeline.shared.cache import Flag
from sparse_pipeline.shared.cache.rows import first_rows, rest_rows, text_rows
from tests.synthetic import BOS_ID, PAD_ID, token_table


@pytest.mark.parametrize("packing", ["concat", "apart", "document"])
def test_every_row_is_padding_or_first_or_rest(packing: str) -> None:
    table = token_table(30, 16, packing=packing)
    flags = table.flags
    padding = np.array([bool(flag & Flag.PADDING) for flag in flags.flat]).reshape(flags.shape)
    first = ~padding & ((table.tokens == BOS_ID) | (np.arange(16) == 0))
    np.testing.assert_array_equal(text_rows(flags), ~padding)
    np.testing.assert_array_equal(first_rows(flags, 16), first)
    np.testing.assert_array_equal(rest_rows(flags, 16), ~padding & ~first)
    np.testing.assert_array_equal(rest_rows(flags.reshape(-1), 16), rest_rows(flags, 16).reshape(-1))
    assert (table.tokens[padding] == PAD_ID).all()
