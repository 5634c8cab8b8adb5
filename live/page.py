"""An answer as one self-contained page: no script, no network, every text escaped."""

from __future__ import annotations

from pathlib import Path

import jinja2

from ..shared.cache.files import write_file
from ..shared.errors import UsageError
from .answer import Answer, visible

TEMPLATE = Path(__file__).parent / "page.html.j2"
SHADED = 12
"""Latents whose activations are drawn over the text."""


def write_page(path: Path, answer: Answer, k: int) -> None:
    """Writes the page: the text shaded by each of its strongest latents, then every token with its k strongest.

    Raises:
        UsageError: the file exists, or its folder does not.
    """
    if path.exists():
        raise UsageError(f"{path} already exists", "choose another file, or remove it")
    if not path.parent.is_dir():
        raise UsageError(f"the folder of {path} was not found", f"mkdir -p {path.parent}")
    write_file(path, [page(answer, k).encode()])


def page(answer: Answer, k: int) -> str:
    """The page as text."""
    reading = answer.reading
    tokens = [visible(token) for token in reading.tokens]
    shaded = []
    for latent in reading.strongest(SHADED):
        values = reading.of_latent(latent)
        most = max(values[1:])
        shaded.append((latent, most, [(token, min(v / most, 1.0), v) for token, v in zip(tokens, values, strict=True)]))
    rows = [(position, token, reading.fired(position)[:k]) for position, token in enumerate(tokens)]
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(answer=answer, shaded=shaded, rows=rows, labels=answer.labels)
