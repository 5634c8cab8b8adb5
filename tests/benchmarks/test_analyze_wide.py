"""The benchmark of wide dictionaries at toy size: checked against SciPy by itself, it finds the copies it planted."""

from __future__ import annotations

from benchmarks.analyze_wide import line, measure


def test_a_small_dictionary_is_exact() -> None:
    found = measure(rows=4000, n_latents=512, k=8)
    assert found["pairs_above"] >= found["checked_pairs"] > 4
    assert found["largest_error"] < 1e-6  # of a neighbour's r, which is kept in float32
    assert 0 < found["disk_bytes"] - 16 * found["active_codes"] < 20_000  # and the few codes that load the kernels
    assert "F     512" in line(found)
