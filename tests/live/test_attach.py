"""A coder attached to a model, against hooks written here with the formulas of each mode in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparse_pipeline as sp
from sparse_pipeline.shared.coders import Coder, build_coder
from sparse_pipeline.shared.coders.topk import TopKConfig
from sparse_pipeline.shared.errors import UsageError
from tests.harvest.test_capture import IDS, random_model

D, F = 24, 40
EDITED, FACTORS = [3, 17, 30], [0.0, 2.5, -1.0]

# family, source, target; the module whose output a hand-written hook exchanges, and what is in the target besides it
PLACES: dict[str, tuple[str, str, str, str]] = {
    "gemma2 transcoder": ("gemma2", "layer_01.resid_mid", "layer_01.mlp_out", "1.post_feedforward_layernorm"),
    "llama sae": ("llama", "layer_01.mlp_out", "layer_01.mlp_out", "1.mlp"),
    "gpt2 sae in the stream": ("gpt2", "layer_01.resid_mid", "layer_01.resid_mid", "1.attn"),
}


def make_coder(source: str, target: str) -> Coder:
    """Random everything: decoder, biases, normalisation, and for a transcoder a skip connection."""
    generator = torch.Generator().manual_seed(4)
    tied = source == target
    coder = build_coder(TopKConfig(latents=F, k=6, skip=not tied), D, D, tied=tied, generator=generator)
    with torch.no_grad():
        coder.w_dec.copy_(torch.nn.functional.normalize(torch.randn(F, D, generator=generator)))
        for value in (coder.b_enc, coder.b_dec, coder.input_mean, coder.target_mean):
            value.copy_(0.3 * torch.randn(value.shape, generator=generator))
        coder.input_scale.fill_(1.7)
        coder.target_scale.fill_(0.6)
        if coder.w_skip is not None:
            coder.w_skip.copy_(0.2 * torch.randn(D, D, generator=generator))
    coder.source, coder.target = source, target
    return coder.eval()


class Hand:
    """The sites of a model, read and replaced by plain hooks."""

    def __init__(self, place: str) -> None:
        family, self.source, self.target, module = PLACES[place]
        self.model = random_model(family)
        layers: Any = self.model.transformer.h if family == "gpt2" else self.model.model.layers  # type: ignore[union-attr]
        self.module: nn.Module = layers.get_submodule(module)
        self.norm: nn.Module = {
            "gemma2": lambda: layers[1].pre_feedforward_layernorm,
            "llama": lambda: None,
            "gpt2": lambda: layers[1].ln_2,
        }[family]()
        self.in_stream = family == "gpt2"

    def read(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x, y, and what y holds besides the module's output."""
        held: dict[str, Tensor] = {}
        handles = [self.module.register_forward_hook(lambda _m, _a, out: held.__setitem__("out", _first(out).clone()))]
        if self.norm is not None:
            handles.append(
                self.norm.register_forward_pre_hook(lambda _m, args: held.__setitem__("norm", args[0].clone()))
            )
        with torch.no_grad():
            self.model(input_ids=ids)
        for handle in handles:
            handle.remove()
        if self.in_stream:
            return held["norm"], held["norm"], held["norm"] - held["out"]
        return held.get("norm", held["out"]), held["out"], torch.zeros_like(held["out"])

    def logits(self, ids: Tensor, new: Tensor, besides: Tensor) -> Tensor:
        """With the target replaced: the module's output becomes what is missing to `new`."""

        def hook(_m: nn.Module, _a: Any, out: Any) -> Any:
            changed = new - besides
            return (changed, *out[1:]) if isinstance(out, tuple) else changed

        handle = self.module.register_forward_hook(hook)
        with torch.no_grad():
            logits: Tensor = self.model(input_ids=ids).logits
        handle.remove()
        return logits


def _first(value: Any) -> Tensor:
    tensor: Tensor = value[0] if isinstance(value, tuple) else value
    return tensor


def expected(coder: Coder, mode: str, x: Tensor, y: Tensor) -> Tensor:
    """The formulas, from codes as the coder computes them and its folded weights."""
    shape, x, y = y.shape, x.reshape(-1, D), y.reshape(-1, D).double()
    folded = coder.fold()
    z = coder.encode(x).dense().double()
    skip = 0 if folded.w_skip is None else x.double() @ folded.w_skip.T
    edited = z.clone()
    edited[:, EDITED] *= torch.tensor(FACTORS, dtype=torch.float64)
    rest = folded.b_dec + skip
    out = {
        "whole": z @ folded.w_dec + rest,
        "replace": edited @ folded.w_dec + rest,
        "add error": y + (edited - z) @ folded.w_dec,
        "ablate": y - z[:, EDITED] @ folded.w_dec[EDITED],
        "steer": y + torch.tensor(FACTORS, dtype=torch.float64) @ folded.w_dec[EDITED],
    }[mode]
    return out.reshape(shape).float()


ARGUMENTS: dict[str, dict[str, Any]] = {
    "whole": {},
    "replace": {"mode": "replace", "latents": EDITED, "strength": FACTORS},
    "add error": {"mode": "add error", "latents": EDITED, "strength": FACTORS},
    "ablate": {"mode": "ablate", "latents": EDITED},
    "steer": {"mode": "steer", "latents": EDITED, "strength": FACTORS},
}


@pytest.mark.parametrize("place", PLACES)
def test_every_mode_is_its_formula(place: str) -> None:
    hand = Hand(place)
    coder = make_coder(hand.source, hand.target)
    with torch.no_grad():
        clean = hand.model(input_ids=IDS).logits
        x, y, besides = hand.read(IDS)
        for mode, arguments in ARGUMENTS.items():
            new = expected(coder, mode, x, y)
            for all_positions in (False, True):
                wanted = new.clone()
                if not all_positions:
                    wanted[:, 0] = y[:, 0]
                with sp.attach(hand.model, coder, **arguments, include_position_0=all_positions) as attached:
                    found = hand.model(input_ids=IDS).logits
                torch.testing.assert_close(found, hand.logits(IDS, wanted, besides), rtol=1e-4, atol=1e-4)
                assert (found - clean).abs().max() > 1e-2, mode
                codes = coder.encode(x.reshape(-1, D)).dense().reshape(*IDS.shape, F)
                torch.testing.assert_close(attached.codes, codes)
            assert torch.equal(hand.model(input_ids=IDS).logits, clean), "the hooks are gone"


def test_the_error_added_back_leaves_the_model_as_it_is() -> None:
    hand = Hand("gemma2 transcoder")
    coder = make_coder(hand.source, hand.target)
    with torch.no_grad():
        clean = hand.model(input_ids=IDS).logits
        with sp.attach(hand.model, coder, mode="add error"):
            found = hand.model(input_ids=IDS).logits
    torch.testing.assert_close(found, clean, rtol=1e-4, atol=1e-4)


def test_one_coder_inside_another() -> None:
    hand = Hand("llama sae")
    first, second = make_coder(hand.source, hand.target), make_coder("layer_02.mlp_out", "layer_02.mlp_out")
    read: dict[str, Tensor] = {}
    layers: Any = hand.model.model.layers  # type: ignore[union-attr]
    handle = layers[2].mlp.register_forward_hook(lambda _m, _a, out: read.__setitem__("y", out.clone()))
    with torch.no_grad(), sp.attach(hand.model, first):
        hand.model(input_ids=IDS)
        inner = read["y"]
        with sp.attach(hand.model, second, mode="ablate", latents=5) as attached:
            hand.model(input_ids=IDS)
    handle.remove()
    torch.testing.assert_close(attached.codes.reshape(-1, F), second.encode(inner.reshape(-1, D)).dense())


def test_a_model_without_its_head_and_one_in_bfloat16() -> None:
    hand = Hand("llama sae")
    coder = make_coder(hand.source, hand.target)
    body: Any = hand.model.model
    with torch.no_grad(), sp.attach(body, coder):
        alone = body(input_ids=IDS).last_hidden_state
    with torch.no_grad(), sp.attach(hand.model, coder):
        whole = hand.model(input_ids=IDS, output_hidden_states=True).hidden_states[-1]  # type: ignore[operator]
    assert torch.equal(alone, whole)
    half = hand.model.to(torch.bfloat16)
    with torch.no_grad(), sp.attach(half, coder) as attached:
        assert half(input_ids=IDS).logits.dtype == torch.bfloat16
    assert attached.codes.dtype == torch.float32


def test_position_0_is_that_of_the_text_in_generation_and_padding() -> None:
    """Greedy generation with a KV cache is that without one; padding on the left changes nothing."""
    hand = Hand("llama sae")
    coder, model = make_coder(hand.source, hand.target), hand.model
    generate: Callable[..., Tensor] = model.generate  # type: ignore[assignment]
    settings: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    ids = IDS[:2, :7]
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.int64), ids], 1)
    mask = torch.cat([torch.zeros(2, 3, dtype=torch.int64), torch.ones_like(ids)], 1)
    with torch.no_grad(), sp.attach(model, coder, mode="steer", latents=[3, 9], strength=8.0):
        with_cache = generate(ids, attention_mask=torch.ones_like(ids), **settings)
        without = generate(ids, attention_mask=torch.ones_like(ids), use_cache=False, **settings)
        left = generate(padded, attention_mask=mask, **settings)
        # a loop of the caller's own: no positions, only the cache
        out = model(input_ids=ids, use_cache=True)
        loop = [out.logits[:, -1].argmax(-1)]
        for _ in range(5):
            out = model(input_ids=loop[-1][:, None], cache=out.cache, use_cache=True)
            loop.append(out.logits[:, -1].argmax(-1))
    assert torch.equal(with_cache, without)
    assert torch.equal(torch.stack(loop, 1), with_cache[:, 7:])
    assert torch.equal(left[:, 10:], with_cache[:, 7:])
    plain = generate(ids, attention_mask=torch.ones_like(ids), **settings)
    assert not torch.equal(plain, with_cache)


def test_an_exception_leaves_no_hook() -> None:
    hand = Hand("gpt2 sae in the stream")
    coder = make_coder(hand.source, hand.target)
    with torch.no_grad():
        clean = hand.model(input_ids=IDS).logits
        with pytest.raises(KeyError), sp.attach(hand.model, coder):
            raise KeyError
        wrong = make_coder(hand.source, hand.target)
        wrong.d_in = 7
        with (
            pytest.raises(UsageError, match="width 24 in this model, the coder expects 7"),
            sp.attach(hand.model, wrong),
        ):
            hand.model(input_ids=IDS)
        assert torch.equal(hand.model(input_ids=IDS).logits, clean)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "abblate", "latents": 1}, "mode: found 'abblate'; did you mean 'ablate'"),
        ({"mode": "ablate"}, "mode ablate requires latents"),
        ({"mode": "ablate", "latents": [1], "strength": 2}, "takes no strength"),
        ({"mode": "steer", "latents": [1]}, "latents without strength"),
        ({"mode": "replace", "strength": 1.0}, "strength without latents"),
        ({"mode": "ablate", "latents": [40]}, r"latents: found \[40\], expected some of 0 … 39"),
        ({"mode": "ablate", "latents": []}, "latents: found none"),
        ({"mode": "ablate", "latents": [2, 2]}, "one of them twice"),
        ({"mode": "steer", "latents": [2, 3], "strength": [1.0]}, "1 numbers for 2 latents"),
        ({"source": "layer_09.mlp_out"}, "the model has 3 layers"),
        ({"source": "layer_01.mlp_owt"}, "have no 'mlp_owt'"),
    ],
)
def test_arguments_that_do_not_fit(arguments: dict[str, Any], message: str) -> None:
    hand = Hand("llama sae")
    coder = make_coder(hand.source, hand.target)
    with pytest.raises(UsageError, match=message), sp.attach(hand.model, coder, **arguments):
        pass


def test_sites_that_are_not_known_or_in_the_wrong_order() -> None:
    hand = Hand("gemma2 transcoder")
    coder = make_coder(hand.source, hand.target)
    early = sp.attach(hand.model, coder, "layer_01.resid_mid", "layer_00.mlp_out")
    with pytest.raises(UsageError, match="computes layer_00.mlp_out, the target, before layer_01.resid_mid"), early:
        hand.model(input_ids=IDS)
    coder.source = coder.target = None
    with pytest.raises(UsageError, match="source site is not known"), sp.attach(hand.model, coder):
        pass
    half = sp.attach(hand.model, coder, "layer_01.resid_mid")
    with pytest.raises(UsageError, match="target site is not known"), half:
        pass
