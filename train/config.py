"""Settings of training."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..shared.coders import AnyCoderConfig
from ..shared.coders.configs.cross_layer import CrossLayerConfig
from ..shared.coders.configs.matryoshka import MatryoshkaConfig
from ..shared.hook_names import from_hook_names
from ..shared.joint_names import JOIN, parts_of
from ..shared.objects.address import on_this_machine, settled
from .data.config import DataConfig
from .monitors import Monitors
from .penalties import Penalties
from .samplers import AnySamplerConfig, UniformConfig
from .samples.config import SamplesConfig
from .schedules import default_lr, linear, warmup_constant, warmup_cosine

if TYPE_CHECKING:
    Sites = str
else:
    Sites = str | tuple[str, ...]
    """Settings may list sites; they become one joint site, named `A+B` (shared/joint_names.py)."""
SWEEPS = Path("sweeps")
"""Folder of sweeps, unless a sweep file names another."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Adam and its learning rate."""

    lr: float | None = None
    """Peak learning rate; null: 2e-4 / √(latents / 2^14)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of Adam's two moments."""
    eps: float = 1e-8
    """Adam's ε."""
    warmup_steps: int | None = None
    """Steps of linear warm-up; null: a tenth of all steps, at most 200."""
    decay: Literal["cosine", "linear", "constant"] = "cosine"
    """What follows the warm-up: half a cosine; the peak rate, and a line down at the end of the run; the peak rate."""
    decay_steps: int | None = None
    """cosine: steps from the end of the warm-up to the end of the cosine, after which the rate stays; null: all that
    remain. linear: the last steps of the run, in which the rate falls; null: a fifth of the run."""
    lr_final_fraction: float | None = None
    """Learning rate at the end of the decay, as a share of the peak; null: 0.01 for a cosine, 0 for a line."""
    grad_clip: float | None = 1.0
    """Largest global norm of the gradient; null: no clipping."""

    def __post_init__(self) -> None:
        if self.lr is not None and self.lr <= 0:
            raise ValueError(f"lr must be positive, not {self.lr}")
        if self.warmup_steps is not None and self.warmup_steps < 0:
            raise ValueError(f"warmup_steps must be 0 or more, not {self.warmup_steps}")
        if self.decay_steps is not None and self.decay_steps < 1:
            raise ValueError(f"decay_steps must be at least 1, not {self.decay_steps}")
        if self.decay_steps is not None and self.decay == "constant":
            raise ValueError("decay_steps: a constant rate has no decay; leave it null, or decay: cosine")
        if self.lr_final_fraction is not None and not 0 <= self.lr_final_fraction <= 1:
            raise ValueError(f"lr_final_fraction must be between 0 and 1, not {self.lr_final_fraction}")
        if self.grad_clip is not None and self.grad_clip <= 0:
            raise ValueError(f"grad_clip must be positive or null, not {self.grad_clip}")

    def peak_lr(self, latents: int) -> float:
        """The peak learning rate in use."""
        return default_lr(latents) if self.lr is None else self.lr

    def warmup(self, total_steps: int) -> int:
        """The length of the warm-up in use."""
        return min(200, total_steps // 10) if self.warmup_steps is None else self.warmup_steps

    def rate(self, step: int, total_steps: int, latents: int) -> float:
        """The learning rate of update number `step` (1 … total_steps)."""
        peak, warmup = self.peak_lr(latents), self.warmup(total_steps)
        if self.decay == "constant":
            return warmup_constant(step, peak, warmup)
        if self.decay == "linear":
            length = max(1, total_steps // 5) if self.decay_steps is None else self.decay_steps
            final = self.lr_final_fraction or 0.0
            return warmup_constant(step, linear(1.0, final, (step - total_steps + length) / length) * peak, warmup)
        end = total_steps if self.decay_steps is None else warmup + self.decay_steps
        final = 0.01 if self.lr_final_fraction is None else self.lr_final_fraction
        return warmup_cosine(step, peak, warmup, end, final)


@dataclass(frozen=True, kw_only=True)
class ReseedConfig:
    """Re-seeding: dead latents, and duplicates that a penalty merges, start again on the rows explained worst."""

    every: int = 50
    """Steps between looks for dead latents."""
    silent: int = 50_000
    """Tokens without firing after which a latent is re-seeded."""
    until: float = 0.85
    """Share of the run after which no latent is re-seeded: a new one needs time to learn."""

    def __post_init__(self) -> None:
        if self.every < 1 or self.silent < 1:
            raise ValueError(f"every and silent must be at least 1, not {self.every} and {self.silent}")
        if not 0 < self.until <= 1:
            raise ValueError(f"until: a share in (0, 1], not {self.until}")


@dataclass(frozen=True, kw_only=True)
class WandbConfig:
    """Weights & Biases, in addition to the run folder, which is complete without it."""

    mode: Literal["off", "auto", "offline", "online"] = "off"
    """off: wandb is not imported. offline: write files below the run folder, to sync later. online: upload during
    training. auto: online if an API key is found, else offline."""
    project: str = "sparse-coders"
    """W&B project. The presets that set one name it after themselves; the run in it has the run's name."""
    entity: str | None = None
    """Team or user; null: the account's default."""
    group: str | None = None
    """Group of the run in the W&B interface."""
    tags: tuple[str, ...] = ()
    """Tags of the run."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One coder, trained on one cache."""

    cache: Path | None = None
    """The cache: its folder, its address in object storage (`s3://…`, docs/object-storage.md), or its name in
    harvest.cache_dir; null: where `pipeline harvest` writes with the same settings."""
    beside: tuple[Path, ...] = ()
    """Caches of the same tokens, harvested from other models: the coder reads and reconstructs its sites in all of
    them, `SITE` of the first cache beside `SITE@2` of the second (docs/crosscoders.md)."""
    source: Sites = "layer_02.resid_mid"
    """Site the coder reads. A list of sites with `target: null` makes a crosscoder: one dictionary for all of them."""
    target: Sites | None = "layer_02.mlp_out"
    """Site it reconstructs (a transcoder); null: the source itself (a sparse autoencoder). For a list of sources, null
    or a list of as many."""
    sites: Literal["all"] | tuple[int, ...] | None = None
    """Layers, or `all` of the cache: one coder for each, on one read of the data. source and target are then the
    template: kinds of site (resid_mid), or sites whose layer is replaced. Null: the one run that they name."""
    runs: Path = Path("runs")
    """Folder of the runs."""
    name: str | None = None
    """Name of the run, a folder in `runs`; null: the variant's name, or the architecture's. The presets name their runs
    after themselves; with `--variant` such a run is called NAME-VARIANT."""
    variant: str | None = None
    """Name of the variant these settings came from; set by `--variant`."""
    seed: int = 0
    """Seed of the initial weights and of the penalties' random numbers; data.seed decides the order of the rows. A
    list, such as [0, 1, 2], trains one run per seed, side by side."""
    coder: AnyCoderConfig = field(default_factory=MatryoshkaConfig)
    """Architecture, size and sparsity."""
    init: Path | tuple[Path, ...] | None = None
    """A run, or a folder with a finished coder, whose latents this one starts from: as many, a prefix of a nested
    dictionary, or fewer than this one has; of a cross-layer coder a list of runs, one for each site. Null: random
    weights."""
    freeze: tuple[str, ...] = ()
    """Parameters that keep their initial values: w_enc, b_enc, w_dec, b_dec, w_skip."""
    penalties: Penalties = field(default_factory=dict)
    """Penalties added to the loss, by kind."""
    monitors: Monitors = field(default_factory=dict)
    """Monitors of redundancy during training, by kind; they write to anti_duplication_logs/."""
    monitor_every: int = 100
    """Steps between reports of the monitors; they also report after the last step."""
    monitor_window: int = 50
    """Batches that a report is computed from."""
    samples: SamplesConfig | None = None
    """Activation samples, collected into samples/ during training; {}: with the default settings; null: none."""
    sampler: AnySamplerConfig = field(default_factory=UniformConfig)
    """Which rows are trained on."""
    data: DataConfig = field(default_factory=DataConfig)
    """Batches, passes over the data, shuffling and reading."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Adam and its schedule."""
    ema: float | None = None
    """Decay of a moving average of the weights, which becomes a second coder in the run's final/ema; null: none."""
    dead_after: int | None = None
    """Tokens without firing after which a latent counts as dead; null: 10 million, or one epoch or half of the
    run if that is shorter."""
    reseed: ReseedConfig | None = None
    """Re-seed dead latents, and duplicates that a penalty merges; {}: with the default settings; null: never."""
    min_steps: int = 100
    """Refuse a run that would take fewer steps."""
    log_every: int = 50
    """Steps between lines of metrics.jsonl."""
    diverged: Literal["stop", "warn"] = "warn"
    """What happens when a run diverges (a batch with an FVU above 10, a loss 1000 times the first, or activations near
    the limit of float32). Either way a note stays in the run, which `pipeline status` shows."""
    checkpoint_every: int | None = None
    """Steps between checkpoints; null: 500, where `checkpoint_minutes` have passed since the last one."""
    checkpoint_minutes: float | None = None
    """Least minutes between checkpoints; null: 5 on CUDA, where 500 steps can take a second, unless `checkpoint_every`
    is set; 0 otherwise. Checkpoints are written while the run trains on."""
    report_every: int | None = None
    """Also evaluate the coder at every n-th checkpoint, and write a short report into the run's progress/; null:
    never."""
    keep_checkpoints: int | None = 2
    """How many checkpoints to keep on disk, the newest; null: all."""
    eval_rows: int = 262_144
    """Largest number of held-out rows in the final evaluation, spread evenly over all of them."""
    device: str = "auto"
    """cpu, cuda, cuda:1, …; auto: cuda if available, else cpu."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Dtype of the dense matrix product that selects latents; weights, codes and gradients stay float32.
    auto: bfloat16 on CUDA, float32 on a CPU; the run's config.yaml and `--dry-run` name the choice."""
    fused: Literal["auto", "on", "off"] = "auto"
    """Train with the fused Triton kernels (require CUDA) instead of autograd; auto: where possible. With them,
    `precision: bfloat16` also makes the kernels read bfloat16 copies of the matrices; the parameters stay float32."""
    parallel: Literal["data", "latents"] | None = None
    """How several processes (--ranks, torchrun) train: data: all of them every run, each with its rows of every batch;
    latents: all of them every run, each with a slice of the dictionary; null: whole runs are shared out
    (docs/scale.md)."""
    wandb: WandbConfig = field(default_factory=WandbConfig)
    """Weights & Biases."""

    def __post_init__(self) -> None:
        self._settle_paths()
        object.__setattr__(self, "source", _joint("source", self.source, len(self.beside) + 1))
        if self.target is not None:
            object.__setattr__(self, "target", _joint("target", self.target, len(self.beside) + 1))
        self._check_joint()
        if self.name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+=%#,-]*", self.name):
            plain = re.sub(r"[^A-Za-z0-9._+=%#,-]+", "-", self.name).strip("-.") or "run"
            allowed = "letters, digits and . _ + - = % # and commas"  # a sweep names runs k=16 and share=0.1%
            raise ValueError(f"name: expected only {allowed}, found {self.name!r}; try {plain!r}")
        for name in ("min_steps", "log_every", "eval_rows", "monitor_every", "monitor_window"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.checkpoint_every is not None and self.checkpoint_every < 1:
            raise ValueError(f"checkpoint_every must be at least 1 (or null), not {self.checkpoint_every}")
        if self.checkpoint_minutes is not None and not 0 <= self.checkpoint_minutes < float("inf"):
            raise ValueError(f"checkpoint_minutes must be 0 or more (or null), not {self.checkpoint_minutes}")
        if self.dead_after is not None and self.dead_after < 1:
            raise ValueError(f"dead_after must be at least 1 (or null), not {self.dead_after}")
        if self.report_every is not None and self.report_every < 1:
            raise ValueError(f"report_every must be at least 1 (or null: never), not {self.report_every}")
        if self.keep_checkpoints is not None and self.keep_checkpoints < 1:
            raise ValueError(f"keep_checkpoints must be at least 1 (or null: all), not {self.keep_checkpoints}")
        if isinstance(self.sites, tuple) and (not self.sites or len(set(self.sites)) < len(self.sites)):
            raise ValueError(f"sites: expected `all` or different layers, not {list(self.sites)}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"ema must be between 0 and 1 (or null), not {self.ema}")
        known = ("w_enc", "b_enc", "w_dec", "b_dec", "w_skip")
        for name in self.freeze:
            if name not in known:
                raise ValueError(f"freeze: {name!r} is not a parameter (known: {', '.join(known)})")
        for name, penalty in self.penalties.items():
            metric = getattr(penalty.schedule, "metric", None)
            if metric is not None and metric.partition("/")[0] not in self.monitors:
                raise ValueError(
                    f"penalties.{name}.schedule.metric: {metric!r} is not a figure of a monitor "
                    f"(monitors in these settings: {', '.join(self.monitors) or 'none'})"
                )
        if self.target not in (None, self.source) and self.coder.subtract_decoder_bias:
            raise ValueError("coder.subtract_decoder_bias requires an autoencoder (train.target: null)")
        if self.target is None and self.coder.skip:
            raise ValueError("coder.skip: a skip connection requires a transcoder; it lets an SAE copy its input")

        self._check_reseed()
        self._check_cross_layer()

    def _check_joint(self) -> None:
        """Raises ValueError where source and target do not belong to one coder of several sites."""
        n_read, n_written = len(parts_of(self.source)), len(parts_of(self.target_site))
        if n_read != n_written:
            raise ValueError(
                f"target: {n_written} site{'s' * (n_written > 1)} for {n_read} of the source; give as many, or "
                "target: null for a crosscoder"
            )
        if n_read > 1 and self.sites is not None:
            raise ValueError("sites: trains a coder for each layer; a coder of several sites names them in source")

    def _check_cross_layer(self) -> None:
        """Raises ValueError where a cross-layer coder does not fit its sites, or another coder has several starts."""
        if isinstance(self.coder, CrossLayerConfig):
            if (problem := self.coder.problem(len(parts_of(self.source)))) is not None:
                raise ValueError(problem)
            if self.freeze:
                raise ValueError(f"freeze: {', '.join(self.freeze)}: a cross-layer coder has no frozen parameters")
        elif isinstance(self.init, tuple):
            raise ValueError(f"init: several runs start a cross-layer coder, not {self.coder.architecture}; give one")

    def _settle_paths(self) -> None:
        """Raises ValueError where an address cannot be used, or runs would lie in object storage."""
        object.__setattr__(self, "cache", None if self.cache is None else settled(self.cache))
        object.__setattr__(self, "beside", tuple(map(settled, self.beside)))
        object.__setattr__(self, "runs", on_this_machine("runs", self.runs))
        for start in self.starts:
            on_this_machine("init", start)

    @property
    def starts(self) -> tuple[Path, ...]:
        """The runs that this one starts from."""
        return () if self.init is None else self.init if isinstance(self.init, tuple) else (self.init,)

    def _check_reseed(self) -> None:
        """Raises ValueError where re-seeding cannot do what the settings say."""
        merging = [name for name, penalty in self.penalties.items() if getattr(penalty, "merge", None) is not None]
        if self.reseed is None and merging:
            raise ValueError(f"penalties.{merging[0]}.merge frees latents for re-seeding: set reseed: {{}}")
        if self.reseed is None:
            return
        if self.coder.architecture not in RESEEDED:
            raise ValueError(f"reseed: for {', '.join(RESEEDED)}, not {self.coder.architecture}")
        if self.freeze:
            raise ValueError(f"reseed: changes {', '.join(self.freeze)}, which freeze keeps")

    @property
    def target_site(self) -> str:
        """The site that is reconstructed."""
        return self.source if self.target is None else self.target

    @property
    def checkpoint_steps(self) -> int:
        """The steps between checkpoints in use."""
        return self.checkpoint_every or 500

    def minutes_between_checkpoints(self, device: str) -> float:
        """The least minutes between checkpoints in use, on this type of device."""
        if self.checkpoint_minutes is not None:
            return self.checkpoint_minutes
        return 5.0 if device == "cuda" and self.checkpoint_every is None else 0.0

    @property
    def run_name(self) -> str:
        """The run's name in use."""
        return self.name or self.variant or self.coder.architecture

    @property
    def path(self) -> Path:
        """The run's folder."""
        return self.runs / self.run_name


def _joint(key: str, sites: str | tuple[str, ...], n_caches: int) -> str:
    """The name of a site, or of the joint site of a list; with several caches, of the sites in all of them.

    Raises:
        ValueError: a site is listed twice, or belongs to a cache that is not named.
    """
    names = [part for site in ([sites] if isinstance(sites, str) else sites) for part in parts_of(site)]
    found = from_hook_names(*names)
    marks = [int(mark) for name in found if (mark := name.partition("@")[2]).isdigit()]
    if any(not 2 <= mark <= n_caches for mark in marks):
        raise ValueError(f"{key}: {JOIN.join(found)} names cache {max(marks)}, but train.beside names {n_caches - 1}")
    if n_caches > 1 and not marks:
        found = tuple(f"{name}{mark}" for name in found for mark in ("", *(f"@{n}" for n in range(2, n_caches + 1))))
    if not found or not all(found) or len(set(found)) < len(found):
        raise ValueError(f"{key}: expected one site or a list of different ones, found {list(found)}")
    return JOIN.join(found)


def with_precision(config: TrainConfig, device: str) -> TrainConfig:
    """The settings with `precision: auto` replaced by its choice for this type of device: a resumed run keeps it."""
    if config.precision != "auto":
        return config
    return replace(config, precision="bfloat16" if device == "cuda" else "float32")


RESEEDED = ("topk", "batchtopk", "matryoshka")
"""Architectures whose latents are re-seeded: those with no parameter of a latent besides its two rows and its bias."""

OPERATIONAL = (
    "cache",
    "beside",
    "runs",
    "name",
    "variant",
    "log_every",
    "checkpoint_every",
    "checkpoint_minutes",
    "diverged",
    "keep_checkpoints",
    "report_every",
    "wandb",
    "device",
    "fused",
    "parallel",
)
"""Settings that a resumed run may change: they do not affect the weights."""
