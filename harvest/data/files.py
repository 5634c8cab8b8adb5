"""Which files a dataset on this machine consists of, in which order, and which are passed over and why."""

from __future__ import annotations

import glob
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...shared.config.registry import did_you_mean
from ...shared.errors import DataError, UsageError
from ...shared.untrusted import read_object
from .decode import COMPRESSIONS
from .tables import is_json_table

TABLES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow")
DOCUMENTS = (".txt", ".md", ".rst", ".tar", ".tgz")
_WHOLE = (".parquet", ".arrow")  # have a compression of their own

KINDS = f"{' '.join(TABLES)} (tables), {' '.join(DOCUMENTS)} (documents); text also {' '.join(COMPRESSIONS)}"

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Split → the words in a file's or folder's name that mark it, as `datasets` has them."""

_DESCRIPTIONS = {
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "state.json",
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "package.json",
}
"""Files that other programs leave beside data; they hold no rows."""


@dataclass(frozen=True)
class DataFile:
    """A file of a dataset. ``name`` is its place in it, which enters the dataset's fingerprint."""

    path: Path
    name: str


@dataclass
class Found:
    """The files in the order they are read, and those of a known kind that are not read, with the reason."""

    files: list[DataFile] = field(default_factory=list)
    skipped: list[tuple[Path, str]] = field(default_factory=list)
    _real: dict[Path, Path] = field(default_factory=dict)

    def add(self, path: Path, name: str) -> None:
        """Adds a file, unless it is listed already: by another pattern, or through a link."""
        earlier = self._real.setdefault(path.resolve(), path)
        if earlier is path:
            self.files.append(DataFile(path, name))
        else:
            self.skipped.append((path, f"the same file as {earlier}"))


def find(dataset: str | Sequence[str], split: str) -> Found:
    """The files of a dataset: of a file, a folder, a glob pattern, or several of them one after the other.

    Raises:
        UsageError: nothing was found, or what was found can be meant in several ways.
    """
    found = Found()
    for given in [dataset] if isinstance(dataset, str) else dataset:
        path = Path(given).expanduser()
        if path.exists():
            _add(found, path, split)
            continue
        matches = _matches(path)
        if not matches:
            raise UsageError(
                f"harvest.dataset: not found: {given}",
                hint="give demo, a local file, folder or glob pattern, or a hub dataset",
            )
        for match in matches:
            if match.is_file() and kind_of(match) is not None:
                found.add(match, match.name)
    if not found.files:
        skipped = "".join(f"\n  {path}: {reason}" for path, reason in found.skipped[:10])
        raise UsageError(f"harvest.dataset: no data files found in {dataset}{skipped}", hint=f"expected {KINDS}")
    return found


def are_here(dataset: str | Sequence[str]) -> bool:
    """Whether every file, folder and pattern finds something."""
    given = [Path(one).expanduser() for one in ([dataset] if isinstance(dataset, str) else dataset)]
    return all(path.exists() or _matches(path) for path in given)


def _matches(pattern: Path) -> list[Path]:
    # not Path.glob, which does not follow links to folders
    return [Path(match) for match in sorted(glob.glob(str(pattern), recursive=True))]  # noqa: PTH207


def kind_of(file: Path) -> str | None:
    """The suffix that says how a file is read, without that of its compression; None for an unknown kind."""
    name = file.name.lower()
    compression = next((suffix for suffix in COMPRESSIONS if name.endswith(suffix)), "")
    name = name.removesuffix(compression)
    kind = next((suffix for suffix in (*TABLES, *DOCUMENTS) if name.endswith(suffix)), None)
    return None if compression and kind in (*_WHOLE, ".tgz") else kind


def _add(found: Found, path: Path, split: str) -> None:
    """What is meant by an existing file or folder."""
    if not path.is_dir():
        if kind_of(path) is None:
            raise UsageError(f"harvest.dataset: {path} has an unknown suffix", hint=f"expected {KINDS}")
        found.add(path, path.name)
        return
    saved = _saved(path, split)
    inside = (
        saved if saved is not None else _of_split(_of_one_kind(_walk(path, found, split), found), split, path, found)
    )
    for file in inside:
        found.add(file, file.relative_to(path).as_posix())


def _saved(folder: Path, split: str) -> list[Path] | None:
    """The files of a dataset that `datasets` saved (`save_to_disk`), as its own state file lists them; None for any
    other folder.
    """
    if (folder / "dataset_dict.json").is_file():
        splits = read_object(folder / "dataset_dict.json", "copy the whole folder again").get("splits")
        if not isinstance(splits, list) or not all(isinstance(one, str) for one in splits):
            raise UsageError(
                f"harvest.dataset: {folder / 'dataset_dict.json'} lists no splits", hint="copy the whole folder again"
            )
        if split not in splits:
            raise UsageError(
                f"harvest.dataset_split: {folder} has no split {split!r}{did_you_mean(split, splits)}",
                hint=f"its splits: {', '.join(splits)}",
            )
        folder = folder / split
    state = folder / "state.json"
    if not state.is_file():
        return None
    try:
        listed = read_object(state).get("_data_files")
    except DataError:
        return None
    if listed is None:
        return None
    if not isinstance(listed, list) or not all(isinstance(one, dict) and "filename" in one for one in listed):
        raise UsageError(f"harvest.dataset: {state} lists no files", hint="copy the whole folder again")
    found = [folder / str(entry["filename"]) for entry in listed]
    if lost := [file for file in found if not file.is_file()]:
        raise UsageError(
            f"harvest.dataset: {state} lists {lost[0].name}, which was not found", hint="copy the whole folder again"
        )
    return found


def _walk(top: Path, found: Found, split: str) -> list[Path]:
    """Files of a known kind below a folder by the alphabet of their paths; links to folders are followed.

    Raises:
        UsageError: a link leads back to a folder that it is in, or to nothing.
    """
    files: list[Path] = []

    def look(folder: Path, above: tuple[Path, ...]) -> None:
        real = folder.resolve()
        if real in above:
            raise UsageError(
                f"harvest.dataset: {folder} is a link to {real}, which it lies in: the folders never end",
                hint=f"rm {folder}, or name the files: --set 'harvest.dataset={top}/*.jsonl'",
            )
        saved = _saved(folder, split) if above else None
        if saved is not None:
            files.extend(saved)
            return
        for path in folder.iterdir():
            if path.is_dir() and not path.name.startswith("."):
                look(path, (*above, real))
            elif kind_of(path) is not None and not path.is_dir():
                reason = _no_data(path)
                if reason is not None:
                    found.skipped.append((path, reason))
                else:
                    files.append(path)

    look(top, ())
    found.skipped.sort()
    return sorted(files)


def _no_data(file: Path) -> str | None:
    """Why a file of a known kind is not data; None if it is."""
    if file.name.startswith("."):
        return "hidden"
    if not file.exists():
        raise UsageError(
            f"harvest.dataset: {file} is a link to {file.readlink()}, which was not found",
            hint="restore the file, or remove the link",
        )
    if file.name in _DESCRIPTIONS:
        return "describes data or a model"
    if file.name.startswith("cache-") and (file.parent / "dataset_info.json").is_file():
        return "a cache of `datasets`"
    if kind_of(file) == ".json" and not is_json_table(file):
        return "neither an array nor one object a line"
    return None


def _of_one_kind(files: list[Path], found: Found) -> list[Path]:
    """Only the tables where there are any: the documents beside them describe them.

    Raises:
        UsageError: one table lies there in two formats.
    """
    tables = [file for file in files if kind_of(file) in TABLES]
    if not tables:
        return files
    found.skipped += [(file, "a document beside tables") for file in files if file not in set(tables)]
    by_stem: dict[Path, list[Path]] = defaultdict(list)
    for file in tables:
        by_stem[file.parent / _stem(file)].append(file)
    for same in by_stem.values():
        if len(same) > 1:
            pattern = same[0].parent / f"*{same[0].name.removeprefix(_stem(same[0]))}"
            raise UsageError(
                f"harvest.dataset: {same[0]} and {same[1].name} look like one table in two formats",
                hint=f"name the ones to read: --set 'harvest.dataset={pattern}'",
            )
    return tables


def _of_split(files: list[Path], split: str, top: Path, found: Found) -> list[Path]:
    """The files of the split that the settings name, where names of files or folders tell splits apart.

    Raises:
        UsageError: there is no such split, or some files belong to none.
    """
    wanted = next((name for name, words in SPLITS.items() if split in words), split)
    split_of = {file: _split_of(file.relative_to(top)) for file in files}
    known = [name for name in SPLITS if name in split_of.values()]
    unknown = [file for file in files if split_of[file] is None]
    tables = any(kind_of(file) in TABLES for file in files)
    if not tables and (unknown or len(known) < 2):
        known = []  # notes on testing are no test set
    if not known and wanted == "train":
        return files
    if known and unknown and wanted == "train":
        some = next(file for file in files if split_of[file] is not None)
        raise UsageError(
            f"harvest.dataset: {some} looks like a part of the split {split_of[some]!r}, but {unknown[0]} like a part "
            "of none",
            hint=f"name the files to read: --set 'harvest.dataset=[{unknown[0]}]', or a pattern: '{top}/*.jsonl'; "
            f"or a split: --set harvest.dataset_split={split_of[some]}",
        )
    if wanted not in known:
        names = f"its splits: {', '.join(known)}; --set harvest.dataset_split={known[0]}" if known else ""
        raise UsageError(
            f"harvest.dataset_split: {top} has no files of a split {split!r}{did_you_mean(split, known)}",
            hint=names or "no file's or folder's name in it tells a split: --set harvest.dataset_split=train takes all",
        )
    found.skipped += [(file, f"split {split_of[file]}") for file in files if split_of[file] not in (wanted, None)]
    found.skipped += [(file, "of no split") for file in unknown]
    return [file for file in files if split_of[file] == wanted]


def _split_of(relative: Path) -> str | None:
    """The split that a file's name tells, or else that of a folder it is in; None for no split or several."""
    for part in (_stem(relative), *reversed(relative.parts[:-1])):
        words = set(re.split(r"[^a-z]+", part.lower()))
        names = [name for name, marks in SPLITS.items() if words & set(marks)]
        if names:
            return names[0] if len(names) == 1 else None
    return None


def _stem(file: Path) -> str:
    """The name without the suffixes of its kind and compression."""
    kind = kind_of(file)
    return file.name[: file.name.lower().rfind(kind)] if kind else file.stem
