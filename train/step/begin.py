"""A run at its start: initial weights, normalisation, optimizer, monitors, and the step that will train it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ...shared.cache import Cache
from ...shared.cache.heldout import split_rows
from ...shared.cache.rows import rest_rows
from ...shared.coders import Coder, build_coder, load_coder
from ...shared.coders.cross_layer import CrossLayer
from ...shared.coders.layer_start import refuse_layers, start_layers
from ...shared.coders.warm_start import distances, refuse, transfer
from ...shared.joint_names import parts_of
from ..config import TrainConfig, with_precision
from ..data.rows import thin
from ..monitors.watch import Watch
from ..normalisation import moments_of
from ..parallel.peers import Peers
from ..parallel.share import class_of, sharing_of
from ..samples.collect import SampleCollector
from .clock import StepClock
from .fused import fused_step_for
from .objective import Objective
from .trainee import MassiveRows, Trainee

DEAD_AFTER = 10_000_000
"""Tokens without firing after which a latent counts as dead, unless an epoch or half of the run is shorter: otherwise
no latent of a short run could ever count as dead."""

THRESHOLD_BATCHES = 32
"""Batches that the thresholds of a JumpReLU are taken from where it starts from a BatchTopK."""

MAX_BOS_SHARE = 0.2
"""Largest share of samples at position 0 or on massive rows, where neither their settings nor the sampler give one."""


def new_trainee(
    config: TrainConfig,
    cache: Cache,
    total_steps: int,
    rows_per_epoch: int,
    device: torch.device,
    peers: Peers | None = None,
) -> Trainee:
    """A run before its first step: initial weights from the seed, normalisation from the cache.

    Args:
        total_steps: updates of the whole run.
        rows_per_epoch: rows that the sampler draws in an epoch.
        device: where the coder trains.
        peers: the processes that train it together; None: this one alone.

    Raises:
        UsageError: `train.fused: on`, but the fused step cannot train this coder.
    """
    config = with_precision(config, device.type)
    generator = torch.Generator().manual_seed(config.seed)
    coder = _new_coder(config, cache, generator, peers)
    half = max(1, total_steps * config.data.batch_size // 2)
    coder.dead_after = config.dead_after or min(DEAD_AFTER, rows_per_epoch, half)
    coder.to(device).train()
    optimizer = _optimizer(config, coder)
    target = cache.stats(config.target_site)
    trainee = Trainee(
        config=config,
        coder=coder,
        objective=Objective(config.penalties),
        optimizer=optimizer,
        generator=generator,
        total_steps=total_steps,
        ctx=cache.ctx,
        massive={
            site: tuple(_massive(cache, part, device) for part in parts_of(site))
            for site in (config.source, config.target_site)
        },
        balance=None if (scale := cache.balance(config.target_site)) is None else torch.from_numpy(scale).to(device),
        rest_mean=torch.from_numpy(target.rest.mean).to(device),
        all_mean=torch.from_numpy(target.all.mean).to(device),
        clock=StepClock(device),
        fused=fused_step_for(config, coder, optimizer) if peers is None else None,
        sharing=sharing_of(coder, peers),
    )
    if config.monitors:
        trainee.watch = Watch(
            config.monitors,
            every=config.monitor_every,
            window=config.monitor_window,
            total_steps=total_steps,
            ctx=cache.ctx,
        )
    if config.samples is not None:
        share = getattr(config.sampler, "max_bos_share", MAX_BOS_SHARE)
        massive = cache.massive_rows(sorted({config.source, config.target_site}))
        trainee.samples = SampleCollector(config.samples, cache, coder.n_latents, total_steps, share, massive)
    return trainee


def _optimizer(config: TrainConfig, coder: Coder) -> torch.optim.Adam:
    """Adam over the parameters that train, in their order: one group for each run of equal learning rates."""
    groups: list[dict[str, Any]] = []
    for name, parameter in coder.named_parameters():
        if not parameter.requires_grad:
            continue
        factor = coder.learning_rates.get(name, 1.0)
        if not groups or groups[-1]["lr_factor"] != factor:
            groups.append({"params": [], "lr_factor": factor})
        groups[-1]["params"].append(parameter)
    return torch.optim.Adam(groups, lr=0.0, betas=config.optimizer.betas, eps=config.optimizer.eps, fused=True)


def moved(config: TrainConfig, cache: Cache, coder: Coder) -> dict[str, Any] | None:
    """How far the latents that a run began with have moved (`init`); None where it began at random."""
    if config.init is None:
        return None
    start = _new_coder(config, cache, torch.Generator().manual_seed(config.seed))
    sources = [load_coder(path).n_latents for path in config.starts]
    return distances(start, coder, min(coder.n_latents, sum(sources)))


def _batches(config: TrainConfig, cache: Cache) -> list[torch.Tensor]:
    """Batches of rows to train on, outside position 0, spread over the cache: what thresholds are taken from."""
    rows = np.flatnonzero(split_rows(cache, config.data.heldout).train & rest_rows(cache.flags, cache.ctx).reshape(-1))
    size = config.data.batch_size
    rows = thin(rows, THRESHOLD_BATCHES * size)
    n = max(1, len(rows) // size)
    return [cache.rows(config.source, rows[start::n]) for start in range(n)]


def _widths(cache: Cache, site: str) -> tuple[int, ...]:
    """The widths of a site's parts."""
    return tuple(cache.spec(part).width for part in parts_of(site))


def _massive(cache: Cache, site: str, device: torch.device) -> MassiveRows:
    found = cache.outliers(site)
    return MassiveRows(torch.from_numpy(found.mask(cache.n_rows)).to(device), found.threshold, cache.spec(site).width)


def _new_coder(config: TrainConfig, cache: Cache, generator: torch.Generator, peers: Peers | None = None) -> Coder:
    """The coder with its initial weights, on the CPU: the same seed gives the same weights on every device."""
    coder = build_coder(
        config.coder,
        _widths(cache, config.source),
        _widths(cache, config.target_site),
        tied=config.source == config.target_site,
        generator=generator,
        kind=class_of(config, peers),
    )
    coder.set_normalisation(
        moments_of(cache, config.source, coder.normalise_of_input),
        moments_of(cache, config.target_site, config.coder.normalise),
    )
    coder.selection_dtype = torch.bfloat16 if config.precision == "bfloat16" else None
    if "w_dec" in config.freeze:
        coder.randomise_decoder(generator)
    if isinstance(coder, CrossLayer) and config.starts:
        sources = [load_coder(path) for path in config.starts]
        refuse_layers(coder, sources, [str(path) for path in config.starts])
        start_layers(coder, sources)
    elif config.starts:
        source = load_coder(config.starts[0])
        refuse(coder, source, str(config.starts[0]))
        transfer(coder, source, _batches(config, cache))
    for name in config.freeze:
        parameter = getattr(coder, name)
        if parameter is not None:
            parameter.requires_grad_(False)
    return coder
