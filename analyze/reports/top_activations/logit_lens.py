"""What a latent writes, in tokens: its decoder row through the last norm's gain and the unembedding.

w_i is the row in raw activation space: what a code of 1 adds to the site, whatever the normalisation. Its effect
on the logits, to first order and but for one positive factor: W_U (g ⊙ w_i), less its mean over the vocabulary (a
softmax does not see that). Where the last norm is a LayerNorm, w_i is centred first, as the norm centres; its scale is
held fixed. It holds for rows that are added to the residual stream, and ignores what later layers make of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ....models.folder import model_folder
from ....shared.errors import UsageError
from ...subject.harvested import is_made, made_model
from ...subject.language_model import Unembedding, load_unembedding, unembedding_of
from ...subject.subject import Subject

RESIDUAL_KINDS = ("resid_pre", "resid_mid", "resid_post", "mlp_out", "attn_out")
"""Kinds of sites whose vectors live in the residual stream."""

LATENT_BLOCK, TOKEN_BLOCK = 1024, 32_768
"""Size of one tile of the latents × vocabulary product."""


@dataclass(frozen=True)
class LogitLens:
    """Tokens that each latent promotes and suppresses most.

    Attributes:
        top, top_value: [F, m] largest first. bottom, bottom_value: [F, m] most negative first.
    """

    top: NDArray[np.int32]
    top_value: NDArray[np.float32]
    bottom: NDArray[np.int32]
    bottom_value: NDArray[np.float32]


def lens_of(subject: Subject, tokens: int) -> LogitLens | None:
    """The logit lens of a run; None if its target is not in the residual stream or the model's files are not here.

    Raises:
        DataError: the adapter or GGUF file of the model has changed since the harvest.
    """
    site = subject.cache.spec(subject.target)  # of a joint site: no kind, and so no lens
    if site.kind not in RESIDUAL_KINDS:
        return None
    config = subject.cache.config
    harvest, resolved = config.get("harvest", {}), config.get("resolved", {})
    revision = resolved.get("model_revision") or harvest.get("model_revision")
    if is_made(subject.cache):
        try:
            found = unembedding_of(made_model(subject.cache, "cpu"), subject.coder.d_out)
        except UsageError:  # not here, or without the package that reads it
            return None
    else:
        found = load_unembedding(model_folder(harvest.get("model"), revision), subject.coder.d_out)
    if found is None:
        return None
    return logit_lens(torch.from_numpy(subject.raw_w_dec), found, tokens, subject.device)


def logit_lens(
    w_dec: Tensor,
    unembedding: Unembedding,
    tokens: int,
    device: str = "cpu",
    *,
    latent_block: int = LATENT_BLOCK,
    token_block: int = TOKEN_BLOCK,
) -> LogitLens:
    """The `tokens` most promoted and most suppressed tokens of each row of w_dec [F, d] (raw space), tile by tile.

    The best of a row are among the best of its tiles, so each tile keeps its own best and drops the rest.
    """
    n_latents, n_tokens = len(w_dec), unembedding.n_tokens
    m = min(tokens, n_tokens)
    gain = unembedding.gain.to(device)
    mean = unembedding.weight.float().mean(0).to(device) * gain
    parts = []
    for start in range(0, n_latents, latent_block):
        rows = w_dec[start : start + latent_block].float().to(device)
        if unembedding.centred:
            rows = rows - rows.mean(1, keepdim=True)
        centre = rows @ mean  # mean logit over the vocabulary, without forming the logits
        kept: dict[bool, list[tuple[Tensor, Tensor]]] = {True: [], False: []}
        for first in range(0, n_tokens, token_block):
            tile = unembedding.weight[first : first + token_block].float().to(device) * gain
            logits = rows @ tile.T - centre[:, None]
            for largest, found in kept.items():
                best = logits.topk(min(m, logits.shape[1]), dim=1, largest=largest)
                found.append((best.values, best.indices + first))
        ends = []
        for largest, found in kept.items():
            values, ids = torch.cat([v for v, _ in found], 1), torch.cat([i for _, i in found], 1)
            best = values.topk(m, dim=1, largest=largest)
            ends += [ids.gather(1, best.indices).cpu().numpy(), best.values.cpu().numpy()]
        parts.append(ends)
    top, top_value, bottom, bottom_value = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return LogitLens(
        top=top.astype(np.int32), top_value=top_value, bottom=bottom.astype(np.int32), bottom_value=bottom_value
    )
