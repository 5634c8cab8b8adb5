"""AuxK's loss and its gradients, for the dead latents alone: dense products over few latents, in torch.

Every dead latent may take part on every row, so lists would not be sparse. Where none can be dead, nothing is computed
(room.py).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class AuxGradients(NamedTuple):
    """The weighted loss and its gradients to the dead latents' rows, float32."""

    loss: Tensor
    encoder: Tensor
    bias: Tensor
    decoder: Tensor


@torch.no_grad()
def aux_gradients(
    *,
    u: Tensor,
    pre: Tensor,
    error: Tensor,
    decoder: Tensor,
    dead: Tensor,
    n_dead: Tensor,
    k_aux: int,
    coefficient: float,
) -> AuxGradients:
    """The gradients of `Coder.aux_loss`, by hand.

    With A the k_aux largest positive dead pre-activations of each row, ê = A W and r = e − ê:
    L = w·Σ‖r‖²/Σ‖e − ē‖², dL/dW = −2w'·Aᵀr, dL/dA = −2w'·r Wᵀ where A > 0 (w' = w/Σ‖e − ē‖²), and dL/dA goes on into
    the encoder's rows.

    Args:
        u: [B, d_in] normalised inputs.
        pre: [B, F] pre-activations.
        error: [B, d_out] t̂ − t of the whole dictionary.
        decoder: [F, d_out].
        dead: [n] ids of the dead latents, padded with any others.
        n_dead: [] how many are dead. The rows of the others are 0, and with none so is the loss.
        k_aux: how many of them explain a row's error.
        coefficient: α.
    """
    # The error and the normalising variance are constants, as in Coder.aux_loss: AuxK teaches dead latents what the
    # living ones miss, and must not move those.
    padding = torch.arange(dead.numel(), device=dead.device) >= n_dead
    active = pre.index_select(1, dead).relu_().masked_fill_(padding, 0.0)
    if dead.numel() > k_aux:  # of fewer than k_aux every positive one is among them
        values, slots = active.topk(k_aux, dim=1, sorted=False)
        active = torch.zeros_like(active).scatter_(1, slots, values)
    rows = decoder.index_select(0, dead)
    missed = -error.float() - (active @ rows).float()
    centred = error.float() - error.float().mean(dim=0)
    variance = centred.square().sum().clamp_min(torch.finfo(torch.float32).tiny)
    weight = coefficient * (n_dead / k_aux).clamp(max=1.0) / variance
    pull = (missed * (-2 * weight)).to(rows.dtype)
    grad_active = (pull @ rows.T) * (active > 0)
    return AuxGradients(
        loss=weight * missed.square().sum(),
        encoder=product(grad_active.T, u),
        bias=grad_active.sum(dim=0, dtype=torch.float32),
        decoder=product(active.T, pull),
    )


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in float32, from factors of either dtype."""
    if a.dtype == torch.float32:
        return a @ b
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()
