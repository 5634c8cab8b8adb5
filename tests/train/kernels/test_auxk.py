from __future__ import annotations

import pytest
import torch

from sparse_pipeline.shared.coders import build_coder
from sparse_pipeline.shared.coders.topk import TopKConfig
from sparse_pipeline.train.kernels.auxk import AuxGradients, aux_gradients


@pytest.mark.parametrize("k_aux", [3, 100])  # fewer than the dead latents, and more
def test_the_gradients_of_the_coders_own_aux_loss(k_aux: int) -> None:
    generator = torch.Generator().manual_seed(1)
    coder = build_coder(TopKConfig(latents=20, k=2, aux_k=k_aux), 7, 9, tied=False, generator=generator).double()
    with torch.no_grad():
        coder.w_dec.normal_(generator=generator)
    coder.dead_after = 10
    coder.since_fired[[2, 3, 5, 11, 12, 17, 19]] = 50
    u, error = torch.randn(13, 7).double(), torch.randn(13, 9).double()
    loss = coder.aux_loss(u, error)
    assert loss is not None
    loss.backward()

    dead = coder.dead.nonzero().squeeze(1)
    room = torch.cat([dead, torch.zeros(4, dtype=torch.int64)])  # padded with a latent that is not dead
    pre = torch.nn.functional.linear(u, coder.w_enc, coder.b_enc).detach()

    # float32: the dtype that these gradients are summed in
    def of(n_dead: int) -> AuxGradients:
        return aux_gradients(
            u=u.float(),
            pre=pre.float(),
            error=-error.float(),
            decoder=coder.w_dec.detach().float(),
            dead=room,
            n_dead=torch.tensor(n_dead),
            k_aux=k_aux,
            coefficient=coder.config.aux_coef,
        )

    found = of(len(dead))
    assert found.loss.item() == pytest.approx(loss.item(), rel=1e-6)
    for name, gradient in (("w_enc", found.encoder), ("b_enc", found.bias), ("w_dec", found.decoder)):
        expected = getattr(coder, name).grad
        torch.testing.assert_close(gradient[: len(dead)].double(), expected[dead], rtol=1e-4, atol=1e-8)
        assert not gradient[len(dead) :].any()
        assert gradient.abs().sum() > 0
        assert not expected[~coder.dead].any()
    assert not any(part.any() for part in of(0)), "nothing is dead"
