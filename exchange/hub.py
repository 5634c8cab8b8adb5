"""`hf://owner/name[/folder]`: coders on the Hugging Face hub, from the local hub cache or downloaded into it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ..shared.errors import DataError, PipelineError, UsageError

SCHEME = "hf://"

KINDS = ("*.json", "*.yaml", "*.safetensors", "*.npz", "*.pt", "*.md")
"""Files that are fetched; nothing else of a repository is."""


@dataclass(frozen=True)
class HubPath:
    """A place on the hub: `hf://owner/name@revision/folder`.

    Attributes:
        repo: owner/name. folder: below it, "" for all of it. revision: a branch, tag or commit; None: the default.
    """

    repo: str
    folder: str = ""
    revision: str | None = None

    def __str__(self) -> str:
        at = f"@{self.revision}" if self.revision else ""
        return f"{SCHEME}{self.repo}{at}{'/' + self.folder if self.folder else ''}"


def is_hub_path(path: str | Path) -> bool:
    """Whether a path names a place on the hub; a Path has one of the two slashes."""
    return str(path).startswith(("hf://", "hf:/"))


def parse_hub_path(text: str | Path) -> HubPath:
    """Raises UsageError where the text is not of the form hf://owner/name[@revision][/folder]."""
    match = re.fullmatch(r"hf:/{1,2}([\w.-]+/[\w.-]+)(?:@([\w.-]+))?(?:/(.+?))?/?(?:\?revision=([\w.-]+))?", str(text))
    if match is None:
        raise UsageError(f"{text} is not of the form hf://owner/name[@revision][/folder]", "hf://owner/name/folder")
    return HubPath(match[1], match[3] or "", match[2] or match[4])


def local_folder(text: str | Path) -> Path:
    """The local copy of a place on the hub: a folder (or file) in the hub's cache, downloaded if missing.

    Raises:
        DataError: there is no such repository, folder or revision, or it cannot be reached and is not in the cache.
    """
    place = parse_hub_path(text)
    patterns = None
    if place.folder:
        patterns = [place.folder, *(f"{place.folder}/{kind}" for kind in KINDS)]
    snapshot = _snapshot(place, patterns or list(KINDS))
    found = snapshot / place.folder
    if not found.exists():
        raise DataError(f"{place}: {place.repo} has no {place.folder!r}", f"{SCHEME}{place.repo} names all of it")
    return found


def local_file(text: str) -> Path:
    """The local copy of one file on the hub."""
    return local_folder(text)


def _snapshot(place: HubPath, patterns: list[str]) -> Path:
    from huggingface_hub import errors as hub
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(place.repo, revision=place.revision, allow_patterns=patterns))
    except hub.GatedRepoError:
        raise DataError(
            f"{place.repo} is gated: accept its terms on the hub with your account", "hf auth login, then again"
        ) from None
    except hub.RevisionNotFoundError:
        raise DataError(f"{place.repo} has no revision {place.revision!r}", f"{SCHEME}{place.repo}") from None
    except hub.RepositoryNotFoundError:
        raise DataError(
            f"the hub has no model repository {place.repo}, or it is private", "hf auth login if it is yours"
        ) from None
    except hub.HFValidationError as error:
        raise UsageError(f"{place}: {error}", "hf://owner/name/folder") from None
    except (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled) as error:
        raise DataError(
            f"{place} is not in the local hub cache, and the hub cannot be reached ({_why(error)})",
            f"hf download {place.repo} on a machine with a network, and copy the hub cache; or give a local folder",
        ) from None
    except hub.HfHubHTTPError as error:
        raise PipelineError(f"the hub refused {place}: {str(error).splitlines()[0]}", "try again later") from None


def _why(error: Exception) -> str:
    cause = error.__cause__ or error
    return (str(cause).splitlines() or [type(cause).__name__])[0][:200]
