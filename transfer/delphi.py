"""A run's codes over a cache in delphi's latent-cache format, which explains latents without running the model.

`OUT/MODULE/START_END.safetensors` holds the latents START … END: locations [n, 3] of (sequence, place, latent − START),
activations [n], and the tokens [sequences, ctx]; `config.json` beside them. `OUT/explanations/MODULE_latentI.txt` is
the label of a latent, as delphi's explainer leaves it for its scorers. delphi stores half precision; here the
numbers are float32, which its loader reads as well.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save

from ..shared.cache import Cache
from ..shared.cache.files import write_file, write_json
from ..shared.cache.rows import text_rows
from ..shared.coders import Coder
from ..shared.coders.one_site import require_one_site
from ..shared.console import Console
from ..shared.dataset_text import dataset_text
from ..shared.errors import UsageError
from ..shared.memory import rows_within
from .outgoing import Exported, new_folder

SPLITS = 5
BLOCK = 4096


@torch.no_grad()
def export_delphi(
    cache: Cache, coder: Coder, out: Path, console: Console | None = None, labels: Mapping[int, str] | None = None
) -> Exported:
    """Encodes every row of the cache except padding and writes the codes; they are held in memory until the end.

    Args:
        coder: with its source; in evaluation mode.
        labels: latent → its explanation, written too.

    Raises:
        UsageError: the cache has no tokens or not the coder's source, or `out` exists.
    """
    console = console or Console(quiet=True)
    require_one_site(coder, "delphi")
    if not cache.has_tokens:
        raise UsageError(f"delphi needs tokens, and {cache.path} has none", "--to safetensors")
    if coder.source is None:
        raise UsageError("the coder's source site is not known")
    spec = cache.spec(coder.source)
    module = spec.module_path or spec.name
    rows, latents, values = _codes(cache, coder, console)
    with new_folder(out) as folder:
        (folder / module).mkdir()
        tokens = cache.tokens.astype(np.int64)
        edges = np.linspace(0, coder.n_latents, min(SPLITS, coder.n_latents) + 1).astype(np.int64)
        for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            inside = (latents >= start) & (latents < stop)
            where = np.stack([rows[inside] // cache.ctx, rows[inside] % cache.ctx, latents[inside] - start], 1)
            small = max(cache.n_seq, cache.ctx, stop - start) <= 2**16
            arrays = {
                "locations": where.astype(np.uint16 if small else np.uint32),
                "activations": values[inside],
                "tokens": tokens,
            }
            write_file(folder / module / f"{start}_{stop - 1}.safetensors", [save(arrays)])
        write_json(folder / module / "config.json", _config(cache))
        if labels:
            (folder / "explanations").mkdir()
            for latent, label in labels.items():
                text = json.dumps(label, ensure_ascii=False).encode()
                write_file(folder / "explanations" / f"{module}_latent{latent}.txt", [text])
        total = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    names = {spec.name: module}
    return Exported(str(out), "delphi", names, cache.n_rows, len(edges) - 1, total, f"{len(values):,} codes")


def _codes(
    cache: Cache, coder: Coder, console: Console
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """(row, latent, activation) of every active code, by row; padding is excluded."""
    found: list[tuple[Any, Any, Any]] = []
    real = text_rows(cache.flags).reshape(-1)
    step = rows_within(4 * coder.n_latents, BLOCK)
    with console.progress(cache.n_rows, "rows", "encode") as progress:
        for shard in cache.shards:
            first = cache.layout.rows_of(shard).start
            acts = cache.chunk(str(coder.source), shard)[: len(cache.layout.rows_of(shard))]
            for start in range(0, len(acts), step):
                entries = coder.encode(acts[start : start + step]).entries()
                row = entries.row.numpy() + first + start
                kept = real[row]
                found.append((row[kept], entries.latent.numpy()[kept], entries.value.float().numpy()[kept]))
            progress.advance(len(acts))
    row, latent, value = (np.concatenate(part) for part in zip(*found, strict=True))
    return row, latent, value


def _config(cache: Cache) -> dict[str, Any]:
    """delphi's CacheConfig, and the model's name."""
    harvest = cache.config.get("harvest", {})
    return {
        "dataset_repo": dataset_text(harvest.get("dataset") or ""),
        "dataset_split": harvest.get("dataset_split") or "train",
        "dataset_name": harvest.get("dataset_subset") or "",
        "dataset_column": harvest.get("text_column") or "text",
        "batch_size": 32,
        "cache_ctx_len": cache.ctx,
        "n_tokens": cache.n_rows,
        "n_splits": SPLITS,
        "model_name": harvest.get("model") or "",
    }
