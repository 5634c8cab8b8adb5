from __future__ import annotations

import pytest

from sparse_pipeline.models.site_names import format_site, parse_module_site, parse_site
from sparse_pipeline.shared.errors import UsageError


def test_a_layer_has_two_digits_at_least() -> None:
    assert format_site(8, "resid_mid") == "layer_08.resid_mid"
    assert format_site(112, "mlp_out") == "layer_112.mlp_out"
    assert sorted([format_site(10, "mlp_out"), format_site(9, "mlp_out")]) == ["layer_09.mlp_out", "layer_10.mlp_out"]


@pytest.mark.parametrize("layer", [0, 7, 25, 130])
def test_parse_is_the_inverse_of_format(layer: int) -> None:
    assert parse_site(format_site(layer, "resid_post")) == (layer, "resid_post")


def test_a_module_path_has_neither_layer_nor_kind() -> None:
    assert parse_site("encoder.layer.3.output:out") == (None, None)
    assert parse_module_site("encoder.layer.3.output:in") == ("encoder.layer.3.output", "in")


@pytest.mark.parametrize(
    "text", ["", "layer_08", "resid_mid", "layer_x.resid_mid", "encoder.layer.3.output", "a:b", "a b:out"]
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no site is called"):
        parse_site(text)


def test_a_negative_layer_is_refused() -> None:
    with pytest.raises(UsageError, match="-1"):
        format_site(-1, "resid_mid")
