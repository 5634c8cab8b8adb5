"""Cross-layer coders, against the literal formulas in float64 and against the coders of one layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparse_pipeline.shared.coders import Coder, CoderConfig, build_coder, load_coder, save_coder
from sparse_pipeline.shared.coders.codes import Codes
from sparse_pipeline.shared.coders.configs.batchtopk import BatchTopKConfig
from sparse_pipeline.shared.coders.configs.cross_layer import CrossLayerConfig
from sparse_pipeline.shared.coders.configs.relu import ReLUConfig
from sparse_pipeline.shared.coders.configs.topk import TopKConfig
from sparse_pipeline.shared.coders.cross_layer import CrossLayer
from sparse_pipeline.shared.coders.layer_start import choose, refuse_layers, start_layers
from sparse_pipeline.shared.coders.normalisation import SiteMoments
from sparse_pipeline.shared.errors import UsageError

L, PER, D_IN, D_OUT, K = 3, 6, 4, 5, 2


def clt(tied: bool = False, seed: int = 0, random: bool = True, **changes: Any) -> CrossLayer:
    generator = torch.Generator().manual_seed(seed)
    config = CrossLayerConfig(**{"latents": L * PER, "k": K, "decoder_norm": "free", **changes})
    out = D_IN if tied else D_OUT
    coder = build_coder(config, (D_IN,) * L, (out,) * L, tied=tied, generator=generator).double()
    assert isinstance(coder, CrossLayer)
    if random:
        with torch.no_grad():
            for parameter in coder.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return coder.train()


def rows(width: int, seed: int = 1) -> Tensor:
    return torch.randn(8, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def literal(coder: CrossLayer, u: Tensor, p: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
    """(t̂ [B, L·d_out], z^l [B, F/L] of each layer) by dense products of each pair of layers."""
    codes, out = [], []
    for layer in range(L):
        own = slice(layer * PER, (layer + 1) * PER)
        pre = u[:, layer * D_IN : (layer + 1) * D_IN] @ p["w_enc"][own].T + p["b_enc"][own]
        kept = torch.zeros_like(pre)
        if coder.config.selection == "topk":
            kept.scatter_(1, pre.topk(K, dim=1).indices, 1.0)
        else:
            kept = (pre.relu() >= pre.relu().flatten().topk(K * len(u)).values[-1]).double()
        codes.append(pre.relu() * kept)
    width = coder.target_widths[0]
    for layer in range(L):
        target = p["b_dec"][layer * width : (layer + 1) * width].expand(len(u), width)
        for earlier in range(layer + 1):
            target = target + codes[earlier] @ p[f"decoders.{layer}"][earlier * PER : (earlier + 1) * PER]
        if "w_skip" in p:
            target = target + u[:, layer * D_IN : (layer + 1) * D_IN] @ p["w_skip"][layer].T
        out.append(target)
    return torch.cat(out, dim=1), codes


@pytest.mark.parametrize("changes", [{"selection": "topk"}, {"selection": "topk", "skip": True}, {}])
@pytest.mark.parametrize("tied", [False, True])
def test_loss_and_gradients_are_those_of_the_literal_formula(tied: bool, changes: dict[str, Any]) -> None:
    if tied and changes.get("skip"):
        return
    coder = clt(tied, **changes)
    u = rows(L * D_IN)
    t = u if tied else rows(L * D_OUT, 2)
    codes = coder.encode_normalised(u)
    loss = coder.losses(u, t, codes)["reconstruction"]
    loss.backward()  # type: ignore[no-untyped-call]
    p = {name: value.detach().clone().requires_grad_() for name, value in coder.named_parameters()}
    t_hat, z = literal(coder, u, p)
    expected = ((t - t_hat) ** 2).mean()
    expected.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(codes.dense(), torch.cat(z, dim=1))
    torch.testing.assert_close(coder.decode_normalised(codes, u), t_hat)
    torch.testing.assert_close(loss, expected)
    for name, parameter in coder.named_parameters():
        torch.testing.assert_close(parameter.grad, p[name].grad, msg=lambda text, name=name: f"{name}: {text}")
    bare = Codes(codes.values, codes.latents, codes.n_latents)
    torch.testing.assert_close(coder.decode_normalised(bare, u), t_hat)
    torch.testing.assert_close(coder.decode_normalised(Codes(codes.dense(), None, codes.n_latents), u), t_hat)


def test_nothing_flows_from_a_later_layer_to_an_earlier_one() -> None:
    coder = clt(skip=True)
    u = rows(L * D_IN).requires_grad_()
    codes = coder.encode_normalised(u)
    t_hat = coder.decode_normalised(codes, u)
    for layer in range(L):
        coder.zero_grad()
        (to_u,) = torch.autograd.grad(t_hat[:, layer * D_OUT : (layer + 1) * D_OUT].sum(), u, retain_graph=True)
        by_site = to_u.view(8, L, D_IN).abs().sum((0, 2))
        assert (by_site[: layer + 1] > 0).all()
        assert (by_site[layer + 1 :] == 0).all()
        t_hat[:, layer * D_OUT : (layer + 1) * D_OUT].square().sum().backward(retain_graph=True)
        assert coder.w_enc.grad is not None
        by_reader = coder.w_enc.grad.view(L, PER * D_IN).abs().sum(1)
        assert (by_reader[: layer + 1] > 0).all()
        assert (by_reader[layer + 1 :] == 0).all()
    assert [len(block) for block in coder.decoders] == [PER, 2 * PER, 3 * PER]  # no row that must stay zero


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_one_layer_is_the_coder_of_that_layer(tied: bool, batch: bool) -> None:
    plain: CoderConfig = BatchTopKConfig(latents=12, k=2) if batch else TopKConfig(latents=12, k=2)
    config = CrossLayerConfig(latents=12, k=2, selection="batchtopk" if batch else "topk")
    d_out = D_IN if tied else D_OUT
    u, t = rows(D_IN).float(), rows(d_out, 2).float()
    t = u if tied else t
    found = []
    for one in (plain, config):
        coder = build_coder(one, D_IN, d_out, tied=tied, generator=torch.Generator().manual_seed(0)).train()
        coder.dead_after = 20  # some latents die on the way: AuxK too
        optimizer = torch.optim.Adam(coder.parameters(), lr=0.01)
        losses = []
        for _ in range(8):
            codes = coder.encode_normalised(u)
            terms = coder.losses(u, t, codes)
            sum(terms.values()).backward()  # type: ignore[union-attr]
            coder.project_gradients()
            optimizer.step()
            optimizer.zero_grad()
            coder.project_parameters()
            coder.after_step(codes)
            losses.append({name: float(value.detach()) for name, value in terms.items()})
        found.append((losses, coder))
    assert "aux" in found[0][0][-1]
    for ours, theirs in zip(found[1][0], found[0][0], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    torch.testing.assert_close(found[1][1].w_dec, found[0][1].w_dec)
    torch.testing.assert_close(found[1][1].w_enc, found[0][1].w_enc)
    assert found[1][1].kind == found[0][1].kind
    if batch:
        torch.testing.assert_close(found[1][1].threshold, found[0][1].threshold.view(1))
    for _, coder in found:
        coder.eval()
    torch.testing.assert_close(found[1][1].encode(u).dense(), found[0][1].encode(u).dense())


def test_rows_have_length_one_over_all_layers_that_they_write() -> None:
    coder = clt(decoder_norm="unit")
    coder.losses(rows(L * D_IN), rows(L * D_OUT, 2), coder.encode_normalised(rows(L * D_IN)))[
        "reconstruction"
    ].backward()  # type: ignore[no-untyped-call]
    coder.project_parameters()
    torch.testing.assert_close(coder.w_dec.norm(dim=1), torch.ones(L * PER, dtype=torch.float64))
    coder.project_gradients()
    grads = torch.cat(
        [torch.nn.functional.pad(b.grad, (0, 0, 0, L * PER - len(b))) for b in coder.decoders if b.grad is not None], 1
    )
    assert torch.allclose((grads * coder.w_dec).sum(1), torch.zeros(L * PER, dtype=torch.float64), atol=1e-12)


def test_folded_saved_and_loaded(tmp_path: Path) -> None:
    coder = clt(skip=True, normalise="whiten").float()
    x = torch.randn(300, L * D_IN, generator=torch.Generator().manual_seed(4)) * 3 + 1
    y = torch.randn(300, L * D_OUT, generator=torch.Generator().manual_seed(5)) * 2 - 1
    coder.set_normalisation(
        *(SiteMoments(v.double().mean(0), v.double().var(0), torch.cov(v.double().T)) for v in (x, y))
    )
    coder.after_step(coder.encode(x))
    save_coder(coder.eval(), tmp_path / "coder", {"source": "a+b+c", "target": "d+e+f"})
    again = load_coder(tmp_path / "coder")
    assert again.kind == "cross-layer transcoder"
    codes = coder.encode(x)
    assert torch.equal(again.encode(x).dense(), codes.dense())
    assert torch.equal(again.decode(again.encode(x), x), coder.decode(codes, x))
    folded = coder.fold()
    assert folded.w_skip is not None
    y_hat = codes.dense().double() @ folded.w_dec + folded.b_dec + x.double() @ folded.w_skip.T
    torch.testing.assert_close(y_hat.float(), coder.decode(codes, x), rtol=1e-4, atol=1e-3)


def layer_coder(layer: int, latents: int = PER, k: int = K) -> Coder:
    generator = torch.Generator().manual_seed(10 + layer)
    coder = build_coder(TopKConfig(latents=latents, k=k), D_IN, D_IN, tied=False, generator=generator)
    with torch.no_grad():
        coder.w_dec.copy_(torch.randn(latents, D_IN, generator=generator))
        coder.project_parameters()
        coder.b_dec.normal_(generator=generator)
        coder.input_mean.normal_(generator=generator)
        coder.target_scale.fill_(2.0)
    return coder.eval()


def fresh(latents: int = PER) -> CrossLayer:
    config = CrossLayerConfig(latents=L * latents, k=K, selection="topk")
    coder = build_coder(config, (D_IN,) * L, (D_IN,) * L, tied=False)
    assert isinstance(coder, CrossLayer)
    with torch.no_grad():
        coder.input_mean.normal_(generator=torch.Generator().manual_seed(0))
        coder.target_scale.fill_(1.5)
    return coder.eval()


def test_started_from_its_layers_it_reconstructs_as_they_do() -> None:
    sources, coder, x = [layer_coder(layer) for layer in range(L)], fresh(), rows(L * D_IN).float()
    refuse_layers(coder, sources, ["a", "b", "c"])
    chosen = start_layers(coder, sources)
    assert [ids.tolist() for ids in chosen] == [list(range(PER))] * L
    parts = [one.decode(one.encode(part)) for one, part in zip(sources, x.split(D_IN, dim=1), strict=True)]
    torch.testing.assert_close(coder.decode(coder.encode(x)), torch.cat(parts, dim=1), rtol=1e-4, atol=1e-5)
    other = fresh()
    other.target_scale.fill_(0.7)
    refuse_layers(other, [coder], ["all"])
    start_layers(other, [coder])
    torch.testing.assert_close(other.decode(other.encode(x)), coder.decode(coder.encode(x)), rtol=1e-4, atol=1e-5)


def test_latents_that_read_what_an_earlier_one_writes_are_marked_off() -> None:
    generator = torch.Generator().manual_seed(0)
    axes = torch.eye(16)
    first_enc, first_dec = axes[:4], axes[4:8]
    second_enc = torch.stack([axes[9], axes[4] + 0.1 * axes[9], axes[10], axes[6], axes[11], axes[12]])
    second_dec = torch.randn(6, 16, generator=generator)
    chosen = choose([first_enc, second_enc], [first_dec, second_dec], 4)
    assert chosen[0].tolist() == [0, 1, 2, 3]
    assert chosen[1].tolist() == [0, 2, 4, 5]  # 1 and 3 read what 0 and 2 write
    third = choose([first_enc, second_enc, second_dec], [first_dec, second_dec, second_dec], 4)[2]
    assert set(third.tolist()) >= {1, 3}  # they read what latents 1 and 3 of the second layer would have written
    assert choose([first_enc, second_enc], [first_dec, axes[:6, :8]], 3)[1].tolist() != []


def test_starts_that_do_not_fit_are_refused() -> None:
    coder = fresh()
    with pytest.raises(UsageError, match="found 2 runs for 3 sites"):
        refuse_layers(coder, [layer_coder(0)] * 2, ["a", "b"])
    relu = build_coder(ReLUConfig(latents=PER), D_IN, D_IN, tied=False)
    with pytest.raises(UsageError, match="b is a relu coder"):
        refuse_layers(coder, [layer_coder(0), relu, layer_coder(2)], ["a", "b", "c"])
    with pytest.raises(
        UsageError, match=r"all has \(sites, latents, skip\) \(3, 24, False\), expected \(3, 18, False\)"
    ):
        refuse_layers(coder, [fresh(8)], ["all"])
    with pytest.raises(UsageError, match="all of one width on each side"):
        build_coder(CrossLayerConfig(latents=4, k=1), (3, 4), (3, 4), tied=True)
    assert CrossLayerConfig(latents=10, k=1).problem(3) is not None
    assert CrossLayerConfig(latents=12, k=6).problem(3) is not None
