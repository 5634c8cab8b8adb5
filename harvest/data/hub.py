"""Documents of a dataset on the Hugging Face hub, streamed: only what is read is downloaded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ...shared.errors import UsageError
from ..config import HarvestConfig
from .documents import Columns, Document


class UnreachableError(UsageError):
    """The hub did not answer, so nothing is known of the dataset."""


def resolve_revision(name: str, revision: str | None) -> str:
    """The current commit of a branch or tag; None is the main branch.

    Raises:
        UsageError: the dataset was not found.
        UnreachableError: the hub cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        commit = HfApi().dataset_info(name, revision=revision).sha
    except (HfHubHTTPError, HFValidationError) as error:
        raise _unknown(name, error) from error
    except Exception as error:  # no connection: an error of whichever HTTP library the client uses
        unknown = _unknown(name, error, "no such local file, and the hub cannot be reached: ")
        raise UnreachableError(unknown.message, unknown.hint) from error
    if commit is None:
        raise UsageError(f"harvest.dataset: the hub has no commit for {name!r}")
    return commit


def documents(config: HarvestConfig, revision: str | None, wanted: Columns) -> Iterator[Document]:
    """The documents of one split in the hub's order.

    Raises:
        UsageError: the dataset, subset, split or column was not found.
    """
    import datasets

    try:
        stream: Any = datasets.load_dataset(
            config.dataset, config.dataset_subset, split=config.dataset_split, revision=revision, streaming=True
        )
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise _unknown(config.dataset, error) from error
    present = stream.column_names
    if present is not None:
        stream = stream.select_columns(wanted.select(present, config.dataset))
    for row, values in enumerate(stream):
        yield wanted.document(values, f"{config.dataset} row {row}")


def _unknown(name: str, error: Exception, why: str = "") -> UsageError:
    text = " ".join(str(error).split())
    return UsageError(
        f"harvest.dataset: cannot open {name!r}: {why}{text}",
        hint="demo, a local file or folder, or a hub dataset (private ones: `hf auth login` first)",
    )
