"""What a run's coder says about a text: as data, as a table for a terminal, as a page."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..shared.text_table import legend
from .read import Reading

BAR = "▁▂▃▄▅▆▇█"
MIN_TOKEN, MAX_TOKEN = 5, 16
"""Least and largest width of the column of tokens."""


@dataclass(frozen=True)
class Answer:
    """The latents of a run that fire on a text.

    Attributes:
        run: its name.
        model: the language model's name, and in `checked` how it was found to be the run's own.
        source: site that the coder reads.
        labels: latent → what it fires on, from the run's explanations and report; empty without both.
        report: the report's folder; None without one.
        judge: who gave the labels of the explanations; None without any.
    """

    run: str
    model: str
    checked: str
    source: str
    reading: Reading
    labels: Mapping[int, str]
    report: str | None
    judge: str | None = None

    def to_dict(self, k: int | None = None) -> dict[str, Any]:
        """The --json document; at most k latents for each token."""
        reading = self.reading
        tokens = [
            {
                "position": position,
                "token_id": reading.token_ids[position],
                "token": reading.tokens[position],
                "position_0": position == 0,
                "l0": len(reading.latents[position]),
                "latents": [
                    {"latent": latent, "activation": value, "label": self.labels.get(latent)}
                    for latent, value in reading.fired(position)[:k]
                ],
            }
            for position in range(len(reading.tokens))
        ]
        return {
            "run": self.run,
            "model": self.model,
            "model_checked": self.checked or None,
            "source": self.source,
            "report": self.report,
            "judge": self.judge,
            "tokens": tokens,
        }

    def head(self) -> str:
        """One line on where this comes from."""
        known = f", checked: {self.checked}" if self.checked else ", not checked against the run's cache"
        return f"{self.run} reads {self.source} of {self.model}{known}"

    @property
    def largest(self) -> float:
        """The largest activation, excluding position 0; 1 if nothing fires."""
        return max((value for values in self.reading.activations[1:] for value in values), default=1.0)


def table(answer: Answer, k: int, width: int = 80, colour: bool = False) -> str:
    """The strongest k latents of each token, in at most `width` columns; shades of the bar are activations.

    A bar's scale is the largest activation in the text, excluding position 0.
    """
    import io

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    reading = answer.reading
    out = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), show_header=True)
    out.add_column("pos", justify="right", no_wrap=True)
    widest = max(len(visible(token)) for token in reading.tokens)
    out.add_column("token", no_wrap=True, overflow="ellipsis", width=min(max(widest, MIN_TOKEN), MAX_TOKEN))
    out.add_column("latent", justify="right", no_wrap=True)
    out.add_column("activation", justify="right", no_wrap=True)
    out.add_column("", no_wrap=True)
    out.add_column("fires on" if answer.labels else "", no_wrap=True, overflow="ellipsis", ratio=1)
    for position, token in enumerate(reading.tokens):
        fired = reading.fired(position)[:k]
        first = position == 0
        for place, (latent, value) in enumerate(fired or [(None, 0.0)]):
            share = min(value / answer.largest, 1.0)
            style = "dim" if first else _shade(share)
            note = "" if latent is None else answer.labels.get(latent, "")
            if first and not place:
                note = "position 0: the same in every text" if reading.bos else "position 0"
            out.add_row(
                str(position) if not place else "",
                Text(visible(token), "dim" if first else "bold") if not place else "",
                "–" if latent is None else str(latent),
                "" if latent is None else f"{value:.3f}",
                "" if latent is None else Text(BAR[round(share * (len(BAR) - 1))], style),
                Text(visible(note), "dim" if first else ""),
            )
    page = io.StringIO()
    system: Literal["truecolor"] | None = "truecolor" if colour else None
    console = Console(file=page, width=width, force_terminal=colour, color_system=system, legacy_windows=False)
    console.print(Text(answer.head(), "dim"))
    console.print(out)
    headings = ["pos", "latent", "activation", *(["fires on"] if answer.labels else [])]
    console.print(Text(legend(headings), "dim"))
    if answer.report is None and answer.judge is None:
        console.print(Text("no report on this run, so no labels: pipeline analyze or explain writes them", "dim"))
    return "\n".join(line.rstrip() for line in page.getvalue().splitlines())


def visible(text: str) -> str:
    """Text for one line: leading and trailing spaces, line ends and control characters made visible."""
    shown = text.replace("\n", "↵").replace("\t", "⇥").replace("\r", "␍")
    bare = shown.strip(" ")
    if not bare and shown:
        return "␣" * len(shown)
    return "".join(c if unicodedata.category(c)[0] != "C" else f"\\u{ord(c):04x}" for c in bare)


def _shade(share: float) -> str:
    """From grey to orange."""
    red, green, blue = (round(low + share * (high - low)) for low, high in ((150, 230), (150, 110), (150, 20)))
    return f"rgb({red},{green},{blue})"
