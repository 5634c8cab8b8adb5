"""`pipeline publish`: coders with a model card in one folder, and, only when told so, on the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..shared.cache.files import write_file, write_json
from ..shared.console import Console
from ..shared.dataset_text import dataset_text
from ..shared.errors import PipelineError, UsageError
from ..shared.runs.own_cache import recorded_cache
from .card import Published, card, licence_of
from .export import Wanted, export
from .folder import MARK, hashes, new_folder
from .load import Loaded, load_coders
from .plain import KLargest, Relu, plain_of

VERSION = 1


@dataclass(frozen=True)
class Publication:
    """What to publish.

    Attributes:
        repo: owner/name on the hub. out: the folder to write.
        upload: whether to upload it. private: whether a new repository is private.
        licence: of the base model; None: from its name. report: folder of a report on these runs.
        cache, model, rows, overwrite: as for an export.
    """

    repo: str
    out: Path
    upload: bool = False
    private: bool = False
    licence: str | None = None
    report: Path | None = None
    cache: Path | None = None
    model: str | None = None
    rows: int = 4096
    overwrite: bool = False


@dataclass(frozen=True)
class PublishResult:
    """The folder, and where it went: None if it was not uploaded."""

    out: Path
    repo: str
    coders: list[dict[str, Any]]
    url: str | None
    again: str

    def to_dict(self) -> dict[str, Any]:
        return {
            "out": str(self.out),
            "repo": self.repo,
            "coders": self.coders,
            "uploaded": self.url is not None,
            "url": self.url,
        }

    def __str__(self) -> str:
        lines = [f"{self.out}: README.md and {len(self.coders)} coder{'s' if len(self.coders) > 1 else ''}"]
        for one in self.coders:
            lines += [f"  {one['name']}", *(f"    {folder}" for folder in one["formats"].values())]
        done = [f"uploaded: {self.url}"] if self.url else ["not uploaded: read its README.md first"]
        return "\n".join([*lines, *done, *([] if self.url else [f"next: {self.again}"])])


def publish(
    paths: Sequence[Path | str], wanted: Publication, again: str, console: Console | None = None
) -> PublishResult:
    """Write the folder, and upload it if `wanted.upload`.

    Args:
        paths: runs, or coders in any format that is read.
        again: the command that uploads, for the message.

    Raises:
        UsageError: the repository's name or the licence is missing or malformed, or the folder exists.
        PipelineError: the hub refused the upload; the folder stays.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", wanted.repo):
        raise UsageError(f"{wanted.repo!r} is not owner/name", "pipeline publish RUN you/name")
    console = console or Console(quiet=True)
    with new_folder(wanted.out, wanted.overwrite) as folder:
        coders = [_write(loaded, path, wanted, folder, console) for path in paths for loaded in load_coders(path)]
        model = coders[0].entry["model"]
        licence = wanted.licence or licence_of(model)
        if licence is None:
            raise UsageError(
                f"the licence of {model or 'the base model'} is not known", "--licence ID, as the hub names it"
            )
        text = card(wanted.repo, coders, licence, wanted.report)
        write_file(folder / "README.md", [text.encode()])
        listed = [{"name": one.entry["name"], "formats": dict(one.formats)} for one in coders]
        document = {"format_version": VERSION, "repo": wanted.repo, "licence": licence, "coders": listed}
        write_json(folder / MARK, {**document, "files": hashes(folder)})
    url = upload(wanted.out, wanted.repo, private=wanted.private) if wanted.upload else None
    return PublishResult(wanted.out, wanted.repo, listed, url, again)


def _write(loaded: Loaded, path: Path | str, wanted: Publication, folder: Path, console: Console) -> Published:
    """One coder in three formats, in a folder named by what it reads and writes."""
    facts = loaded.facts
    place = facts.source if facts.source == facts.target else f"{facts.source}-to-{facts.target}"
    place = re.sub(r"[^\w.-]", "-", place)
    if (folder / place).exists():
        place = f"{place}-{facts.name}"
    documents: dict[str, dict[str, Any]] = {}
    formats: dict[str, str] = {}
    for form in formats_of(loaded):
        out = folder / place / form
        told = Wanted(to=form, out=out, cache=wanted.cache, model=wanted.model, rows=wanted.rows)
        try:
            documents[form] = export([path], told, Console(quiet=True) if documents else console).document
        except UsageError as error:
            console.warn(f"{facts.name}: not as {form}: {error.message}")
            continue
        inner = documents[form].get("hookpoints")
        formats[form] = f"{place}/{form}" + (f"/{inner[0]}" if inner else "")
    entry = documents["safetensors"]["coders"][0]
    context, dataset = trained_on(loaded)
    return Published(entry, formats, documents, loaded.final.get("summary", {}), context, dataset)


def trained_on(loaded: Loaded) -> tuple[int | None, str | None]:
    """(tokens in a sequence, dataset) of what a coder was trained on, as far as it is known."""
    facts = loaded.facts
    if facts.dataset is None and loaded.final:
        try:
            cache = recorded_cache(loaded.final.get("cache") or {}, loaded.path)
        except PipelineError:  # not found, or its bucket does not answer
            return facts.context, facts.dataset
        dataset = cache.config.get("harvest", {}).get("dataset")
        return cache.ctx, None if dataset is None else dataset_text(dataset)
    return facts.context, facts.dataset


def formats_of(loaded: Loaded) -> tuple[str, ...]:
    """The plain form, SAELens, and the tool that holds this kind of coder best besides."""
    plain = plain_of(loaded.coder)
    if plain.tied and plain.w_skip is None:
        return "safetensors", "saelens", "dictionary-learning"
    if isinstance(plain.activation, (KLargest, Relu)) and plain.d_in == plain.d_out:
        return "safetensors", "saelens", "sparsify"
    return "safetensors", "saelens", "gemma-scope"


def upload(folder: Path, repo: str, *, private: bool) -> str:
    """Upload a folder as a commit; makes the repository if it does not exist. Returns the commit's address.

    Raises:
        PipelineError: the hub refused, or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    api = HfApi()
    kept = f"{folder} is complete; the same command with --overwrite tries again"
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        done = api.upload_folder(repo_id=repo, folder_path=folder, commit_message=f"Sparse coders: {folder.name}")
    except LocalTokenNotFoundError:
        raise PipelineError(f"no account is logged in. {kept}", "hf auth login") from None
    except OfflineModeIsEnabled:
        raise PipelineError(f"HF_HUB_OFFLINE is set, so nothing is uploaded. {kept}", "unset HF_HUB_OFFLINE") from None
    except HfHubHTTPError as error:
        first = str(error).splitlines()[0]
        raise PipelineError(
            f"the hub refused the upload: {first}. {kept}", "hf auth whoami shows the account"
        ) from None
    except OSError as error:
        raise PipelineError(f"the hub cannot be reached: {error}. {kept}", "check the network") from None
    return str(done.commit_url)
