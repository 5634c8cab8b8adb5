"""How many tokens one call of the model takes when the settings do not say (`batch_tokens: null`)."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch

from ..models.capture import SiteReader
from ..shared.cache.files import read_json
from ..shared.cache.format import PLAN
from ..shared.cache.mirror import at_hand
from ..shared.errors import PipelineError
from ..shared.memory import free_host_memory
from .job import Job

MOST_ON_CPU = 8192
MOST_ON_CUDA = 65_536
_SHARE_OF_MEMORY = 0.25


def recorded(path: Path, ctx: int) -> int | None:
    """Tokens per call recorded in the cache at `path`, None if there is none. Other batches round differently, so a
    resumed harvest uses the same."""
    path = at_hand(path)
    if not (path / PLAN).is_file():
        return None
    resolved = read_json(path / PLAN).get("config", {}).get("resolved", {})
    found = resolved.get("sequences_per_call")
    return int(found) * ctx if found else None


def estimate(job: Job, available: int | None = None) -> int:
    """Tokens whose activations fit into a quarter of the free memory of a CPU; on CUDA the maximum, for :func:`probe`.

    The model holds, per token and at once, about eight residual vectors, three MLP vectors and three rows of attention
    weights.

    Args:
        available: bytes of free host memory; None asks the system.
    """
    if job.checkpoint.device.type == "cuda":
        return MOST_ON_CUDA
    config: Any = job.checkpoint.config.get_text_config()
    width = int(config.hidden_size)
    inner = int(getattr(config, "intermediate_size", None) or 4 * width)
    heads = int(config.num_attention_heads)
    numbers = 8 * width + 3 * inner + 3 * heads * job.config.ctx
    free = free_host_memory() if available is None else available
    fits = int(_SHARE_OF_MEMORY * free) // (numbers * job.checkpoint.dtype.itemsize)
    tokens = MOST_ON_CPU
    while tokens > max(fits, job.config.ctx):
        tokens //= 2
    return max(tokens, job.config.ctx)


def probe(job: Job, reader: SiteReader) -> int:
    """The estimate; on CUDA, halved until a forward pass that keeps every site fits into the device's memory.

    Raises:
        PipelineError: not even one sequence fits.
    """
    tokens = estimate(job)
    device = job.checkpoint.device
    kept: list[torch.Tensor] = []
    while device.type == "cuda":
        try:
            shape = (max(1, tokens // job.config.ctx), job.config.ctx)
            ids = torch.full(shape, job.specials.filler, dtype=torch.long, device=device)
            reader.read(ids, None, functools.partial(_keep, kept))
            torch.cuda.synchronize(device)
            break
        except torch.cuda.OutOfMemoryError:
            if tokens <= job.config.ctx:
                raise PipelineError(
                    f"one sequence of {job.config.ctx} tokens does not fit into the memory of {device}",
                    hint="use a smaller harvest.ctx, a smaller model, or --set harvest.device=cpu",
                ) from None
            tokens //= 2
        finally:
            kept.clear()
            torch.cuda.empty_cache()
    return tokens


def _keep(kept: list[torch.Tensor], _name: str, value: torch.Tensor) -> None:
    kept.append(value.clone())
