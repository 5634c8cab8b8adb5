"""Harvest a language model's activations once, train sparse coders on them many times, report what they learned.

    import sparse_pipeline as sp
    cache = sp.open_cache("demo")
    coder = sp.load_coder("demo-matryoshka")
    sp.top_latents("demo-matryoshka", None, "def join(words):")

Caches, runs and reports are given by path, or by name as on the command line: the folders that hold them are those of
./pipeline.yaml or the defaults. Nothing heavy is imported before a function needs it, so importing this package is
quick. docs/api.md shows every function.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from .analyze.config import AnalyzeConfig
    from .analyze.run import AnalyzeResult
    from .explain.config import ExplainConfig
    from .explain.result import ExplainResult
    from .harvest.config import HarvestConfig
    from .harvest.run import HarvestResult
    from .live.attach import Attached, Mode
    from .shared.cache.view import CacheView
    from .shared.coders.base import Coder
    from .shared.console import Console
    from .shared.saved_report import SavedReport
    from .train.config import TrainConfig
    from .train.loop import RunSummary
    from .tune.run import TuneResult

    Files = str | Path | Sequence[str | Path]

__all__ = [
    "attach",
    "explanations",
    "load_coder",
    "open_cache",
    "open_report",
    "run_analyze",
    "run_explain",
    "run_harvest",
    "run_train",
    "run_tune",
    "top_latents",
]


C = TypeVar("C")


def open_cache(path: Path | str, allow_incomplete: bool = False) -> CacheView:
    """An activation cache, memory-mapped: `chunk`, `rows`, `batches`, `dataset`, `documents`, `group`, `stats`.

    Args:
        path: its folder, or its name in harvest.cache_dir.
        allow_incomplete: open an unfinished cache too.

    Raises:
        DataError: it is missing, incomplete or in another format.
    """
    from .shared.cache.reader import open_cache as opened
    from .shared.cache.view import CacheView

    return CacheView.of(opened(_find(path, "cache"), allow_incomplete=allow_incomplete))


def load_coder(path: Path | str, *, layer: int | None = None) -> Coder:
    """The coder of a run, or of another tool: a folder or file in any format that docs/interop.md lists as read.

    It is on the CPU, in evaluation mode; `coder.source` and `coder.target` are the sites of a run's coder.

    Args:
        path: the folder, a run's name in train.runs, or hf://owner/name[/folder] on the hub.
        layer: of a set of transcoders, the one of this layer.

    Raises:
        DataError: nothing that is read was found there, or it is damaged.
        UsageError: there are several coders; `layer` chooses one.
    """
    from .exchange.load import load_coder as loaded

    return loaded(path if "://" in str(path) else _find(path, "run"), layer=layer)


def open_report(path: Path | str) -> SavedReport:
    """A report as data frames: `.figures`, `.tables["latents"]`, `.latents("demo-topk")`.

    Args:
        path: its folder, its name in analyze.out, or the path of its report.json or index.html.

    Raises:
        DataError: it was not found or cannot be read.
    """
    from .shared.saved_report import open_report as opened

    path = Path(path)
    if not path.exists() and len(path.parts) == 1:
        from .resolve import resolve

        path = resolve().analyze.out / path
    return opened(path)


def run_harvest(
    config: HarvestConfig | Mapping[str, Any] | Files | None = None,
    *,
    console: Console | None = None,
    **settings: Any,
) -> HarvestResult:
    """Write or resume a cache, as `pipeline harvest`.

    Args:
        config: settings files or presets, a mapping that overrides the harvest section, or the whole config. Without
            files, ./pipeline.yaml is read if it exists.
        settings: settings of the harvest section, over `config`: `tokens=4096, name="mine"`.

    Raises:
        ConfigError: settings that are not valid, every problem at once.
        PipelineError: as the command.
    """
    from .harvest.config import HarvestConfig
    from .harvest.run import harvest

    if isinstance(config, HarvestConfig):
        return harvest(_changed(config, settings, "harvest"), _console(console))
    from .resolve import resolve

    files, changes = _layers(config, settings)
    return harvest(resolve(files, changes={"harvest": changes}).harvest, _console(console))


def run_train(
    config: TrainConfig | Mapping[str, Any] | Files | Sequence[TrainConfig | Mapping[str, Any]] | None = None,
    *,
    variant: str | Sequence[str] | None = None,
    seeds: int | None = None,
    resume: bool = False,
    console: Console | None = None,
    **settings: Any,
) -> list[RunSummary]:
    """Train one coder, or several on one read of the data, as `pipeline train`.

    Args:
        config: settings files or presets, a mapping that overrides the train section, or the whole config; a list of
            mappings or configs trains each of them. Without files, ./pipeline.yaml is read if it exists.
        variant: one or several, as `--variant`.
        seeds: train this many seeds side by side, as `--seeds`.
        resume: continue from the last checkpoint.
        settings: settings of the train section, over `config` and variant: `cache="demo", coder={"k": 16}`. With
            several variants, `name` is the beginning of the runs' names.

    Raises:
        ConfigError: settings that are not valid, every problem at once.
        PipelineError: as the command.
    """
    from .resolve import train_configs
    from .train.config import TrainConfig
    from .train.layers import by_layer
    from .train.loop import train

    def configs(one: Any) -> list[TrainConfig]:
        if isinstance(one, TrainConfig):
            made = _changed(one, settings, "train")
            return [made] if made.sites is None or made.cache is None else by_layer(made, open_cache(made.cache).sites)
        files, changes = _layers(one, settings)
        name = changes.pop("name", None)
        return train_configs(files, (), names, name, seeds=seeds, changes=changes)

    names = [variant] if isinstance(variant, str) else list(variant or ())
    several = isinstance(config, Sequence) and not isinstance(config, str) and not _are_files(config)
    many = [one for given in (config if several else [config]) for one in configs(given)]  # type: ignore[union-attr]
    return train(many, _console(console), resume=resume)


def run_tune(
    run: Path | str,
    config: Mapping[str, Any] | Files | None = None,
    *,
    resume: bool = False,
    console: Console | None = None,
    **settings: Any,
) -> TuneResult:
    """Train a finished coder on in the running model, as `pipeline tune`: a new run beside `run`.

    Args:
        run: the run, by path or by name in train.runs.
        config: settings files or presets, or a mapping that overrides the tune section. Without files, ./pipeline.yaml
            is read if it exists.
        resume: continue from the last checkpoint.
        settings: settings of the tune section, over `config`: `update="lora", tokens=100_000, name="mine"`.

    Raises:
        ConfigError: settings that are not valid, every problem at once.
        PipelineError: as the command.
    """
    from .resolve import resolve, tune_config
    from .tune.run import tune

    files, changes = _layers(config, settings)
    whole = resolve(files, changes={"tune": changes} if changes else None)
    return tune(tune_config(whole, run), _console(console), resume=resume)


def run_analyze(
    runs: Sequence[Path | str] | Path | str = (),
    config: AnalyzeConfig | Mapping[str, Any] | Files | None = None,
    *,
    only: str | Sequence[str] = (),
    console: Console | None = None,
    **settings: Any,
) -> AnalyzeResult:
    """Report on one run, or compare several, as `pipeline analyze`. :func:`open_report` reads the result.

    Args:
        runs: folders of runs, or names in train.runs; none: every finished run.
        config: settings files or presets, a mapping that overrides the analyze section, or the whole config. Without
            files, ./pipeline.yaml is read if it exists.
        only: these reports only, as `--only`.
        settings: settings of the analyze section, over `config`: `max_tokens=100_000, name="mine"`.

    Raises:
        ConfigError: settings that are not valid, every problem at once.
        PipelineError: as the command.
    """
    from .analyze.config import AnalyzeConfig
    from .analyze.run import analyze
    from .resolve import analyze_config, resolve
    from .shared.overview.find import run_paths

    given = isinstance(config, AnalyzeConfig)
    files, changes = ([], {}) if given else _layers(config, settings)
    whole = resolve(files, changes={"analyze": changes} if changes else None)
    if isinstance(config, AnalyzeConfig):
        fields = {name: getattr(whole, name) for name in ("harvest", "train")}
        whole = type(whole)(**fields, analyze=_changed(config, settings, "analyze"))  # type: ignore[call-arg]
    paths = [str(run) for run in ([runs] if isinstance(runs, (str, Path)) else runs)]
    reports = [only] if isinstance(only, str) else only
    return analyze(run_paths(paths, whole.train.runs), analyze_config(whole, reports), _console(console))


def run_explain(
    run: Path | str,
    config: ExplainConfig | Mapping[str, Any] | Files | None = None,
    *,
    console: Console | None = None,
    **settings: Any,
) -> ExplainResult:
    """Label a run's latents and score the labels, as `pipeline explain`. :func:`explanations` reads the result.

    Args:
        run: its folder, or its name in train.runs.
        config: settings files or presets, a mapping that overrides the explain section, or the whole config. Without
            files, ./pipeline.yaml is read if it exists.
        settings: settings of the explain section, over `config`: `latents=[3, 5], judge={"kind": "rule"}`.

    Raises:
        ConfigError: settings that are not valid, every problem at once.
        PipelineError: as the command.
    """
    from .explain.config import ExplainConfig
    from .explain.run import explain
    from .resolve import explain_config, resolve

    if isinstance(config, ExplainConfig):
        return explain(_find(run, "run"), _changed(config, settings, "explain"), _console(console))
    files, changes = _layers(config, settings)
    whole = resolve(files, changes={"explain": changes} if changes else None)
    return explain(_find(run, "run"), explain_config(whole), _console(console))


def explanations(run: Path | str, *, judge: str | None = None) -> pd.DataFrame:
    """The labels of a run's latents and their scores, by latent.

    Args:
        run: its folder, or its name in train.runs.
        judge: folder of the explanations to read, below `explanations` in the run's; None: the newest.

    Returns:
        Columns label, detection, fuzzing, and of each score _low and _high (95 % interval), _shuffled and _random (the
        same of another latent's label, and of a label of random windows).

    Raises:
        DataError: the run has none, or they are damaged.
    """
    from .shared.runs.explanations import some_explanations
    from .shared.runs.folder import open_run

    opened = open_run(_find(run, "run"))
    return some_explanations(opened.path, opened.final["sha256"], judge).frame()


def top_latents(
    coder: Coder | Path | str,
    model: nn.Module | str | None,
    text: str,
    *,
    k: int | None = None,
    source: str | None = None,
    tokenizer: Any = None,
    device: str = "auto",
) -> pd.DataFrame:
    """Which latents fire on a text, token by token, the strongest first; `pipeline ask` prints the same.

    Args:
        coder: a coder, or a run by path or name.
        model: a `transformers` model; or a checkpoint's folder, a hub name or `demo`; None: the model of the run's
            cache. Where a run's cache exists, a model that is loaded here is checked against it.
        text: encoded as in a harvest: BOS, then its tokens.
        k: at most k latents for each token; None: all.
        source: site that the coder reads; None: the one it was trained on.
        tokenizer: of a `transformers` model given; None: the one at its `name_or_path`.
        device: of a model that is loaded here.

    Returns:
        Columns position, token_id, token, latent, activation, position_0 (position 0 is the same in every text).

    Raises:
        UsageError: an unknown model, site or tokenizer, or a text that is empty or longer than the model's context.
        DataError: the run is missing, or the model is not the one that was harvested.
    """
    from .live.read import read_text
    from .models.origin import Origin, open_model, origin_of, tokenizer_of
    from .shared.coders.base import Coder
    from .shared.coders.one_site import require_one_site

    folder = None if isinstance(coder, Coder) else _find(coder, "run")
    used = coder if isinstance(coder, Coder) else load_coder(coder)
    require_one_site(used, "reading a text")
    bos = "auto"
    if model is None or isinstance(model, str):
        origin = Origin(None, "a coder without its run names no model") if folder is None else origin_of(folder)
        loaded = open_model(origin, model, device=device, source=source or used.source)
        model, tokenizer, bos = loaded.model, tokenizer or loaded.tokenizer, loaded.bos
        used = used.to(next(model.parameters()).device) if folder is not None else used
    return read_text(model, tokenizer or tokenizer_of(model), used, text, source, bos).frame(k)


def attach(
    model: nn.Module,
    coder: Coder | Path | str,
    source: str | None = None,
    target: str | None = None,
    *,
    mode: Mode = "replace",
    latents: Sequence[int] | int | None = None,
    strength: Sequence[float] | float | None = None,
    include_position_0: bool = False,
) -> AbstractContextManager[Attached]:
    """A context in which a `transformers` model runs with a coder at its target site.

    With z the codes, d_i the decoder row of latent i in raw activation space, and z' the codes with those of `latents`
    multiplied by `strength`:

    - "replace": y ← decode(z')
    - "add error": y ← decode(z') + (y − decode(z)), so that everything else stays as it is
    - "ablate": the same with strength 0, which is y − Σ z_i d_i
    - "steer": y ← y + Σ strength_i d_i

    Args:
        model: of `transformers`, of a family with named sites, or of any family if the sites are module paths.
        coder: on the model's device; or a run by path or name, which is loaded to that device.
        source: site that the coder reads; None: the one it was trained on.
        target: site that changes; None: the one it was trained on. An SAE's is its source.
        latents: whose codes change (replace, add error), are removed (ablate), or are added (steer).
        strength: factor on the codes (replace, add error), or the code that is added (steer): one number, or one for
            each latent.
        include_position_0: change position 0 as well.

    Returns:
        The context; it yields an object whose `codes` [B, T, F] are those of the last forward pass.

    Raises:
        UsageError: an unknown site or mode, arguments that the mode does not take, or a coder that does not fit.
    """
    from .live.attach import attach as attached
    from .shared.coders.base import Coder

    if not isinstance(coder, Coder):
        coder = load_coder(coder).to(next(model.parameters()).device)
    return attached(
        model,
        coder,
        source,
        target,
        mode=mode,
        latents=latents,
        strength=strength,
        include_position_0=include_position_0,
    )


def _console(console: Console | None) -> Console:
    from .shared.console import Console

    return console or Console(quiet=True)


def _find(path: Path | str, kind: str) -> Path:
    """The folder of a cache or run, from a path or a name, as the commands find it."""
    path = Path(path)
    if path.exists() or len(path.parts) > 1:
        return path
    from .resolve import resolve
    from .shared.overview.find import named

    whole = resolve()
    return named(path, whole.harvest.cache_dir if kind == "cache" else whole.train.runs)


def _are_files(config: Sequence[Any]) -> bool:
    return all(isinstance(one, (str, Path)) for one in config)


def _layers(config: Any, settings: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """The files to read, and the settings over them."""
    from .shared.config.settings import merge

    if config is None:
        return [], dict(settings)
    if isinstance(config, Mapping):
        return [], merge(config, settings)
    return [str(one) for one in ([config] if isinstance(config, (str, Path)) else config)], dict(settings)


def _changed(config: C, settings: Mapping[str, Any], where: str) -> C:
    """A config with some settings changed, validated again."""
    from .resolve import plain
    from .shared.config.settings import merge, to_dict, validate

    if not settings:
        return config
    return validate(type(config), merge(to_dict(config), plain(settings), type(config)), where)
