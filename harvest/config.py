"""Settings of a harvest."""

from __future__ import annotations

import math
import platform
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ..models.site_names import every_layer, parse_site
from ..shared.config.settings import identity, to_dict
from ..shared.dataset_text import dataset_text
from ..shared.hook_names import from_hook_names
from ..shared.objects.address import settled

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Attention = Literal["auto", "eager", "sdpa", "flex_attention", "flash_attention_2"]
Separator = Literal["eos", "none"]
Packing = Literal["concat", "document", "prompts"]
Storage = Literal["bfloat16", "float32", "fp8", "int8"]
OnBadRow = Literal["error", "skip"]
Format = Literal["text", "chat", "tokens"]

_RUNTIME = frozenset({"cache_dir", "name", "device", "writers", "buffers", "on_bad_row", "device_map", "max_memory"})
"""Settings of where and how the work is done. All others decide the content of the cache. (`on_bad_row` does not: where
one policy finishes, a cache of the same dataset is the same with the other, because a bad row lets only `skip` finish.)
"""

_CHOICE = ("max_document_tokens", "long_documents", "shuffle_documents", "shuffle_seed")
_LATER = ("bos", "storage_of", "layout", "chunk_rows", "format", "special_tokens", "train_roles", *_CHOICE)
"""Settings newer than the first caches: omitted at their defaults, so that older caches keep name and identity."""


@dataclass(frozen=True)
class DatasetPart:
    """One dataset of a mixture; documents are drawn from all parts in turn, by weight, until one has none left."""

    source: str | tuple[str, ...]
    """As `dataset`: demo, files, folders or patterns, or a hub dataset."""
    weight: float = 1.0
    """Its share of the documents, relative to the other parts."""
    domain: str | None = None
    """Domain of its documents; null: that of `domain_column`, else the source."""
    subset: str | None = None
    """As `dataset_subset`, for this part."""
    split: str = "train"
    """As `dataset_split`, for this part."""
    revision: str | None = None
    """As `dataset_revision`, for this part."""
    text_column: str | None = None
    """As `text_column`, for this part; null: the harvest's."""

    def __post_init__(self) -> None:
        if not self.source:
            raise ValueError("source: expected demo, a file, a folder, a pattern or a hub dataset, found nothing")
        if not 0 < self.weight < math.inf:
            raise ValueError(f"weight: expected a positive number, found {self.weight}")

    @property
    def name(self) -> str:
        """The part in a message."""
        return self.source if isinstance(self.source, str) else ", ".join(self.source)


@dataclass(frozen=True)
class HarvestConfig:
    """Which activations of which model on which text go into the cache. The defaults are the embedded demo."""

    model: str = "demo"
    """`demo`, a folder with a `transformers` checkpoint, or the name of one on the Hugging Face hub."""
    model_revision: str | None = None
    """Branch, tag or commit of a hub model; the commit it resolves to is recorded in the cache."""
    dataset: str | tuple[str | DatasetPart, ...] = "demo"
    """`demo`; a local file, folder or glob pattern, or a list of them, read in this order (docs/inputs.md lists the
    kinds); a hub dataset; or a mixture: a list of {source, weight, domain, …}, interleaved by weight."""
    dataset_subset: str | None = None
    """Configuration of a hub dataset, such as `sample-10BT`."""
    dataset_split: str = "train"
    """Split of a hub dataset, of a saved one, or of a folder whose files' names tell splits."""
    dataset_revision: str | None = None
    """Branch, tag or commit of a hub dataset; the commit it resolves to is recorded in the cache."""
    format: Format = "text"
    """What the dataset holds: text; chat (lists of messages, written out by the tokenizer's chat template); or tokens
    (lists of the model's own token ids)."""
    text_column: str = "text"
    """Column (or JSON key) that holds the text. At its default, the other formats read `messages` and `input_ids`."""
    special_tokens: Literal["text", "parse"] = "text"
    """How a special token that a text spells out is read (`<eos>`, `<|im_start|>`): as plain text, which is counted, or
    as the token. A chat template's own are always tokens."""
    train_roles: tuple[str, ...] | None = None
    """Of chats, the roles whose rows are trained on, such as [assistant]; `template` is the template's own text. Rows
    of other roles are in the cache, flagged; null: every row is trained on."""
    max_document_tokens: int | None = None
    """Longest document in tokens; null: no limit. `long_documents` decides about longer ones."""
    long_documents: Literal["cut", "split"] = "cut"
    """What becomes of a document longer than `max_document_tokens`: cut keeps its beginning, split makes a document of
    each part. A part that does not end the document gets no EOS."""
    shuffle_documents: int = 0
    """Shuffle the documents in a buffer of this many; 0: the dataset's order. Memory: the buffer's text."""
    shuffle_seed: int = 0
    """Seed of that order, and of the order in which a mixture takes documents from its parts."""
    domain_column: str | None = None
    """Column with the kind of a document; recorded in the cache's documents.jsonl."""
    label_columns: tuple[str, ...] = ()
    """Columns with labels of the documents; recorded in the cache's documents.jsonl."""
    on_bad_row: OnBadRow = "error"
    """What a row that cannot be used does (not text, no such column, damaged file, …): error ends the harvest and names
    file and line; skip leaves it out, and counts by reason go into the manifest. Either way a later run resumes."""
    sites: tuple[str, ...] = ("layer_02.resid_mid", "layer_02.mlp_out")
    """Where activations are read: `layer_NN.KIND`, `layer_*.KIND` for every layer of the model, TransformerLens's
    `blocks.N.hook_KIND`, or any `module.path:in` or `module.path:out`."""
    tokens: int | None = 262_144
    """Rows to harvest (padding included), rounded up to whole sequences; null takes all of a local dataset."""
    ctx: int = 128
    """Tokens in a sequence, including the leading BOS, if there is one."""
    packing: Packing = "concat"
    """How documents fill sequences: concat joins them, document gives each its own sequences (the rest is padding),
    prompts one sequence each, and records the row of the target token (JSON lines of text, target, labels)."""
    cross_document_attention: bool = True
    """Whether tokens attend to earlier documents of their sequence; false: each starts anew, with its own BOS."""
    bos: str = "auto"
    """What begins a sequence: auto is the tokenizer's BOS token, else its CLS token, else nothing; none is nothing (for
    models that were not trained with one); or a token of the vocabulary, such as <|endoftext|>."""
    separator: Separator = "eos"
    """What ends a document: an EOS token, or nothing."""
    batch_tokens: int | None = 8192
    """Tokens in one call of the model; part of the cache's identity, since it affects how the hardware rounds. null: as
    many as fit into memory (at most 65,536, on a CPU 8192)."""
    dtype: Dtype = "auto"
    """Dtype of the model; auto is the checkpoint's own on CUDA and float32 on a CPU."""
    attention: Attention = "auto"
    """Attention code path; auto is eager if attention logits are soft-capped (Gemma-2), else the model's default.
    Every path is checked against eager before the harvest begins."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the cut model (torch.compile, one graph); auto does so on CUDA for the families with named sites. Takes a
    minute at the start, so it pays off in long harvests only."""
    storage: Storage = "bfloat16"
    """Number format of the stored activations; fp8 and int8 take half the space of bfloat16 (a byte for each number, a
    scale for each row), with the error that docs/harvest.md measures."""
    storage_of: dict[str, Storage] = field(default_factory=dict)
    """Site → storage, for sites that differ from `storage`."""
    layout: Literal["chunked", "sharded"] = "chunked"
    """chunked: a shard is one Zarr chunk. sharded: a shard is one file of Zarr's sharding codec with chunks of
    `chunk_rows`, for programs that read a few rows at a time through Zarr. Training reads both alike."""
    chunk_rows: int = 0
    """Rows of a chunk in the sharded layout, whole sequences; 0: as many as fit into 1024 rows and divide a shard."""
    shard_rows: int = 0
    """Rows of a shard, whole sequences; 0: as many as fit into 8192 rows."""
    cache_dir: Path = Path("cache")
    """Folder that holds the caches, or an address in object storage: `s3://bucket/caches`, `gs://…`, `az://…`
    (docs/object-storage.md)."""
    name: str | None = None
    """Name of this cache; null is <model>-<sites>-<hash of these settings>."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`; auto is CUDA if available, else the CPU."""
    device_map: Literal["auto", "balanced", "sequential"] | dict[str, int | str] | None = None
    """Spread the model over several GPUs, host memory and disk with accelerate (extra `offload`): auto, balanced,
    sequential, or module path → GPU number, cpu or disk (`{"": 0}` is all); null: the whole model on `device`."""
    max_memory: dict[str, str] = field(default_factory=dict)
    """With `device_map`: GPU number or cpu → the most it may take, such as 20GiB."""
    writers: int = 2
    """Threads that write shards while the model computes the next ones."""
    buffers: int = 4
    """Batches (at least one shard each) that may wait for the disk before the model waits; limits host memory."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "cache_dir", settled(self.cache_dir))
        # One name for one place, so that an alias gives the same cache.
        object.__setattr__(self, "sites", from_hook_names(*self.sites))
        aliased = zip(from_hook_names(*self.storage_of), self.storage_of.values(), strict=True)
        object.__setattr__(self, "storage_of", dict(aliased))
        if not self.sites:
            raise ValueError("sites: expected at least one, such as layer_02.resid_mid")
        if len(set(self.sites)) != len(self.sites):
            raise ValueError(f"sites: a site is given twice: {', '.join(self.sites)}")
        if self.mixture and (self.dataset_subset or self.dataset_revision or self.dataset_split != "train"):
            raise ValueError("dataset: subset, split and revision belong to the parts of a mixture, not to the whole")
        if self.mixture:  # a name among the parts is a part
            object.__setattr__(self, "dataset", self.mixture)
        elif not isinstance(self.dataset, str) and len(self.dataset) == 1:  # a list of one is that one
            object.__setattr__(self, "dataset", self.dataset[0])
        if not self.dataset:
            raise ValueError("dataset: expected demo, a file, a folder, a pattern or a hub dataset, found nothing")
        if self.max_document_tokens is not None and (self.max_document_tokens < 1 or self.packing == "prompts"):
            raise ValueError(
                f"max_document_tokens: expected at least 1, and no prompts, found {self.max_document_tokens} with "
                f"packing: {self.packing}"
            )
        if min(self.shuffle_documents, self.shuffle_seed) < 0:
            raise ValueError(
                "shuffle_documents and shuffle_seed: expected at least 0, found "
                f"{self.shuffle_documents} and {self.shuffle_seed}"
            )
        if self.train_roles is not None and self.format != "chat":
            raise ValueError(f"train_roles: only chats have roles, found format: {self.format}")
        if self.format == "chat" and self.packing == "prompts":
            raise ValueError("packing: prompts are text or tokens, found format: chat")
        if self.ctx < 2:
            raise ValueError(f"ctx: expected at least 2 (BOS and a token), found {self.ctx}")
        if self.tokens is not None and self.tokens < 1:
            raise ValueError(f"tokens: expected at least 1 (null for all of a local dataset), found {self.tokens}")
        if unknown := sorted(set(self.storage_of) - set(self.sites)):
            raise ValueError(f"storage_of: {', '.join(unknown)} not found in the sites {', '.join(self.sites)}")
        if self.chunk_rows and self.layout != "sharded":
            raise ValueError(f"chunk_rows: {self.chunk_rows} needs layout: sharded, found layout: {self.layout}")
        if self.chunk_rows < 0 or self.chunk_rows % self.ctx:
            raise ValueError(f"chunk_rows: expected a multiple of ctx = {self.ctx}, found {self.chunk_rows}")
        if self.chunk_rows and self.shard_rows % self.chunk_rows:
            raise ValueError(f"chunk_rows: a shard of {self.shard_rows} rows is no multiple of {self.chunk_rows}")
        if self.shard_rows < 0 or self.shard_rows % self.ctx:
            raise ValueError(f"shard_rows: expected a multiple of ctx = {self.ctx}, found {self.shard_rows}")
        for name in ("batch_tokens", "writers", "buffers"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, found {getattr(self, name)}")
        self._check_devices()
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise ValueError(f"device: expected auto, cpu, cuda or cuda:N, found {self.device!r}")
        if self.name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", self.name):
            raise ValueError(f"name: expected only letters, digits and . _ + -, found {self.name!r}")

    def _check_devices(self) -> None:
        if self.device_map == {}:
            object.__setattr__(self, "device_map", None)
        if self.device_map is None and self.max_memory:
            raise ValueError("max_memory: requires device_map: auto, balanced or sequential")
        if self.device_map is not None and self.compile == "on":
            raise ValueError("device_map: a model that is spread over devices is not compiled; set compile: auto")
        for where, most in self.max_memory.items():
            if not (where == "cpu" or where.isdigit()) or not re.fullmatch(r"\d+(\.\d+)?([KMG]i?B)", most):
                raise ValueError(f"max_memory: expected such as {{0: 20GiB, cpu: 60GiB}}, found {where}: {most}")

    @property
    def content_column(self) -> str:
        """The column that documents are read from."""
        default = {"text": "text", "chat": "messages", "tokens": "input_ids"}[self.format]
        return default if self.text_column == "text" else self.text_column

    @property
    def dataset_name(self) -> str:
        """The dataset in a message."""
        return dataset_text(to_dict(self)["dataset"])

    @property
    def mixture(self) -> tuple[DatasetPart, ...]:
        """The parts of a mixture; empty for one dataset."""
        parts = () if isinstance(self.dataset, str) else self.dataset
        if not any(isinstance(one, DatasetPart) for one in parts):
            return ()
        return tuple(one if isinstance(one, DatasetPart) else DatasetPart(one) for one in parts)

    @property
    def names(self) -> str | tuple[str, ...]:
        """The files, folders and patterns, or the one name, of what is no mixture."""
        return self.dataset if isinstance(self.dataset, str) else tuple(map(str, self.dataset))

    def of_part(self, part: DatasetPart) -> HarvestConfig:
        """The settings of a harvest of one part alone."""
        return replace(
            self,
            dataset=part.source,
            dataset_subset=part.subset,
            dataset_split=part.split,
            dataset_revision=part.revision,
            text_column=part.text_column or self.text_column,
        )

    def storage_at(self, site: str) -> Storage:
        """Number format of a site's stored activations."""
        everywhere = f"layer_*.{site.partition('.')[2]}" if site.startswith("layer_") else site
        return self.storage_of.get(site, self.storage_of.get(everywhere, self.storage))


def content_settings(config: HarvestConfig) -> dict[str, Any]:
    """The settings that decide the content of the cache, as plain JSON values."""
    settings = {key: value for key, value in to_dict(config).items() if key not in _RUNTIME}
    untouched = to_dict(HarvestConfig())
    return {key: value for key, value in settings.items() if key not in _LATER or value != untouched[key]}


def cache_path(config: HarvestConfig) -> Path:
    """Folder of this config's cache, whether it exists or not. Loads no model.

    Raises:
        UsageError: a site's name is malformed.
    """
    if config.name is not None:
        return config.cache_dir / config.name
    settings = content_settings(config)
    if "demo" in (config.dataset, *(part.source for part in config.mixture)):  # another Python version has other text
        settings["python"] = platform.python_version()
    parts = [_slug(Path(config.model).name or config.model), _sites_slug(config.sites)]
    return config.cache_dir / f"{'-'.join(parts)}-{identity(settings)[:8]}"


def _sites_slug(sites: tuple[str, ...]) -> str:
    """``layer_02.resid_mid+mlp_out``: each layer once; a count when that grows too long for a folder's name."""
    words: list[str] = []
    last: int | None = None
    for site in sites:
        layer, kind = (None, None) if every_layer(site) else parse_site(site)
        again = layer is not None and layer == last
        words.append(str(kind) if again else _slug(site.replace(":", ".").replace("*", "all")))
        last = layer
    text = "+".join(words)
    return text if len(text) <= 80 else f"{len(sites)}_sites"


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-.") or "model"
