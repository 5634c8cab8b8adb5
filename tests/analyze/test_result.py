"""Numbers in tables and in JSON."""

from __future__ import annotations

import numpy as np
import pytest

from sparse_pipeline.analyze.result import number, plain, show


def test_numbers_as_a_reader_sees_them() -> None:
    assert [show(v) for v in (None, 0.1234, 1234567, 1e-5, 12.0)] == ["–", "0.123", "1,234,567", "1.0e-05", "12"]
    assert (show(0.1234, "percent"), show(float("nan"), "percent"), show([1, 2], "latents")) == ("12.3%", "–", "1, 2")
    assert plain({"a": np.array([1.0, np.nan]), 3: [np.int64(2), (True, "x")]}) == {
        "a": [1.0, None],
        "3": [2, [True, "x"]],
    }
    assert (number(np.float32(np.inf)), number(np.bool_(True))) == (None, 1)
    with pytest.raises(TypeError, match="plain"):
        plain(object())
