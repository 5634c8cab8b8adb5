"""Which settings a command runs with: defaults < settings files < variant < `--set`, validated as one.

Sweep files add their own layers; :func:`resolve_sweep` lists the order.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, cast

from .shared.config import settings as settings_of
from .shared.config.registry import did_you_mean
from .shared.errors import ConfigError, UsageError, command
from .shared.objects.address import is_address

if TYPE_CHECKING:
    from .analyze.config import AnalyzeConfig
    from .explain.config import ExplainConfig
    from .harvest.config import HarvestConfig
    from .train.config import TrainConfig
    from .train.plan import Unharvested
    from .train.sweep import Cell, SweepConfig
    from .tune.config import TuneConfig

    class PipelineConfig:
        """The five sections of a settings file."""

        harvest: HarvestConfig
        train: TrainConfig
        tune: TuneConfig
        analyze: AnalyzeConfig
        explain: ExplainConfig

    class SweepFile(PipelineConfig):
        """The five sections and `sweep`: which settings vary."""

        sweep: SweepConfig


SETTINGS_FILE = Path("pipeline.yaml")


@functools.cache
def pipeline_class() -> type[PipelineConfig]:
    """The class of a whole settings file; its defaults are the embedded default."""
    from .analyze.config import AnalyzeConfig
    from .explain.config import ExplainConfig
    from .harvest.config import HarvestConfig
    from .train.config import TrainConfig
    from .tune.config import TuneConfig

    sections = {
        "harvest": HarvestConfig,
        "train": TrainConfig,
        "tune": TuneConfig,
        "analyze": AnalyzeConfig,
        "explain": ExplainConfig,
    }
    fields = [(name, cls, dataclasses.field(default_factory=cls)) for name, cls in sections.items()]
    made: type[Any] = dataclasses.make_dataclass("PipelineConfig", fields, frozen=True)
    return made


@functools.cache
def sweep_class() -> type[SweepFile]:
    """The class of a sweep file."""
    from .train.sweep import SweepConfig

    base: Any = pipeline_class()
    fields = [("sweep", SweepConfig, dataclasses.field(kw_only=True))]
    made: type[Any] = dataclasses.make_dataclass("SweepFile", fields, bases=(base,), frozen=True)
    return made


def variants() -> dict[str, Path]:
    """Name → file of every variant that `--variant` accepts, sorted by name."""
    folder = Path(__file__).parent / "train" / "variants"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"), key=lambda path: path.stem)}


def resolve(
    files: Sequence[str] = (),
    sets: Sequence[str] = (),
    variant: str | None = None,
    *,
    here: bool = True,
    changes: Mapping[str, Any] | None = None,
) -> PipelineConfig:
    """:func:`resolve_seeds` for those who need one run's settings: with the first seed."""
    return resolve_seeds(files, sets, variant, here=here, changes=changes)[0]


def resolve_seeds(
    files: Sequence[str] = (),
    sets: Sequence[str] = (),
    variant: str | None = None,
    *,
    seeds: int | None = None,
    here: bool = True,
    changes: Mapping[str, Any] | None = None,
) -> tuple[PipelineConfig, tuple[int, ...]]:
    """Settings from defaults < settings files < variant < `changes` < `--set`, and the seeds to train with.

    Args:
        files: settings files, presets, or folders of caches and runs, each overriding the ones before.
        sets: `KEY=VALUE` texts.
        seeds: how many seeds, from train.seed on; None: those that train.seed lists, or the one it is.
        here: without files, read ./pipeline.yaml if it exists.
        changes: settings by section, as a file would hold them: the arguments of a function.

    Raises:
        ConfigError: the settings are not valid; lists every problem and the sources that were read.
        UsageError: a file, preset or variant was not found.
    """
    cls = pipeline_class()
    settings = settings_of.to_dict(cls())
    sources = list(files) or ([str(SETTINGS_FILE)] if here and SETTINGS_FILE.is_file() else [])
    for source in sources:
        settings = settings_of.merge(settings, _read(source), cls)
    if variant is not None:
        settings = settings_of.merge(settings, {"train": _variant_settings(variant)}, cls)
    settings = settings_of.merge(settings, plain(changes or {}), cls)
    settings = settings_of.apply_set(settings, sets, cls)
    given = [
        *([f"--variant {variant}"] if variant else []),
        *(["arguments"] if changes else []),
        *(f"--set {text}" for text in sets),
    ]
    with _came_from([*sources, *given]):
        settings, drawn = _seeds(settings, seeds)
        return settings_of.validate(cls, settings), drawn


def _seeds(settings: dict[str, Any], asked: int | None) -> tuple[dict[str, Any], tuple[int, ...]]:
    """The settings with one seed, and all seeds: those of a list in train.seed, or `asked` of them from it on.

    Raises:
        ConfigError: the list is empty, has something else than seeds in it, or one twice.
        UsageError: both are given.
    """
    seed = settings["train"].get("seed", 0)
    if isinstance(seed, list):
        if asked is not None:
            raise UsageError(f"--seeds {asked}: train.seed lists its seeds already: {seed}", "give one of the two")
        if not seed or len(set(map(str, seed))) < len(seed) or not all(type(one) is int for one in seed):
            raise ConfigError([f"train.seed: expected a seed, or a list of different ones, found {seed}"])
        return {**settings, "train": {**settings["train"], "seed": seed[0]}}, tuple(seed)
    if asked is None or type(seed) is not int:
        return settings, (seed,)
    return settings, tuple(range(seed, seed + asked))


def resolve_sweep(
    file: str, files: Sequence[str] = (), sets: Sequence[str] = (), *, size: str | None = None
) -> tuple[SweepFile, list[Cell]]:
    """A sweep file and its runs.

    Order: defaults < `sweep.base` (or ./pipeline.yaml) < FILE < its size < settings files < variants and grid <
    `--set`. A `--set train.…` is applied twice: to the train section that every run starts from, and to each run after
    its variant and grid values.

    Args:
        file: path of the sweep file.
        size: one of its `sweep.sizes`, in place of the one that the file sets.

    Raises:
        ConfigError: the settings are not valid.
        UsageError: the file, a size, a variant or a base was not found, or `--set` changes what the grid varies.
    """
    from .train.sweep import SweepConfig, check_sets, expand

    refuse_folders(files, "train")
    if not Path(file).is_file():
        raise UsageError(f"sweep file not found: {file}", "give a YAML file; docs/sweeps.md shows one")
    cls, own = sweep_class(), settings_of.load_yaml(Path(file))
    with _came_from([file]):
        sweep = settings_of.validate(SweepConfig, own.get("sweep") or {}, "sweep")
    layers = [own]
    if size is not None:
        if size not in sweep.sizes:
            raise UsageError(f"--size {size}: not found in {file}", f"sweep.sizes: {', '.join(sweep.sizes) or 'none'}")
        layers += [{"sweep": {"size": size}}, sweep.sizes[size]]
    sources = ([str(SETTINGS_FILE)] if SETTINGS_FILE.is_file() else []) if sweep.base is None else list(sweep.base)
    settings = settings_of.to_dict(pipeline_class()())
    for layer in [*map(_read, sources), *layers, *map(_read, files)]:
        settings = settings_of.merge(settings, layer, cls)
    training = [text for text in sets if text.partition("=")[0].strip().partition(".")[0] == "train"]
    with _came_from([*sources, file, *files, *(f"--set {text}" for text in sets)]):
        whole = settings_of.validate(cls, settings_of.apply_set(settings, sets, cls))
        check_sets(whole.sweep, [text.partition("=")[0].strip().removeprefix("train.") for text in training])
        section = settings_of.to_dict(whole.train)
        section["cache"] = str(cache_to_train_on(whole))
        section["beside"] = [str(path) for path in caches_beside(whole)]

        def finish(one: dict[str, Any]) -> dict[str, Any]:
            """`--set` overrides variants and grid too."""
            return cast("dict[str, Any]", settings_of.apply_set({"train": one}, training, cls)["train"])

        return whole, expand(whole.sweep, section, _variant_settings, finish)


def train_configs(
    files: Sequence[str],
    sets: Sequence[str],
    names: Sequence[str],
    name: str | None = None,
    *,
    seeds: int | None = None,
    here: bool = True,
    changes: Mapping[str, Any] | None = None,
) -> list[TrainConfig]:
    """One training config per variant in `names` and seed, or per seed of the train section alone.

    Cache and name are filled in; with several seeds each run is called NAME-seedN.

    Args:
        names: variants.
        seeds: how many seeds, from train.seed on.
        name: name of the run; with several variants each run is called NAME-VARIANT. Without it, a variant of settings
            whose train.name came from a file (a preset) is called NAME-VARIANT too, so that it is not the run of the
            file itself.
        changes: settings of the section, over the variant's.

    Raises:
        UsageError: a variant is given twice.
    """
    if len(set(names)) < len(names):
        raise UsageError(f"--variant is given twice: {', '.join(names)}", "name each variant once")
    refuse_folders(files, "train")
    configs = []
    for variant in names or (None,):
        section = {"train": changes} if changes else None
        whole, drawn = resolve_seeds(files, sets, variant, seeds=seeds, here=here, changes=section)
        own: dict[str, Any] = {"cache": cache_to_train_on(whole), "beside": caches_beside(whole)}
        if whole.train.init is not None:
            from .shared.overview.find import named

            starts = tuple(named(path, whole.train.runs) for path in whole.train.starts)
            own["init"] = starts if isinstance(whole.train.init, tuple) else starts[0]
        if name is not None:
            own["name"] = name if len(names) < 2 else f"{name}-{variant}"
        elif (given := whole.train.name) and variant and (len(names) > 1 or not _sets_name(sets)):
            own["name"] = given if given.endswith(f"-{variant}") else f"{given}-{variant}"
        try:
            config = dataclasses.replace(whole.train, **own)
        except ValueError as error:
            raise UsageError(f"--{error}") from None
        if len(drawn) == 1:
            configs.append(config)
            continue
        configs += [dataclasses.replace(config, seed=seed, name=f"{config.run_name}-seed{seed}") for seed in drawn]
    return [one for config in configs for one in _by_layer(config, files, sets)]


def _by_layer(config: TrainConfig, files: Sequence[str], sets: Sequence[str]) -> list[TrainConfig]:
    """The runs of the layers that train.sites names, from the cache or, before its harvest, from the harvest's plan."""
    if config.sites is None:
        return [config]
    from .shared.cache import open_cache
    from .train.layers import by_layer

    assert config.cache is not None
    coming = unharvested(files, sets).get(config.cache)
    if coming is not None:
        return by_layer(config, {spec.name: spec for spec in coming.layout.sites})
    return by_layer(config, open_cache(config.cache).sites)


def _sets_name(sets: Sequence[str]) -> bool:
    return any(text.partition("=")[0].strip() == "train.name" for text in sets)


def analyze_config(whole: PipelineConfig, only: Sequence[str] = ()) -> AnalyzeConfig:
    """The settings of an analysis, with these reports only if `only` names some, and its cache found by name.

    Raises:
        UsageError: an unknown report.
    """
    from .analyze.config import only_reports
    from .shared.overview.find import named

    config = only_reports(whole.analyze, only)
    if config.cache is None:
        return config
    return dataclasses.replace(config, cache=named(config.cache, whole.harvest.cache_dir))


def tune_config(whole: PipelineConfig, run: Path | str | None = None, **given: str | None) -> TuneConfig:
    """The settings of a tuning, its run found by path or by name in train.runs.

    Args:
        run: the run to tune; None: tune.run.
        given: further settings from flags; None: those of the section.

    Raises:
        UsageError: a name that cannot be a folder's.
    """
    from .shared.overview.find import named

    chosen = whole.tune.run if run is None else Path(run)
    changes = {name: value for name, value in given.items() if value is not None}
    found = None if chosen is None else named(chosen, whole.train.runs)
    return dataclasses.replace(whole.tune, run=found, **changes)  # type: ignore[arg-type]


def explain_config(whole: PipelineConfig) -> ExplainConfig:
    """The settings of explanations, with their cache found by name."""
    from .shared.overview.find import named

    config = whole.explain
    if config.cache is None:
        return config
    return dataclasses.replace(config, cache=named(config.cache, whole.harvest.cache_dir))


def unharvested(files: Sequence[str], sets: Sequence[str]) -> dict[Path, Unharvested]:
    """The cache that `pipeline harvest` would write with these settings, by its folder, if it does not exist yet and
    train.cache names no other; for the dry run of a training.

    Raises:
        UsageError: the harvest cannot be planned.
    """
    whole = resolve(files, sets)
    path = cache_to_train_on(whole)
    from .shared.cache.format import MANIFEST
    from .shared.cache.mirror import at_hand

    if whole.train.cache is not None or (at_hand(path) / MANIFEST).is_file():
        return {}
    from .harvest.plan import plan
    from .train.plan import Unharvested

    planned = plan(whole.harvest)
    return {path: Unharvested(planned.layout, planned.notes)}


def cache_to_train_on(whole: PipelineConfig) -> Path:
    """The cache in train.cache, or else the one that `pipeline harvest` writes with the same settings."""
    from .harvest.config import cache_path
    from .shared.overview.find import named

    cache = whole.train.cache
    return cache_path(whole.harvest) if cache is None else named(cache, whole.harvest.cache_dir)


def caches_beside(whole: PipelineConfig) -> tuple[Path, ...]:
    """The caches in train.beside, each by its folder or its name."""
    from .shared.overview.find import named

    return tuple(named(path, whole.harvest.cache_dir) for path in whole.train.beside)


def _read(source: str) -> dict[str, Any]:
    """The settings in `-c SOURCE`: a settings file, a preset, or the folder of a cache or run with settings in it."""
    if is_address(source) or Path(source).is_dir():
        from .shared.overview.find import frozen_settings

        return frozen_settings(Path(source))
    return settings_of.load_yaml(settings_of.find_settings(source))


def refuse_folders(files: Sequence[str], section: str) -> None:
    """Refuses `-c FOLDER` of a cache or run without the settings that the command reads: it would use the defaults.

    Args:
        section: "harvest" or "train"; a cache's harvest is enough to train on it.

    Raises:
        UsageError: names the command that does read that folder.
    """
    from .shared.overview.find import frozen_settings

    for source in (Path(file) for file in files if Path(file).is_dir()):
        held = frozen_settings(source)
        if held.keys() & {section, "harvest"}:
            continue
        if "tune" in held:
            of = "the run was made by `pipeline tune`: it holds the settings of a tuning"
            raise UsageError(
                f"-c {source}: {of}, and none of section {section}", command("tune", "-c", source, "--resume")
            )
        cache = held["train"].get("cache")
        step = "pipeline status" if cache is None else command("harvest", "-c", cache)
        raise UsageError(f"-c {source}: a run holds the settings of a training, and none of section {section}", step)


def plain(value: Any) -> Any:
    """Arguments as a settings file would hold them: config objects as mappings, paths as text, tuples as lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return settings_of.to_dict(value)
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, PurePath) else value


def _variant_settings(variant: str) -> dict[str, Any]:
    """The keys of the train section that a variant overrides."""
    known = variants()
    if variant not in known:
        hint = f"-c {variant}" if variant.endswith((".yaml", ".yml")) else f"one of: {', '.join(known)}"
        raise UsageError(f"--variant {variant}: unknown variant{did_you_mean(variant, known)}", hint)
    return {"variant": variant, **settings_of.load_yaml(known[variant])}


@contextlib.contextmanager
def _came_from(read: Sequence[str]) -> Iterator[None]:
    """Add the sources that were read to the hint of a ConfigError."""
    try:
        yield
    except ConfigError as error:
        places = f"settings came from {', '.join(read) or 'the embedded default'}"
        raise ConfigError(error.problems, f"pipeline config show   (explains every setting; {places})") from None
