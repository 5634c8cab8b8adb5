"""Sequences of a cache as the harvest showed them to the model, to run it on them again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..shared.cache import Cache, positions
from ..shared.cache.documents import document_positions
from ..shared.cache.rows import counted_rows, text_rows


@dataclass(frozen=True)
class Inputs:
    """A batch of sequences as the harvest showed them to the model.

    Attributes:
        ids: [B, T] tokens.
        real: [B, T] not padding.
        position: [B, T], 0 at each BOS.
        counted: [B, T − 1] predictions that count, at the row that makes them.
        told: further arguments of the model.
    """

    ids: Tensor
    real: Tensor
    position: Tensor
    counted: Tensor
    told: dict[str, Any]

    def logits(self, model: nn.Module) -> Tensor:
        """[B, T, V] in the model's dtype, of the next token."""
        found: Tensor = model(input_ids=self.ids, **self.told).logits
        return found

    def log_probabilities(self, model: nn.Module) -> Tensor:
        """[B, T, V] float32, of the next token."""
        return self.logits(model).float().log_softmax(-1)


def choose_sequences(
    cache: Cache, shards: tuple[int, ...], n: int, only: NDArray[np.bool_] | None = None
) -> NDArray[np.int64]:
    """At most n sequences of these shards, spread evenly. [≤ n], ascending.

    Args:
        cache: of the sequences.
        shards: to choose from.
        n: maximum number of sequences.
        only: [n_rows] choose sequences with at least one such row; None: all.
    """
    seqs = np.concatenate([np.arange(s.start, s.stop) for s in map(cache.layout.seqs_of, shards)])
    if only is not None:
        seqs = seqs[only.reshape(-1, cache.ctx)[seqs].any(1)]
    return seqs[np.unique(np.linspace(0, len(seqs) - 1, min(n, len(seqs))).round().astype(np.int64))]


def inputs_of(
    cache: Cache, sequences: NDArray[np.int64], only: NDArray[np.bool_] | None, device: torch.device
) -> Inputs:
    """Some sequences of a cache as arguments of its model.

    Where the harvest separated the documents of a sequence, positions and attention restart with each document, and a
    prediction across documents does not count.

    Args:
        sequences: their numbers.
        only: [n_rows] rows at which predictions count (the row of the prediction and the next one); None: all rows
            except padding.
    """
    flags = cache.flags[sequences]
    ids = torch.from_numpy(cache.tokens[sequences].astype(np.int64)).to(device)
    real = torch.from_numpy(text_rows(flags)).to(device)
    position = torch.from_numpy(positions(np.arange(cache.ctx), flags, cache.ctx)).to(device)
    rows = torch.from_numpy(counted_rows(flags)).to(device)
    if only is not None:
        rows = rows & torch.from_numpy(only.reshape(-1, cache.ctx)[sequences]).to(device)
    counted = rows[:, :-1] & rows[:, 1:]
    told: dict[str, Any] = {"attention_mask": None if bool(real.all()) else real.long()}
    if _apart(cache):
        within = torch.from_numpy(document_positions(cache.doc_id[sequences], ~real.cpu().numpy())).to(device)
        counted &= within[:, 1:] > 0
        # `transformers` derives the documents from restarting positions only without a mask and without a KV cache.
        told = {"attention_mask": None, "position_ids": within, "use_cache": False}
    return Inputs(ids, real, position, counted, told)


def _apart(cache: Cache) -> bool:
    """Whether the harvest packed documents into shared sequences without attention across them."""
    harvest = cache.config.get("harvest", {})
    return harvest.get("packing", "concat") == "concat" and not harvest.get("cross_document_attention", True)
