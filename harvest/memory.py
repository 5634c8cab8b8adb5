"""Whether a harvest fits into host memory, looked at before anything is created."""

from __future__ import annotations

from pathlib import Path

from torch._subclasses.fake_tensor import FakeTensorMode

from ..models.files import stored_numbers
from ..models.loading import empty_model
from ..models.quantised import quantisation
from ..models.weights import gguf_numbers
from ..shared.cache import Layout
from ..shared.console import size
from ..shared.errors import PipelineError
from ..shared.memory import free_host_memory
from .job import Job

_DEQUANTISED = 4
"""Bytes of a number of a GGUF file while it is loaded: float32, beside the model."""


def refuse_too_large(job: Job) -> None:
    """Compares the model's weights, in its dtype, with the free memory; reads no weight.

    Raises:
        PipelineError: they do not fit.
    """
    needed, free = weight_bytes(job), free_host_memory()
    if needed is not None and needed > free:
        raise PipelineError(
            f"{job.config.model} needs {size(needed)} of host memory, {size(free)} are free",
            hint="end other programs, --set harvest.dtype=bfloat16 (half of float32), or use a smaller model",
        )


def weight_bytes(job: Job) -> int | None:
    """Host memory that loading the weights takes; None where it cannot be known without loading them.

    Of a local checkpoint its files tell, of a GGUF file its tensors, of a model on the hub its configuration.
    """
    checkpoint = job.checkpoint
    if checkpoint.device_map is not None:  # accelerate looks at the memory itself
        return None
    if quantisation(checkpoint.config) is not None and checkpoint.is_local:
        return sum(path.stat().st_size for path in Path(checkpoint.source).glob("*.safetensors"))
    gguf = None if checkpoint.weights is None else checkpoint.weights.gguf
    if gguf is not None:
        return gguf_numbers(Path(checkpoint.source) / gguf) * (_DEQUANTISED + checkpoint.dtype.itemsize)
    if checkpoint.is_local:
        return stored_numbers(Path(checkpoint.source)) * checkpoint.dtype.itemsize
    try:
        with FakeTensorMode():
            model = empty_model(checkpoint)
            model.tie_weights()  # type: ignore[operator]
            return sum(parameter.nbytes for parameter in model.parameters())
    except PipelineError:
        raise
    except Exception:  # a model that cannot be imagined is loaded without this check
        return None


def refuse_large_buffers(job: Job, shapes: Layout) -> None:
    """Compares the buffers between model and disk with the memory that the loaded model leaves free.

    Raises:
        PipelineError: they do not fit; names the number that does.
    """
    one = buffer_bytes(job, shapes) // job.config.buffers
    used = min(job.config.buffers, -(-shapes.n_shards // job.unit_shards))
    free = free_host_memory()
    if used * one > free:
        cure = (
            f"--set harvest.buffers={free // one}"
            if free // one
            else "--set harvest.shard_rows, smaller, or fewer sites"
        )
        raise PipelineError(
            f"{used} buffers between model and disk need {size(used * one)} of host memory, {size(free)} are free", cure
        )


def buffer_bytes(job: Job, shapes: Layout) -> int:
    """Host memory of the buffers between the model and the disk, at most."""
    return (
        job.config.buffers * job.unit_shards * shapes.shard_rows * sum(site.logical_row_bytes for site in shapes.sites)
    )
