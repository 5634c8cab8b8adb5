"""The report as a page: no server, no network, nothing executed that is not in this repository.

What is per latent is deflated in blocks and inflated by the browser when it is needed, so the page stays quick with
tens of thousands of latents. Up to `analyze.page_latents` of them the blocks are in the page, which is one
self-contained file. Beyond that each block is a file beside it, `data/<id>.js`, which hands the page its text by one
call: a script, because a page from `file://` may load scripts and nothing else.

The content security policy names the one script and the one style sheet by their hashes: even markup that slipped into
the page could neither run nor reach the network. With files beside the page, `strict-dynamic` lets that one script, and
nothing that stands in the markup, load others.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from ...shared.console import Console, Progress
from ...shared.glossary import terms_in
from ..subject.analysed import Analysed
from .latents import LatentsFile, round_column
from .search import Matches, Partners, SearchIndex, Sequences, matched

HERE = Path(__file__).parent
PANEL_BLOCK = 64
"""Latents in one deflated block of panels."""

SEARCH_BLOCK = 16_384
"""Latents in one deflated block of the search index."""

DATA = "data"
"""Folder of the blocks that are files beside the page."""

MENU = 12
"""Most values of a column of text that the page offers as a menu."""

NAMED = 4
"""Runs named in the title."""

AHEAD = 8
"""Blocks that may wait for the compressing thread."""


def write_html(
    folder: Path,
    document: dict[str, Any],
    analysed: Sequence[Analysed],
    console: Console,
    matches: Matches | None = None,
    page_latents: int = 1 << 62,
) -> None:
    """Write index.html, its blocks, and from the same panels each run's latents.jsonl.gz.

    Args:
        matches: run → (other run, its matching) for the latents of two runs that are one another's partners.
        page_latents: of more latents than that, all runs together, the blocks are files in `data/` beside the page.
    """
    blocks = _blocks(folder, document, analysed, console, matches or {})
    beside = sum(one.subject.n_latents for one in analysed if one.facts["trained"]) > page_latents
    if beside:
        (folder / DATA).mkdir()
        blocks = _written(folder / DATA, blocks)
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string((HERE / "report.html.j2").read_text(encoding="utf-8"))
    script = (HERE / "report.js").read_text(encoding="utf-8")
    style = (HERE / "report.css").read_text(encoding="utf-8")
    with (folder / "index.html").open("w", encoding="utf-8") as file:
        # A generator: the blocks of one run at a time are in memory, not the whole page.
        stream = template.generate(
            script=Markup(script),
            style=Markup(style),
            script_hash=_hash(script),
            style_hash=_hash(style),
            glossary=terms_in(compact([_words(document), script])),
            title=_title(document),
            document=_json(document),
            beside=DATA if beside else None,
            blocks=blocks,
        )
        file.writelines(stream)


def _written(folder: Path, blocks: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Write each block as a script of its own, while the page is written; none is left for the page itself.

    A block is base64, so nothing in it can end the string or the script.
    """
    for name, text in blocks:
        (folder / f"{name}.js").write_text(f'loaded("{name}","{text}")\n', encoding="ascii")
    yield from ()


def _title(document: dict[str, Any]) -> str:
    """The runs by name: what a tab of the browser and a bookmark show."""
    names = [run["name"] for run in document["runs"] if run["trained"]] or ["no run"]
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _blocks(
    folder: Path, document: dict[str, Any], analysed: Sequence[Analysed], console: Console, matches: Matches
) -> Iterator[tuple[str, str]]:
    """(id, deflated JSON in base64) of every lazily read block; the vocabulary comes last, once all tokens are known.

    A second thread compresses what this one has built: half of the work, and zlib releases the interpreter's lock.
    """
    total = sum(one.subject.n_latents for one in analysed if one.facts["trained"])
    tokens: dict[int, str] = {}
    around = Sequences()
    names = [run["name"] for run in document["runs"]]
    with console.progress(total, "latents", "report") as progress, ThreadPoolExecutor(1, "deflate") as pool:
        for r, one in enumerate(analysed):
            if not one.facts["trained"]:
                continue
            used: set[int] = set()
            partners = matched(one.subject.name, matches, names)
            file = folder / document["runs"][r]["folder"] / "latents.jsonl.gz"
            yield from _of_run(r, one, file, used=used, around=around, partners=partners, pool=pool, progress=progress)
            tokens |= {token: one.subject.vocabulary.piece(token) for token in sorted(used - tokens.keys())}
    for name, sequences, used in around.blocks():
        yield name, deflated(compact(sequences))
        if unseen := sorted(used - tokens.keys()):
            vocabulary = next(one.subject.vocabulary for one in analysed if one.facts["trained"])
            tokens |= {token: vocabulary.piece(token) for token in unseen}
    special = {token for one in analysed for token in one.subject.vocabulary.special}
    yield (
        "vocabulary",
        deflated(
            compact({"pieces": tokens, "special": sorted(special & tokens.keys()), "domains": _domains(analysed)})
        ),
    )


def _of_run(
    r: int,
    one: Analysed,
    path: Path,
    *,
    used: set[int],
    around: Sequences,
    partners: Partners,
    pool: ThreadPoolExecutor,
    progress: Progress,
) -> Iterator[tuple[str, str]]:
    """The blocks of one run: what its columns are, each column, panels and search index by blocks of latents.

    Args:
        path: of its latents.jsonl.gz. used: takes its tokens. around: takes the sequences of its examples.
    """
    n, columns = one.subject.n_latents, _columns(one)
    about = [_about(column, values) for column, values in columns]
    sizes = {"n": n, "panel_block": PANEL_BLOCK, "search_block": SEARCH_BLOCK}
    yield f"columns-{r}", deflated(compact({**sizes, "columns": about}))
    for k, (_, values) in enumerate(columns):
        yield f"column-{r}-{k}", deflated(compact(values))
    search = SearchIndex()
    with LatentsFile(path, one) as file:
        pending: deque[tuple[str, Future[str]]] = deque()
        for start in range(0, n, PANEL_BLOCK):
            latents = range(start, min(start + PANEL_BLOCK, n))
            panels = [_panels(one, latent, used) for latent in latents]
            for panel in panels:
                search.add(panel)
                around.add(one.subject.cache, panel)
            block = [
                [[values[latent] for _, values in columns], panel, partners.of(latent)]
                for latent, panel in zip(latents, panels, strict=True)
            ]
            lines = file.lines(latents, panels)
            pending.append((f"panels-{r}-{start // PANEL_BLOCK}", pool.submit(_stored, file, lines, compact(block))))
            progress.advance(len(block))
            while len(pending) > (AHEAD if start + PANEL_BLOCK < n else 0):
                name, text = pending.popleft()
                yield name, text.result()
            if len(search) >= SEARCH_BLOCK or start + PANEL_BLOCK >= n:
                for part in search.taken(SEARCH_BLOCK, everything=start + PANEL_BLOCK >= n):
                    yield f"search-{r}-{search.blocks - 1}", deflated(compact(part))


def _columns(one: Analysed) -> list[tuple[dict[str, Any], list[Any]]]:
    """(what it is, its values [F]) of each column of the table of latents."""
    return [
        (
            {
                "key": column.key,
                "label": column.label,
                "definition": column.definition,
                "format": column.format,
                "shown": column.shown,
                "without": column.without,
                "report": name,
            },
            round_column(column.values),
        )
        for name, result in one.results.items()
        for column in result.columns
    ]


def _about(column: dict[str, Any], values: list[Any]) -> dict[str, Any]:
    """What a column is, with its menu: the values of a text that has few of them."""
    different = sorted(set(values)) if column["format"] == "text" else []
    return {**column, "menu": different if 1 < len(different) <= MENU else []}


def _stored(file: LatentsFile, lines: str, block: str) -> str:
    """The work of the compressing thread: the lines of some latents into the file, their panels deflated."""
    file.write(lines)
    return deflated(block)


def _domains(analysed: Sequence[Analysed]) -> dict[str, dict[int, str]]:
    """Cache → document → domain; caches without domains are omitted."""
    return {one.subject.cache.record["path"]: one.subject.domains for one in analysed if one.subject.domains}


def _panels(one: Analysed, latent: int, used: set[int]) -> list[Any]:
    """The blocks of one latent's panel; the tokens in them are added to `used`."""
    blocks = []
    for name, result in one.results.items():
        if result.panel is None:
            continue
        for block in result.panel(latent):
            blocks.append({"report": name, **block})
            if block["type"] == "examples":
                for group in block["groups"]:
                    group["items"] = [_spelt(item, one) for item in group["items"]]
                    for item in group["items"]:
                        used.update(item[5])
    return blocks


def compact(value: Any) -> str:
    """JSON without spaces."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def deflated(text: str) -> str:
    """zlib, base64: what report.js inflates."""
    return base64.b64encode(zlib.compress(text.encode(), 6)).decode("ascii")


def _words(document: dict[str, Any]) -> Any:
    """What the page says in words: its reports and definitions, not the settings and names of the runs."""
    said = [(r["title"], r["lead"], r["figures"], r["charts"], r["tables"]) for run in document["runs"]
            for r in run["reports"].values()]  # fmt: skip
    return [said, document["comparison"], document["definitions"]]


def _json(value: Any) -> Markup:
    """JSON that is safe inside a script element: no "<" in it, so nothing can close the element or open another."""
    return Markup(compact(value).replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def _spelt(item: list[Any], one: Analysed) -> list[Any]:
    """An example, with its texts at the end if its tokens spell other texts together than each alone."""
    vocabulary, tokens = one.subject.vocabulary, item[5]
    together = vocabulary.pieces(tokens)
    return item if together == [vocabulary.piece(token) for token in tokens] else [*item, together]
