"""What a tuning would do: the run, its rows and its model, and everything that can be refused before it starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..models.checkpoint import ModelCheckpoint
from ..models.origin import Origin, find_model
from ..shared.cache import Cache, Flag, open_cache
from ..shared.cache.heldout import split_rows
from ..shared.cache.rows import rest_rows, trained_rows
from ..shared.coders.io import coder_config
from ..shared.console import count, si, size
from ..shared.errors import PipelineError, UsageError, command
from ..shared.memory import free_memory
from ..shared.runs.folder import Run, open_run
from ..shared.runs.own_cache import own_cache_path, refuse_another
from ..shared.text_table import facts
from .config import MOST_TOKENS, TuneConfig

ARCHITECTURES = ("topk", "batchtopk", "matryoshka", "relu", "jumprelu", "matryoshka-jumprelu", "gated")
"""Architectures that read one site and write one."""

PENALISED = ("relu", "jumprelu", "matryoshka-jumprelu", "gated")
"""Architectures whose sparsity hangs on the weight of a penalty."""

HELDOUT = 0.05
"""Share of the documents held out where the run does not say: it was imported."""

COPIES = 4
"""Matrices of logits of a step that are in memory at once: two models' and their gradients."""

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Rows:
    """Which rows of the cache play which part; each [n_rows].

    Attributes:
        replaced: the coder may replace them: text outside position 0 that the run's sampler does not exclude.
        train: of them, those of documents that are trained on.
        measured: of them, those that the figures come from: held-out documents, if there are any.
        heldout: whether `measured` is held out.
    """

    replaced: Mask = field(repr=False)
    train: Mask = field(repr=False)
    measured: Mask = field(repr=False)
    heldout: bool = True


@dataclass(frozen=True)
class TunePlan:
    """A tuning that can be done.

    Attributes:
        parent: the run to tune.
        final: its final/config.json.
        path: the new run's folder.
        model_name, checkpoint: the language model.
        order: [n] the sequences with rows to train on.
        steps: updates.
        notes: what the user is to know, in words.
    """

    config: TuneConfig
    parent: Run
    final: dict[str, Any] = field(repr=False)
    path: Path
    cache: Cache = field(repr=False)
    rows: Rows
    model_name: str
    checkpoint: ModelCheckpoint = field(repr=False)
    order: NDArray[np.int64] = field(repr=False)
    steps: int
    notes: tuple[str, ...] = ()

    @property
    def source(self) -> str:
        return str(self.final["source"])

    @property
    def target(self) -> str:
        return str(self.final["target"])

    @property
    def per_step(self) -> int:
        """Sequences in one step."""
        return min(self.config.sequences, len(self.order))

    @property
    def trained_steps(self) -> int:
        """Updates that the coder has taken so far."""
        summary = self.final.get("summary", {})
        return int(summary.get("trained_steps") or summary.get("steps") or 0)

    def sequences(self, step: int) -> NDArray[np.int64]:
        """The sequences of update number `step`, from 1: each pass over them has an order of its own, by seed."""
        first = (step - 1) * self.per_step
        return np.array([self._at(place) for place in range(first, first + self.per_step)])

    def _at(self, place: int) -> int:
        epoch, within = divmod(place, len(self.order))
        if epoch not in self._orders:
            self._orders.clear()
            self._orders[epoch] = np.random.default_rng((self.config.seed, epoch)).permutation(self.order)
        return int(self._orders[epoch][within])

    _orders: dict[int, NDArray[np.int64]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def logit_bytes(self) -> int:
        """Memory of the logits of a step."""
        vocabulary = int(getattr(self.checkpoint.config.get_text_config(), "vocab_size", 0))
        return 4 * COPIES * self.per_step * self.cache.ctx * vocabulary

    def to_dict(self) -> dict[str, Any]:
        return {
            "run": str(self.parent.path),
            "path": str(self.path),
            "cache": str(self.cache.path),
            "model": self.model_name,
            "dtype": str(self.checkpoint.dtype).removeprefix("torch."),
            "device": str(self.checkpoint.device),
            "architecture": self.final["coder"]["architecture"],
            "source": self.source,
            "target": self.target,
            "update": self.config.update,
            "beta": self.config.beta,
            "steps": self.steps,
            "sequences_per_step": self.per_step,
            "tokens_per_sequence": self.cache.ctx,
            "rows": int(self.rows.train.sum()),
            "rows_measured": int(self.rows.measured.sum()),
            "measured_on": "heldout" if self.rows.heldout else "train",
            "bytes": {"logits": self.logit_bytes},
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        d = self.to_dict()
        rank = f" of rank {self.config.rank_in_use}" if self.config.update == "lora" else ""
        held = "held-out rows" if self.rows.heldout else "rows that are trained on: nothing is held out"
        pairs = [
            ("run", f"{d['run']} → {d['path']}"),
            ("coder", f"{d['architecture']}, {d['source']} → {d['target']}"),
            (
                "update",
                f"{d['update']}{rank}, β {d['beta']:g}: {count(self.steps, 'step')} of "
                f"{count(self.per_step, 'sequence')} with {d['tokens_per_sequence']:,} tokens",
            ),
            ("cache", f"{d['cache']}, which has {si(d['rows'])} rows to train on"),
            ("figures", f"on {si(d['rows_measured'])} {held}"),
            ("model", f"{d['model']} in {d['dtype']} on {d['device']}; {size(d['bytes']['logits'])} of logits at once"),
            *(("note", note) for note in self.notes),
        ]
        return facts(pairs)


def plan(config: TuneConfig) -> TunePlan:
    """The plan of a tuning; no weight of the model is read.

    Raises:
        UsageError: no run is named, its coder cannot be tuned, or its model is not known or not found.
        DataError: the run or its cache is missing, unfinished or damaged.
    """
    if config.run is None:
        raise UsageError("tune: no run is named", "pipeline status   (lists the runs; then pipeline tune RUN)")
    parent = open_run(config.run)
    final = parent.final
    refuse_coder(parent, final, config)
    cache = _cache_of(parent, final)
    rows = rows_of(cache, final)
    order = np.flatnonzero(rows.train.reshape(-1, cache.ctx).any(axis=1))
    wanted = config.tokens if config.tokens is not None else min(MOST_TOKENS, int(rows.train.sum()))
    per_sequence = rows.train.sum() / len(order)
    steps = max(1, int(np.ceil(wanted / (per_sequence * min(config.sequences, len(order))))))
    name, checkpoint = find_model(
        Origin(cache), config.model, device=config.device, dtype=config.dtype, device_setting="tune.device"
    )
    if checkpoint.auto_class == "AutoModel":
        raise UsageError(
            f"{name} predicts no next token ({checkpoint.model_type}), so there is no KL divergence to tune for",
            "tune coders of causal language models",
        )
    return TunePlan(
        config=config,
        parent=parent,
        final=final,
        path=parent.path.parent / (config.name or f"{parent.name}-tuned"),
        cache=cache,
        rows=rows,
        model_name=name,
        checkpoint=checkpoint,
        order=order,
        steps=steps,
        notes=_notes(final, config),
    )


def refuse_too_large(planned: TunePlan) -> None:
    """Raises PipelineError where the logits of a step do not fit into the memory that is free."""
    needed, free = planned.logit_bytes, free_memory(planned.checkpoint.device)
    if needed > free:
        fewer = max(1, int(planned.per_step * 0.9 * free / needed))
        raise PipelineError(
            f"tuning on {planned.checkpoint.device} needs {size(needed)} for the logits of a step of "
            f"{count(planned.per_step, 'sequence')}, "
            f"{size(free)} are free",
            f"--set tune.sequences={fewer}",
        )


def refuse_coder(parent: Run, final: Mapping[str, Any], config: TuneConfig) -> None:
    """Raises UsageError where the run's coder cannot be tuned as the settings say."""
    name = str(final["coder"].get("architecture"))
    if name not in ARCHITECTURES:
        raise UsageError(
            f"run {parent.name} is a {name}, which cannot be tuned", f"architectures: {', '.join(ARCHITECTURES)}"
        )
    if "source_widths" in final:
        raise UsageError(
            f"run {parent.name} has several sites, and tuning replaces one: {final['source']} → {final['target']}",
            "tune coders of one site",
        )
    if config.update == "decoder" or name not in PENALISED:
        return
    if "training" not in final:
        raise UsageError(
            f"run {parent.name} is an imported {name}: the weight of its sparsity penalty is not known, and without it "
            "tuning would change its L0",
            "--set tune.update=decoder   (leaves the codes as they are)",
        )
    settings = coder_config(final, parent.path)
    followed = getattr(settings, "l0_target", None) is not None and not getattr(settings, "quadratic", False)
    if followed and not parent.checkpoints():
        raise UsageError(
            f"run {parent.name} is a {name} with a target L0, and no checkpoint of it has the weight of its penalty",
            "--set tune.update=decoder   (leaves the codes as they are)",
        )


def rows_of(cache: Cache, final: Mapping[str, Any]) -> Rows:
    """Which rows are replaced, trained on and measured, from the settings that the run was trained with."""
    training = final.get("training", {})
    sampler = training.get("sampler", {})
    share = float(training["data"]["heldout"]) if "data" in training else HELDOUT
    flags = cache.flags.reshape(-1)
    replaced = trained_rows(flags) & rest_rows(cache.flags, cache.ctx).reshape(-1)
    if sampler.get("massive", "keep") != "keep":
        replaced &= ~cache.massive_rows(sorted({final["source"], final["target"]}))
    if sampler.get("template") == "exclude":
        replaced &= (flags & np.uint8(Flag.TEMPLATE)) == 0
    split = split_rows(cache, share)
    train, measured = split.train & replaced, split.heldout & replaced
    if not train.any():
        raise UsageError(
            f"{cache.path} has no row to tune on: training documents have none outside position 0", "harvest more text"
        )
    return Rows(replaced, train, measured if measured.any() else train, bool(measured.any()))


def _cache_of(parent: Run, final: Mapping[str, Any]) -> Cache:
    """The cache that a run was trained on."""
    path = own_cache_path(parent)
    cache = open_cache(path, identity=final["cache"].get("identity"))
    refuse_another(parent, cache, command("inspect", path))
    if not cache.has_tokens:
        raise UsageError(f"{path} was imported without tokens, and tuning runs the model on them", "harvest a cache")
    for site in (final["source"], final["target"]):
        if not cache.spec(site).module_path:
            raise UsageError(f"the module of site {site} is not known", "import the cache again with --model")
    return cache


def _notes(final: Mapping[str, Any], config: TuneConfig) -> tuple[str, ...]:
    """What the settings of the run do not carry over."""
    training, notes = final.get("training", {}), []
    if penalties := training.get("penalties"):
        notes.append(f"the run's penalties are not part of tuning: {', '.join(penalties)}")
    if training.get("sampler", {}).get("massive") == "clip":
        notes.append("massive rows, which the run's sampler clips, keep their own activations")
    if config.update == "decoder" and final["coder"].get("subtract_decoder_bias"):
        notes.append("b_dec stays as it is: the encoder subtracts it from its input")
    return tuple(notes)
