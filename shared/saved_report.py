"""A report on disk as data frames: `reports/<name>/`, written by `pipeline analyze`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cache.files import inside
from .columnar import read_parquet
from .errors import DataError, UsageError
from .schemas import Report, checked
from .untrusted import read_object

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = "sparse-coder-analysis"
SCHEMA_VERSION = 1

_AGAIN = "pipeline analyze   (writes it again)"

_FIGURE = ("label", "value", "with_bos", "without_massive", "null", "low", "high", "better", "definition")


@dataclass(frozen=True)
class SavedReport:
    """One folder of reports. Open it with :func:`open_report`.

    Attributes:
        path: the folder.
        document: report.json.
    """

    path: Path
    document: dict[str, Any] = field(repr=False)

    @property
    def runs(self) -> list[str]:
        """Names of the runs and controls."""
        return [run["name"] for run in self.document["runs"]]

    @cached_property
    def figures(self) -> pd.DataFrame:
        """Every headline figure: one row for each run, report and figure.

        Columns: run, report, key, label, value (excluding position 0), with_bos (including it), without_massive, null,
        low and high (95 % interval), better ("lower", "higher"), definition. Missing numbers are NaN.
        """
        import pandas as pd

        rows = []
        for run in self.document["runs"]:
            for report, result in run["reports"].items():
                for key, figure in result["figures"].items():
                    low, high = figure["interval"] or (None, None)
                    found = {**figure, "low": low, "high": high}
                    rows.append((run["name"], report, key, *(found[name] for name in _FIGURE)))
        frame = pd.DataFrame(rows, columns=["run", "report", "key", *_FIGURE])
        numbers = ["value", "with_bos", "without_massive", "null", "low", "high"]
        return frame.astype(dict.fromkeys(numbers, "float64"))

    @property
    def tables(self) -> Mapping[str, pd.DataFrame]:
        """Every table of all runs by name, with a column `run`; read when it is requested.

        `latents`, `pairs`, `neighbours`, `position`, … are the Parquet files: complete, columns by key. The rest are
        the tables of report.json, `REPORT.TABLE`: the rows worth a look, columns by label.
        """
        found: dict[str, Callable[[], pd.DataFrame]] = {}
        for run in self.document["runs"]:
            for file in sorted(self._folder(run).glob("*.parquet")):
                found.setdefault(file.stem, partial(self._parquet, file.stem))
        for report, table in self._listed():
            name = f"{report}.{table['key']}"
            found.setdefault(name, partial(self._table, name))
        return _Lazy(self.path, found)

    def latents(self, run: str | None = None) -> pd.DataFrame:
        """What is known of each latent of a run (`latents.parquet`), by its number.

        Args:
            run: its name; None: the only run, or the first.

        Raises:
            UsageError: the report has no such run.
            DataError: it holds no table of latents.
        """
        name = self.runs[0] if run is None else run
        if name not in self.runs:
            raise UsageError(f"no run {name!r} in {self.path}", f"its runs: {', '.join(self.runs)}")
        table = self.tables["latents"]
        return table[table["run"] == name].drop(columns="run").set_index("latent")

    def _folder(self, run: Mapping[str, Any]) -> Path:
        """Where the tables of a run are. Raises DataError where the name leads out of the report."""
        return inside(self.path, f"{run['folder']}/latents.parquet").parent

    def _parquet(self, name: str) -> pd.DataFrame:
        import pandas as pd

        parts = []
        for run in self.document["runs"]:
            file = inside(self.path, f"{run['folder']}/{name}.parquet")
            if file.is_file():
                part = _frame(file)
                part.insert(0, "run", run["name"])
                parts.append(part)
        return pd.concat(parts, ignore_index=True)

    def _table(self, name: str) -> pd.DataFrame:
        import pandas as pd

        parts = []
        for run in [*self.document["runs"], None]:
            for report, table in self._listed_of(run):
                if f"{report}.{table['key']}" == name:
                    labels = _distinct(column["label"] for column in table["columns"])
                    if any(len(row) != len(labels) for row in table["rows"]):
                        raise DataError(f"{self.path}: a row of {name} has not {len(labels)} values", _AGAIN)
                    part = pd.DataFrame(table["rows"], columns=labels)
                    if run is not None:
                        part.insert(0, "run", run["name"], allow_duplicates=True)
                    parts.append(part)
        return pd.concat(parts, ignore_index=True)

    def _listed(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """(report, table) of every table in report.json, those of the comparison last."""
        for run in [*self.document["runs"], None]:
            yield from self._listed_of(run)

    def _listed_of(self, run: Mapping[str, Any] | None) -> Iterator[tuple[str, dict[str, Any]]]:
        """The tables of a run; None: of the comparison."""
        if run is None:
            yield from (("comparison", table) for table in (self.document.get("comparison") or {}).get("tables", ()))
            return
        for report, result in run["reports"].items():
            yield from ((report, table) for table in result["tables"])


def _frame(file: Path) -> pd.DataFrame:
    """A Parquet file. Raises DataError if it is damaged."""
    import pyarrow as pa

    try:
        return read_parquet(file).to_pandas()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{file} cannot be read: {error}", _AGAIN) from None


class _Lazy(Mapping[str, Any]):
    """Tables by name, each read when it is requested."""

    def __init__(self, path: Path, read: Mapping[str, Callable[[], Any]]) -> None:
        self._path, self._read = path, read

    def __getitem__(self, name: str) -> Any:
        if name not in self._read:
            raise DataError(f"no table {name!r} in {self._path}", f"its tables: {', '.join(self._read)}")
        return self._read[name]()

    def __contains__(self, name: object) -> bool:
        return name in self._read

    def __iter__(self) -> Iterator[str]:
        return iter(self._read)

    def __len__(self) -> int:
        return len(self._read)

    def __repr__(self) -> str:
        return f"tables: {', '.join(self._read)}"


def _distinct(labels: Iterator[str]) -> list[str]:
    """Labels of columns, a repeated one with a number."""
    found: list[str] = []
    for label in labels:
        name, n = label, 2
        while name in found:
            name, n = f"{label} {n}", n + 1
        found.append(name)
    return found


def open_report(path: Path | str) -> SavedReport:
    """A report from its folder, or from the path of its report.json or index.html.

    Raises:
        DataError: it was not found, cannot be read, or was written by a newer version.
    """
    path = Path(path)
    folder = path.parent if path.suffix in (".json", ".html") else path
    file = folder / "report.json"
    if not file.exists():
        beside = ", ".join(sorted(one.parent.name for one in folder.parent.glob("*/report.json")))
        raise DataError(
            f"no report at {folder} (no report.json)",
            f"reports in {folder.parent}: {beside}" if beside else "pipeline analyze   (writes one)",
        )
    document = read_object(file, _AGAIN)
    if document.get("schema") != SCHEMA:
        raise DataError(f"{file} is not a report of `pipeline analyze`")
    version = document.get("schema_version")
    if type(version) is int and version > SCHEMA_VERSION:
        raise DataError(
            f"{file} has schema version {version}, this program reads up to {SCHEMA_VERSION}",
            "install a newer version of the program",
        )
    return SavedReport(folder, checked(Report, document, file, _AGAIN))


def report_on(run: Path, reports: Path) -> tuple[SavedReport, str] | None:
    """The newest report below a folder that describes the latents of a run, and what it calls the run."""
    files = sorted(reports.glob("*/report.json"), key=lambda file: file.stat().st_mtime, reverse=True)
    for file in files:
        try:
            report = open_report(file)
        except DataError:  # a sweep's, a damaged one
            continue
        for entry in report.document["runs"]:
            path = entry["facts"].get("path")
            table = report.path / entry["folder"] / "latents.parquet"
            if entry["trained"] and path and Path(path).resolve() == run.resolve() and table.is_file():
                return report, entry["name"]
    return None
