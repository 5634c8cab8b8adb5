"""Rows with an infinity or a NaN, reported while a harvest runs and when it is finished."""

from __future__ import annotations

import threading
from pathlib import Path

from ..shared.cache.commits import CommitRecord
from ..shared.cache.nonfinite import cause_and_cure
from ..shared.cache.reader import open_cache
from ..shared.console import Console, count
from ..shared.errors import PipelineError
from .job import Job

LARGEST_SHARE = 0.01
"""Share of rows with an infinity or a NaN beyond which a harvest has failed."""


class NonfiniteWatch:
    """Warns once, at the first shard with rows that are not finite, and sums up at the end.

    Args:
        job: of the harvest: the dtype of its model tells the likely cause.
    """

    def __init__(self, job: Job, console: Console) -> None:
        self._console = console
        self._cause, cure = cause_and_cure(str(job.checkpoint.dtype).removeprefix("torch."))
        name = job.config.name
        self._cure = cure if name is None else f"{cure} --set harvest.name={name}-2"
        self._lock = threading.Lock()
        self._warned = False

    def look(self, record: CommitRecord) -> None:
        """Looks at a shard that was committed; called from the threads that write."""
        found = {site: (stats.nonfinite, stats.all.n + stats.nonfinite) for site, stats in record.stats.items()}
        found = {site: numbers for site, numbers in found.items() if numbers[0]}
        with self._lock:
            first = bool(found) and not self._warned
            self._warned = self._warned or first
        if first:
            self._console.warn(
                f"shard {record.shard}: {_listed(found)} hold an infinity or a NaN; likely cause: {self._cause}; to "
                f"harvest without them, stop and add {self._cure}"
            )

    def finish(self, path: Path) -> dict[str, int]:
        """Site → such rows of a finished cache; a warning if there are any.

        Raises:
            PipelineError: they are more than :data:`LARGEST_SHARE` of a site's rows.
        """
        cache = open_cache(path)
        stats = {site: cache.stats(site) for site in cache.sites}
        found = {site: (one.nonfinite, one.all.n + one.nonfinite) for site, one in stats.items() if one.nonfinite}
        if not found:
            return {}
        text, hint = (
            f"{path} is finished, but {_listed(found)} hold an infinity or a NaN; likely cause: {self._cause}",
            (f"{self._cure} harvests without them; --set train.data.nonfinite=skip trains on the others"),
        )
        if any(n > LARGEST_SHARE * total for n, total in found.values()):
            raise PipelineError(text, hint)
        self._console.warn(f"{text}; {hint}")
        return {site: n for site, (n, _) in found.items()}


def _listed(found: dict[str, tuple[int, int]]) -> str:
    """Counts and shares: site → (rows that are not finite, rows)."""
    return ", ".join(
        f"{count(n, 'row')} of {site} ({n / total:.2g} of {total:,})" for site, (n, total) in found.items()
    )
