"""The dataset that a config names: the demo corpus, local files, or one on the hub."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from ..shared.errors import UsageError
from .config import HarvestConfig
from .data import hub, local
from .data.documents import Columns, Document


@dataclass(frozen=True)
class Dataset:
    """A dataset.

    Attributes:
        documents: starts an iteration; each one gives the same documents in the same order.
        identity: changes with the content of the dataset; part of the cache's identity. None: not known (plans only).
        bytes: size of a local dataset on disk, None for one on the hub.
    """

    documents: Callable[[], Iterable[Document]]
    identity: str | None
    bytes: int | None


def open_dataset(config: HarvestConfig) -> Dataset:
    """Finds the dataset and reads no document.

    Raises:
        UsageError: it was not found, or ``tokens: null`` is set for a hub dataset.
    """
    if config.dataset == "demo":
        from .demo import corpus

        return Dataset(corpus.documents, f"python {platform.python_version()}", 0)
    columns = columns_of(config)
    path = Path(config.dataset).expanduser()
    if path.exists():
        files = local.files_of(path, config.dataset_split)
        digest = local.fingerprint(files, path if path.is_dir() else path.parent)
        return Dataset(lambda: local.documents(files, columns), digest, sum(file.stat().st_size for file in files))
    is_a_path = config.dataset.startswith((".", "/", "~")) or config.dataset.count("/") > 1
    if is_a_path or local.is_data_file(path):
        raise UsageError(
            f"harvest.dataset: not found: {config.dataset}", hint="give demo, a local file or folder, or a hub dataset"
        )
    if config.tokens is None:
        raise UsageError(
            "harvest.tokens: null takes all of a dataset and needs a local one; a hub dataset needs a number",
            hint="--set harvest.tokens=5000000",
        )
    commit = hub.resolve_revision(config.dataset, config.dataset_revision)
    return Dataset(lambda: hub.documents(config, commit, columns), commit, None)


def unresolved(config: HarvestConfig) -> Dataset:
    """A hub dataset whose commit is not known: enough for a plan, which reads no document of it."""
    columns = columns_of(config)
    return Dataset(lambda: hub.documents(config, config.dataset_revision, columns), None, None)


def is_local(config: HarvestConfig) -> bool:
    """Whether the dataset lies on this machine."""
    return config.dataset == "demo" or Path(config.dataset).expanduser().exists()


def columns_of(config: HarvestConfig) -> Columns:
    """The columns of the settings."""
    return Columns(config.text_column, config.domain_column, config.label_columns, config.packing == "prompts")
