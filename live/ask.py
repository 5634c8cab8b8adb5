"""Asks a run's coder about a text: its own model, its own tokens, the labels of its report."""

from __future__ import annotations

from pathlib import Path

import torch

from ..models.held import names_of
from ..models.origin import coder_sha256, open_model, origin_of
from ..shared.coders import Coder
from ..shared.coders.one_site import require_one_site
from ..shared.runs.explanations import explanations_of
from ..shared.saved_report import report_on
from .answer import Answer
from .read import read_text


def ask(
    folder: Path,
    coder: Coder,
    text: str,
    *,
    model: str | None = None,
    device: str = "auto",
    reports: Path | None = None,
) -> Answer:
    """The latents of a run that fire on a text.

    Labels are those of the run's explanations; of other latents the tokens that they fire on, from a report.

    Args:
        folder: of the run, or of a coder's files.
        coder: that of the folder.
        model: a checkpoint in place of the one that the run's cache names.
        device: where model and coder run.
        reports: folder of reports to look for labels in; None: no labels.

    Raises:
        UsageError: the model or the coder's site is not known, or the text is empty or too long.
        DataError: the model is not the one that was harvested.
    """
    require_one_site(coder, "asking about a text")
    source = coder.source or names_of(coder, None, None)[0]
    loaded = open_model(origin_of(folder), model, device=device, source=source)
    coder = coder.to(torch.device(next(loaded.model.parameters()).device))
    reading = read_text(loaded.model, loaded.tokenizer, coder, text, source, loaded.bos)
    found = None if reports is None else report_on(folder, reports)
    labels: dict[int, str] = {}
    if found is not None:
        fires_on = found[0].latents(found[1])["fires_on"]
        labels = {int(latent): str(label) for latent, label in fires_on.items() if label}
    explained = explanations_of(folder, coder_sha256(folder))
    if explained is not None:
        labels |= explained.labels
    return Answer(
        run=folder.resolve().name,
        model=loaded.name,
        checked=loaded.checked,
        source=source,
        reading=reading,
        labels=labels,
        report=None if found is None else str(found[0].path),
        judge=None if explained is None else explained.judge,
    )
