"""TransformerLens's names as aliases, against TransformerLens's own list of hooks."""

from __future__ import annotations

import warnings

import pytest

from sparse_pipeline.harvest.config import HarvestConfig, cache_path
from sparse_pipeline.models.site_names import KINDS, format_site
from sparse_pipeline.shared.errors import UsageError
from sparse_pipeline.shared.hook_names import KIND_OF, from_hook_name
from sparse_pipeline.train.config import TrainConfig


def test_every_kind_has_its_hook_and_every_hook_exists() -> None:
    assert sorted(KIND_OF.values()) == sorted(set(KINDS) - {"attn_in", "mlp_in"}), (
        "what a norm returns has no name there"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformer_lens = pytest.importorskip("transformer_lens", reason="the dev extra installs transformer-lens")
        config = transformer_lens.HookedTransformerConfig(
            n_layers=2, d_model=8, n_ctx=4, d_head=4, n_heads=2, d_vocab=5, act_fn="relu", normalization_type="LN"
        )
        hooks = set(transformer_lens.HookedTransformer(config).hook_dict)
    for name, kind in KIND_OF.items():
        assert f"blocks.1.{name}" in hooks
        assert from_hook_name(f"blocks.1.{name}") == format_site(1, kind)


def test_an_alias_is_the_same_cache_and_the_same_run() -> None:
    hooks = HarvestConfig(sites=("blocks.2.hook_resid_mid",), storage_of={"blocks.2.hook_resid_mid": "int8"})
    named = HarvestConfig(sites=("layer_02.resid_mid",), storage_of={"layer_02.resid_mid": "int8"})
    assert hooks == named
    assert cache_path(hooks) == cache_path(named)
    assert TrainConfig(source="blocks.2.hook_resid_mid", target="blocks.2.hook_mlp_out") == TrainConfig()


def test_other_names_pass_unchanged() -> None:
    for name in ("layer_02.resid_mid", "model.layers.3.mlp:in", "nonsense"):
        assert from_hook_name(name) == name


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("blocks.8.hook_mlp_in", "the stream before the norm", "layer_08.resid_mid for the first, layer_08.mlp_in for"),
        (
            "blocks.8.hook_attn_in",
            "the stream before the norm",
            "layer_08.resid_pre for the first, layer_08.attn_in for",
        ),
        ("hook_mlp_out", "without its layer", "blocks.8.hook_mlp_out, or layer_08.mlp_out"),
        ("blocks.8.mlp.hook_post", "not a site here", "model.layers.8.mlp.down_proj:in"),
    ],
)
def test_names_that_mean_something_else_are_told_apart(name: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        from_hook_name(name)
    assert str(caught.value.hint).startswith(hint) or hint in str(caught.value.hint)
