"""The report as one self-contained page: no server, no network, nothing executed that is not in this repository.

What is per latent is deflated in blocks and inflated by the browser when a latent is opened, so the page stays quick
with
tens of thousands of latents. The content security policy names the one script and the one style sheet by their hashes:
even markup that slipped into the page could neither run nor reach the network.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup

from analyze.render.latents import LatentsFile, round_column
from shared.console import Console

if TYPE_CHECKING:
    from analyze.run import Analysed

HERE = Path(__file__).parent
PANEL_BLOCK = 64
"""Latents in one deflated block of panels."""


def write_html(folder: Path, document: dict[str, Any], analysed: Sequence[Analysed], console: Console) -> None:
    """Write index.html, and each run's latents.jsonl.gz on the way: both say the same of every latent, made once."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string((HERE / "report.html.j2").read_text(encoding="utf-8"))
    script = (HERE / "report.js").read_text(encoding="utf-8")
    style = (HERE / "report.css").read_text(encoding="utf-8")
    tokens: dict[int, str] = {}
    with (folder / "index.html").open("w", encoding="utf-8") as file:
        # A generator: the blocks of one run at a time are in memory, not the whole page.
        stream = template.generate(
            script=Markup(script),
            style=Markup(style),
            script_hash=_hash(script),
            style_hash=_hash(style),
            document=_json(document),
            blocks=_blocks(folder, document, analysed, tokens, console),
        )
        file.writelines(stream)


def _blocks(
    folder: Path, document: dict[str, Any], analysed: Sequence[Analysed], tokens: dict[int, str], console: Console
) -> Any:
    """(id, deflated JSON in base64) of every lazily read block; the vocabulary, which the others fill, comes last."""
    total = sum(one.subject.n_latents for one in analysed if one.facts["trained"])
    with console.progress(total, "latents", "report") as progress:
        for r, one in enumerate(analysed):
            if not one.facts["trained"]:
                continue
            columns = [
                {
                    "key": column.key,
                    "label": column.label,
                    "definition": column.definition,
                    "format": column.format,
                    "shown": column.shown,
                    "report": name,
                    "values": round_column(column.values),
                }
                for name, result in one.results.items()
                for column in result.columns
            ]
            yield f"columns-{r}", deflated({"n": one.subject.n_latents, "columns": columns})
            with LatentsFile(folder / document["runs"][r]["folder"] / "latents.jsonl.gz", one) as file:
                for start in range(0, one.subject.n_latents, PANEL_BLOCK):
                    block = []
                    for latent in range(start, min(start + PANEL_BLOCK, one.subject.n_latents)):
                        panels = _panels(one, latent, tokens)
                        file.write(latent, panels)
                        block.append(panels)
                    yield f"panels-{r}-{start // PANEL_BLOCK}", deflated(block)
                    progress.advance(len(block))
    special = {token for one in analysed for token in one.subject.vocabulary.special}
    yield (
        "vocabulary",
        deflated({"pieces": tokens, "special": sorted(special & tokens.keys()), "domains": _domains(analysed)}),
    )


def _domains(analysed: Sequence[Analysed]) -> dict[str, dict[int, str]]:
    """Cache → document → domain; a cache whose documents have none is left out."""
    return {str(one.subject.cache.path): one.subject.domains for one in analysed if one.subject.domains}


def _panels(one: Analysed, latent: int, tokens: dict[int, str]) -> list[Any]:
    blocks = []
    for name, result in one.results.items():
        if result.panel is None:
            continue
        for block in result.panel(latent):
            blocks.append({"report": name, **block})
            if block["type"] == "examples":
                for group in block["groups"]:
                    for item in group["items"]:
                        for token in item[5]:
                            if token not in tokens:
                                tokens[token] = one.subject.vocabulary.piece(token)
    return blocks


def deflated(value: Any) -> str:
    """JSON, zlib, base64: what report.js inflates."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return base64.b64encode(zlib.compress(text.encode(), 6)).decode("ascii")


def _json(value: Any) -> Markup:
    """JSON that may stand inside a script element: no "<" in it, so nothing can close the element or open another."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
