"""Settled before any weight is read: the inputs, shapes and identity of a harvest, and the model's cost."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from ..models.bodies import body_of, drop_later_layers, is_encoder_decoder
from ..models.capture import SiteReader, count_flops, site_widths
from ..models.checkpoint import (
    ModelCheckpoint,
    find_checkpoint,
    fingerprint,
)
from ..models.loading import empty_model, load_cut
from ..models.quantised import quantisation
from ..models.site_names import Site
from ..models.sites import resolve_sites
from ..models.tokenizer import Specials, load_tokenizer, special_tokens, vocabulary_size
from ..models.weights import identity_of_weights
from ..shared.cache import Layout, SiteSpec
from ..shared.cache.format import default_chunk_rows
from ..shared.errors import PipelineError
from .batch_size import estimate, recorded
from .config import HarvestConfig, Storage, cache_path, content_settings
from .data.hub import UnreachableError
from .dataset import is_local, open_dataset, unresolved
from .facts import checkpoint_from, facts_needed, refuse_counting, specials_from
from .job import Job

_PROBE_TOKENS = 8


def prepare(config: HarvestConfig) -> Job:
    """Finds the model and the dataset. Raises UsageError if one of them was not found or does not fit the settings."""
    checkpoint = find_checkpoint(config)
    tokenizer = load_tokenizer(checkpoint, config.model)
    job = _sized(Job(config, checkpoint, tokenizer, _specials(config, checkpoint, tokenizer), open_dataset(config), 0))
    job.refuse_unknown()
    return job


def _specials(config: HarvestConfig, checkpoint: ModelCheckpoint, tokenizer: Any) -> Specials:
    return special_tokens(
        tokenizer, config.model, vocabulary=vocabulary_size(checkpoint), bos=config.bos, separator=config.separator
    )


@dataclass(frozen=True)
class Sources:
    """What a plan is made from.

    Attributes:
        facts: the model's packaged facts, not its checkpoint.
        dataset: the dataset was found; if not, the plan assumes that it exists and has enough text.
    """

    facts: bool
    dataset: bool


def prepare_plan(config: HarvestConfig) -> tuple[Job, Sources]:
    """As :func:`prepare`, for a plan: that works without a network for a model with packaged facts, and without the
    hub's answer about the dataset.

    Raises:
        UsageError: as :func:`prepare`; or `tokens` is null and the dataset cannot be counted.
    """
    facts = facts_needed(config)
    if facts is None:
        checkpoint = find_checkpoint(config)
        tokenizer = load_tokenizer(checkpoint, config.model)
        specials = _specials(config, checkpoint, tokenizer)
        try:
            dataset = open_dataset(config)
        except UnreachableError:
            dataset = unresolved(config)
        job = _sized(Job(config, checkpoint, tokenizer, specials, dataset, 0))
        if is_local(config):
            job.refuse_unknown()
        return job, Sources(False, bool(dataset.identity))
    refuse_counting(config)
    # The hub was not needed for the model, so it is not asked about the dataset either.
    dataset = open_dataset(config) if is_local(config) else unresolved(config)
    job = Job(config, checkpoint_from(facts, config), None, specials_from(facts, config), dataset, 0)
    return _sized(job), Sources(True, bool(dataset.identity))


def _sized(job: Job) -> Job:
    """The job with the tokens of a batch settled."""
    config = job.config
    if config.batch_tokens is not None:
        return replace(job, batch_tokens=config.batch_tokens)
    return replace(job, batch_tokens=recorded(cache_path(config), config.ctx) or estimate(job))


def layout(job: Job, sites: list[Site], widths: dict[str, int], counted: int | None = None) -> Layout:
    """The shapes of the cache: with `counted` sequences, or those of the budget."""
    config = job.config
    specs = tuple(_spec(site, widths[site.name], config.storage_at(site.name)) for site in sites)
    shard_rows, chunk_rows = job.seqs_per_shard * config.ctx, 0
    if config.layout == "sharded":
        chunk_rows = config.chunk_rows or default_chunk_rows(config.ctx, shard_rows)
    return Layout(counted or job.wanted_sequences, config.ctx, shard_rows, specs, chunk_rows)


def _spec(site: Site, width: int, storage: Storage) -> SiteSpec:
    where = (site.module_path, site.layer, site.kind, site.io)
    if storage == "fp8" or storage == "int8":
        return SiteSpec(site.name, width, "bfloat16", *where, quantised=storage)
    return SiteSpec(site.name, width, storage, *where)


def identity_of(job: Job) -> dict[str, Any]:
    """Everything that decides the bytes of the cache: the settings that do, and the values they resolve to."""
    checkpoint, specials = job.checkpoint, job.specials
    return {
        "harvest": content_settings(job.config),
        "resolved": {
            "model_type": checkpoint.model_type,
            "model_revision": checkpoint.revision,
            "model_sha256": fingerprint(checkpoint),
            "dataset": job.dataset.identity,
            **({"dataset_parts": list(job.dataset.parts)} if job.dataset.parts else {}),
            "device": checkpoint.device.type,
            "dtype": str(checkpoint.dtype).removeprefix("torch."),
            "attention": checkpoint.attention or "default",
            "compiled": job.compiled,
            "bos_token_id": specials.bos,
            "eos_token_id": specials.eos,
            "pad_token_id": specials.pad,
            "sequences_per_call": job.batch_seqs,
            **({} if checkpoint.weights is None else identity_of_weights(checkpoint.weights)),
            **({} if (stored := quantisation(checkpoint.config)) is None else {"quantisation": stored}),
        },
    }


@dataclass(frozen=True)
class ModelCost:
    """The cost of the model.

    Attributes:
        parameters: of the whole model.
        kept_bytes: weights on the device, excluding the head and the layers above the last site.
        flops_share: FLOP of the cut forward pass ÷ those of the full one with logits; None: not known.
        flops_per_token: of the cut forward pass; None: not known.
    """

    parameters: int
    kept_bytes: int
    flops_share: float | None
    flops_per_token: float | None


def cost(job: Job) -> tuple[list[Site], dict[str, int], ModelCost]:
    """The sites, their widths, and the model's cost, from a model without weights.

    A forward pass that cannot be imagined without weights is run with them; then its FLOP are not known.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    try:
        with FakeTensorMode():
            return _imagined_cost(job)
    except PipelineError:
        raise
    except Exception:  # whatever an operation without a fake kernel raises
        cut = load_cut(job.checkpoint, job.config.model, job.config.sites)
        with SiteReader(cut.model, cut.body, cut.sites) as reader:
            widths = site_widths(reader, probe_ids(job))
        parameters = sum(parameter.numel() for parameter in cut.model.parameters())
        return cut.sites, widths, ModelCost(parameters, _bytes(cut.body), None, None)


def _imagined_cost(job: Job) -> tuple[list[Site], dict[str, int], ModelCost]:
    model = empty_model(job.checkpoint)
    model.tie_weights()  # type: ignore[operator]  # tensors without memory lose the tie: a shared embedding counts once
    sites = resolve_sites(job.config.sites, model)
    ids = torch.zeros(1, job.config.ctx, dtype=torch.long)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    widths, flops, total = _flops(model, sites, ids)
    drop_later_layers(model, sites)
    share = flops / total if total else None
    return sites, widths, ModelCost(parameters, _bytes(body_of(model)), share, flops / ids.numel())


def _flops(model: torch.nn.Module, sites: list[Site], ids: torch.Tensor) -> tuple[dict[str, int], int, int]:
    """Name → width of every site; FLOP up to the last site, and of the whole forward pass on text, with logits.

    One pass gives both, but for an encoder–decoder model, whose body is the encoder.
    """
    widths: dict[str, int] = {}
    flops, two_parts = 0, is_encoder_decoder(model)
    with SiteReader(model, body_of(model), sites, to_the_end=not two_parts) as reader, count_flops() as counter:

        def note(name: str, value: torch.Tensor) -> None:
            nonlocal flops
            widths[name], flops = int(value.shape[-1]), int(counter.get_total_flops())

        reader.read(ids, None, note)
    if two_parts:
        with torch.inference_mode(), count_flops() as whole:
            model(input_ids=ids, decoder_input_ids=ids)
        return widths, flops, int(whole.get_total_flops())
    head = model.get_output_embeddings()  # type: ignore[operator]
    logits = 0 if head is None else 2 * ids.numel() * head.weight.numel()
    return widths, flops, int(counter.get_total_flops()) + logits


def _bytes(body: torch.nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*body.parameters(), *body.buffers()))


def probe_ids(job: Job) -> torch.Tensor:
    """A short sequence of one token, [1, n]."""
    return torch.full((1, min(_PROBE_TOKENS, job.config.ctx)), job.specials.filler, dtype=torch.long)
