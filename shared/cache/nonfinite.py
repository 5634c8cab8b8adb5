"""Rows with an infinity or a NaN: where they come from, what cures them, and whether a stage leaves them out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ..console import count
from ..errors import DataError
from ..joint_names import stored_sites
from .reader import Cache

CAUSES: dict[str | None, tuple[str, str]] = {
    "float16": ("float16 ends at 65,504, and activations of this model are larger", "harvest.dtype=bfloat16"),
    "bfloat16": ("the model's computation fails in bfloat16", "harvest.dtype=float32"),
    "float32": ("the weights or the attention path give them even in float32", "harvest.attention=eager"),
}
"""Dtype of the model → the likely cause, and the setting that cures it."""


def cause_and_cure(dtype: str | None) -> tuple[str, str]:
    """The likely cause of non-finite rows, and the flag of a harvest without them.

    Args:
        dtype: that the model ran in; None: not known.
    """
    cause, cure = CAUSES.get(dtype, ("the model gave them", "harvest.dtype=float32"))
    return cause, f"--set {cure}"


def usable(cache: Cache, sites: Sequence[str], policy: Literal["refuse", "skip"], setting: str) -> Cache:
    """The cache as a stage reads it.

    Args:
        sites: that the stage reads.
        policy: refuse rows that are not finite, or leave them out.
        setting: dotted name of the policy.

    Raises:
        DataError: the policy is refuse, and a site has such rows.
    """
    found = {site: n for site in stored_sites(sites) if (n := cache.stats(site).nonfinite)}
    if not found:
        return cache
    if policy == "skip":
        return cache.without_nonfinite(sites)
    cause, cure = cause_and_cure(_dtype(cache.config))
    listed = ", ".join(f"{count(n, 'row')} of {site}" for site, n in found.items())
    raise DataError(
        f"{cache.path}: {listed} hold an infinity or a NaN (of {cache.n_rows:,}); {cause}",
        f"pipeline harvest {cure}   (gives rows without them; --set {setting}=skip leaves them out)",
    )


def _dtype(config: Mapping[str, Any]) -> str | None:
    found = config.get("resolved", {}).get("dtype")
    return None if found is None else str(found)
