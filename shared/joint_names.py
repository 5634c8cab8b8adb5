"""Names of joint sites, several read or written side by side: `layer_05.resid_mid+layer_09.resid_mid`.

`SITE@2` is a site of the second cache of a coder over two models (shared/cache/beside.py).
"""

from __future__ import annotations

from collections.abc import Iterable

JOIN = "+"


def parts_of(site: str) -> tuple[str, ...]:
    """The stored sites that a site consists of: itself, or the parts of a joint one."""
    return tuple(site.split(JOIN))


def stored_sites(sites: Iterable[str]) -> tuple[str, ...]:
    """The stored sites behind some sites, each once, in their order."""
    return tuple(dict.fromkeys(part for site in sites for part in parts_of(site)))
