"""Documents of a dataset on the Hugging Face hub, streamed: only what is read is downloaded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ...shared.errors import UsageError
from .documents import Columns, Document
from .reading import Reading


@dataclass(frozen=True)
class HubSource:
    """A dataset on the hub: its name, its configuration and its split."""

    name: str
    subset: str | None = None
    split: str = "train"


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


def documents(source: HubSource, revision: str | None, wanted: Columns, reading: Reading) -> Iterator[Document]:
    """The documents of one split in the hub's order.

    Raises:
        UsageError: the dataset, subset, split or column was not found, or a file of it cannot be read.
        BadRowError: a row cannot be used, and the reading does not skip such rows.
    """
    import datasets

    name = source.name
    try:
        stream: Any = datasets.load_dataset(name, source.subset, split=source.split, revision=revision, streaming=True)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise _unknown(name, error) from error
    present = stream.column_names
    if present is not None:
        stream = stream.select_columns(wanted.select(present, name))
    rows = ((values, f"{name} row {row}") for row, values in enumerate(_explained(stream, name)))
    yield from reading.each(rows, lambda row: wanted.document(*row))


def _explained(stream: Iterable[Any], name: str) -> Iterator[Any]:
    """The rows; an error of the library names the dataset and the row."""
    import datasets
    import pyarrow as pa

    row = 0
    try:
        for values in stream:
            yield values
            row += 1
    except (OSError, ValueError, pa.ArrowException, datasets.exceptions.DatasetsError) as error:
        text = " ".join(str(error).split())
        raise UsageError(
            f"harvest.dataset: cannot read {name} from row {row} on: {text}",
            hint="the same command resumes; if it fails there again, download the dataset and repair its files",
        ) from error


def _unknown(name: str, error: Exception, why: str = "") -> UsageError:
    text = " ".join(str(error).split())
    return UsageError(
        f"harvest.dataset: cannot open {name!r}: {why}{text}",
        hint="demo, a local file or folder, or a hub dataset (private ones: `hf auth login` first)",
    )
