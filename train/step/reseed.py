"""Re-seeding: latents that do nothing take over the rows that the coder explains worst.

Two kinds of latents do nothing: dead ones, and one of two duplicates, which a penalty frees by naming the other as its
keeper. A new latent j starts on a row with input u and error e, drawn with probability ∝ ‖e‖²:

    w_dec_j = e/‖e‖       w_enc_j = 2‖e‖·u/‖u‖²       b_enc_j = −‖e‖

so that it fires with ‖e‖ on its own row, which removes that row's error, and on no row whose projection on u is less
than half of ‖u‖. Its moments in Adam start at zero. Resampling by error is Anthropic's (Bricken et al. 2023, Towards
Monosemanticity); the bias and the merging of duplicates are this project's own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...shared.cache.batch import Batch
from ...shared.coders import Coder
from ..penalties import Merges
from .result import step_batch
from .trainee import Trainee


@torch.no_grad()
def reseed(trainee: Trainee, rows: Batch) -> None:
    """Re-seed what is due after the step just done, and count it in the trainee.

    Args:
        rows: of that step.
    """
    config, coder = trainee.config.reseed, trainee.coder
    if config is None or trainee.step > config.until * trainee.total_steps:
        return
    merges = trainee.objective.take_merges()
    if merges is None and trainee.step % config.every:
        return  # nothing is due, and looking would make the host wait for the device
    free = torch.zeros_like(coder.since_fired, dtype=torch.bool)
    if merges is not None:
        merge(coder, merges)
        free[merges.gone] = True
        trainee.merged += len(merges.gone)
    if trainee.step % config.every == 0:
        free |= coder.since_fired >= config.silent
    ids = free.nonzero().squeeze(1)
    if len(ids):
        ids, u, error = _worst_rows(trainee, rows, ids)
        start_on(coder, ids, u, error)
        forget(trainee.optimizer, coder, ids)
        trainee.reseeded += len(ids)


def merge(coder: Coder, merges: Merges) -> None:
    """Let each keeper i do the work of the latent j that goes, whose codes are about β times its own.

    z_i w_i + z_j w_j ≈ z_i (w_i + β w_j): the new row, with its length moved into the encoder where rows are kept at
    length 1.
    """
    keep, gone, ratio = merges.keep, merges.gone, merges.ratio.to(coder.w_dec)
    row = coder.w_dec[keep] + ratio[:, None] * coder.w_dec[gone]
    if coder.config.decoder_norm == "unit":
        length = row.norm(dim=1).clamp_min(1e-6)
        row = row / length[:, None]
        coder.w_enc[keep] *= length[:, None]
        coder.b_enc[keep] *= length
    coder.w_dec[keep] = row


def start_on(coder: Coder, ids: Tensor, u: Tensor, error: Tensor) -> None:
    """Give latents `ids` [m] new weights from m rows: inputs u [m, d_in], errors [m, d_out]."""
    size, length = error.norm(dim=1, keepdim=True), u.norm(dim=1, keepdim=True)
    coder.w_dec[ids] = error / size.clamp_min(1e-12)
    coder.w_enc[ids] = 2 * size * u / length.square().clamp_min(1e-12)
    coder.b_enc[ids] = -size.squeeze(1)
    coder.since_fired[ids] = 0


def forget(optimizer: torch.optim.Optimizer, coder: Coder, ids: Tensor) -> None:
    """Set Adam's moments of some latents to zero."""
    for parameter in (coder.w_enc, coder.b_enc, coder.w_dec):
        for name in ("exp_avg", "exp_avg_sq"):
            moments = optimizer.state.get(parameter, {}).get(name)
            if moments is not None:
                moments[ids] = 0


def _worst_rows(trainee: Trainee, rows: Batch, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(latents, u, error) of as many different ordinary rows as there are latents, drawn with probability ∝ ‖e‖²; of
    more latents than such rows, the first."""
    coder = trainee.coder
    batch = step_batch(trainee, rows, trainee.step)
    error = batch.t - coder.decode_normalised(coder.encode_normalised(batch.u), batch.u)
    weight = torch.where(batch.rest, error.square().sum(dim=1), 0).double().cpu()
    n = min(len(ids), int((weight > 0).sum()))
    if not n:
        return ids[:0], batch.u[:0], error[:0]
    chosen = torch.multinomial(weight, n, generator=trainee.generator).to(error.device)
    return ids[:n], batch.u[chosen], error[chosen]
