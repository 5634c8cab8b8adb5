"""The dataset that a config names: the demo corpus, local files, or one on the hub."""

from __future__ import annotations

import hashlib
import json
import mimetypes
import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from ..shared.errors import UsageError
from .config import HarvestConfig
from .data import files, hub, local
from .data.documents import Columns, Document
from .data.files import DataFile
from .data.mixture import Part, mixed
from .data.reading import Reading

_GLOB = "*?["


@dataclass(frozen=True)
class Dataset:
    """A dataset.

    Attributes:
        documents: starts an iteration; each one gives the same documents in the same order. The reading decides about
            bad rows, and counts them.
        identity: changes with the content of the dataset; part of the cache's identity. None: not known (plans only).
        bytes: size of a local dataset on disk, None for one on the hub; of a mixture, of what it has until it ends.
        files: of a local dataset, in the order they are read.
        skipped: files of a known kind that are not read, and why.
        parts: identities of the datasets of a mixture, in order.
    """

    documents: Callable[[Reading], Iterable[Document]]
    identity: str | None
    bytes: int | None
    files: tuple[DataFile, ...] = ()
    skipped: tuple[tuple[Path, str], ...] = ()
    parts: tuple[str, ...] = ()


def open_dataset(config: HarvestConfig) -> Dataset:
    """Finds the dataset, or those of a mixture, and reads no document.

    Raises:
        UsageError: it was not found, or ``tokens: null`` is set for a hub dataset.
    """
    if config.mixture:
        return _mixture(config, open_dataset)
    if config.dataset == "demo":
        from .demo import corpus

        if config.format != "text":
            raise UsageError(
                f"harvest.format: the demo is text, found format: {config.format}", hint="--set harvest.dataset=FILE"
            )

        return Dataset(lambda _: corpus.documents(), f"python {platform.python_version()}", 0)
    if not _on_hub(config.names):
        return _local(config)
    if config.tokens is None:
        raise UsageError(
            "harvest.tokens: null takes all of a dataset and needs a local one; a hub dataset needs a number",
            hint="--set harvest.tokens=5000000",
        )
    name, columns = str(config.dataset), columns_of(config)
    commit = hub.resolve_revision(name, config.dataset_revision)
    source = hub.HubSource(name, config.dataset_subset, config.dataset_split)
    return Dataset(lambda reading: hub.documents(source, commit, columns, reading), commit, None)


def _local(config: HarvestConfig) -> Dataset:
    found = files.find(config.names, config.dataset_split)
    columns = columns_of(config)
    return Dataset(
        lambda reading: local.documents(found.files, columns, reading),
        local.fingerprint(found.files),
        sum(file.path.stat().st_size for file in found.files),
        tuple(found.files),
        tuple(found.skipped),
    )


def _mixture(config: HarvestConfig, opened: Callable[[HarvestConfig], Dataset]) -> Dataset:
    """The datasets of a mixture as one."""
    found = [(part, opened(config.of_part(part))) for part in config.mixture]
    parts = [Part(dataset.documents, part.weight, part.name, part.domain) for part, dataset in found]
    total = sum(part.weight for part in config.mixture)
    # a mixture ends with the part that ends first
    sizes = [None if one.bytes is None else int(one.bytes * total / part.weight) for part, one in found]
    known = [size for size in sizes if size is not None]
    identities = tuple(dataset.identity or "" for _, dataset in found)
    facts = [[part.weight, part.domain, part.subset, part.split, part.text_column] for part in config.mixture]
    digest = hashlib.sha256(json.dumps([facts, identities]).encode()).hexdigest()
    return Dataset(
        lambda reading: mixed(parts, config.shuffle_seed, reading),
        digest if all(identities) else None,
        min(known) if len(known) == len(sizes) else None,
        tuple(file for _, dataset in found for file in dataset.files),
        tuple(one for _, dataset in found for one in dataset.skipped),
        identities,
    )


def unresolved(config: HarvestConfig) -> Dataset:
    """A hub dataset whose commit is not known: enough for a plan, which reads no document of it."""
    if config.mixture:
        return _mixture(config, lambda part: open_dataset(part) if is_local(part) else unresolved(part))
    columns = columns_of(config)
    source = hub.HubSource(str(config.dataset), config.dataset_subset, config.dataset_split)
    return Dataset(lambda reading: hub.documents(source, config.dataset_revision, columns, reading), None, None)


def is_local(config: HarvestConfig) -> bool:
    """Whether the dataset lies on this machine, of a mixture every part."""
    if config.mixture:
        return all(is_local(config.of_part(part)) for part in config.mixture)
    return config.dataset == "demo" or (not _on_hub(config.names) and files.are_here(config.names))


_TYPES = mimetypes.MimeTypes()
"""Endings of file names, those of the standard library alone: `thesis.pdf` is no dataset of the hub."""


def _on_hub(dataset: str | tuple[str, ...]) -> bool:
    """Whether the setting is the name of a dataset on the hub: no path, no pattern, no file name."""
    if not isinstance(dataset, str) or Path(dataset).expanduser().exists():
        return False
    is_a_path = dataset.startswith((".", "/", "~")) or dataset.count("/") > 1
    is_a_file = files.kind_of(Path(dataset)) is not None or _TYPES.guess_type(dataset)[0] is not None
    return not (is_a_path or is_a_file or any(sign in dataset for sign in _GLOB))


def columns_of(config: HarvestConfig) -> Columns:
    """The columns of the settings."""
    prompts = config.packing == "prompts"
    return Columns(config.content_column, config.domain_column, config.label_columns, prompts, config.format)
