"""The documents are true: generated pages are current, links lead somewhere, settings validate, code blocks run."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest

from sparse_pipeline import pipeline
from sparse_pipeline.commands import cli
from sparse_pipeline.resolve import pipeline_class, resolve, variants
from sparse_pipeline.shared.config.settings import presets, to_dict, validate
from sparse_pipeline.shared.config.yaml import load_yaml, parse_yaml

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
WRITTEN = [
    *PAGES,
    ROOT / "CHANGELOG.md",
    ROOT / "cache/README.md",
    *sorted((ROOT / "studies").glob("*.yaml")),
]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


# --- generated pages ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs/generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_pages_are_current(generate: ModuleType) -> None:
    for path, text in generate.pages().items():
        assert path.read_text(encoding="utf-8") == text, f"{name_of(path)} is out of date: python docs/generate.py"


@pytest.mark.slow
def test_the_worked_examples_are_what_the_command_prints(generate: ModuleType) -> None:
    text = (ROOT / "docs/scale.md").read_text(encoding="utf-8")
    assert generate.scale_page(text) == text, "docs/scale.md is out of date: python docs/generate.py"


def test_the_page_of_results_is_made_from_the_results(generate: ModuleType, tmp_path: Path) -> None:
    document = {
        "title": "A study", "about": "What it asks.", "machine": "a machine", "command": "pipeline sweep a.yaml",
        "documents": "heldout", "rows_analysed": 1234, "baseline": "a", "missing": ["b-seed0"], "efficiency": [],
        "setup": {"source": ["x"], "target": ["y"], "d_in": [8], "d_out": [16], "latents": [32], "steps": [7],
                  "tokens": [70]},
        "columns": [{"key": "fvu", "label": "FVU", "format": "number", "definition": ""}],
        "settings": [{"setting": "a", "role": "run", "seeds": [0], "against": {},
                      "figures": {"fvu": {"mean": 0.25, "low": 0.2, "high": 0.3, "n": 3}}}],
    }  # fmt: skip
    for size, title in (("demo", "A study"), ("big", "A study")):
        folder = tmp_path / "one" / size
        folder.mkdir(parents=True)
        (folder / "comparison.json").write_text(json.dumps({**document, "title": title}))
    page = generate.results_page(f"By hand.\n\n{generate.BEGIN}\n\nold", tmp_path)
    assert page.startswith(f"By hand.\n\n{generate.BEGIN}\n\n## A study\n\nWhat it asks.\n\n### A study: demo\n")
    assert page.count("| a | 1 | 0.25 [0.2, 0.3] |") == 2
    assert (
        "x → y, width 16; 32 latents; 7 steps, 70 rows. The reports analyzed 1,234 rows of held-out documents." in page
    )
    assert "../studies/results/one/big/curves.png" in page
    assert "b-seed0" in page
    assert "old" not in page
    assert generate.results_page(page, tmp_path) == page


def test_every_command_and_option_says_what_it_does() -> None:
    def visit(command: Any) -> Iterator[Any]:
        yield command
        for inner in getattr(command, "commands", {}).values():
            yield from visit(inner)

    for command in visit(cli):
        assert command.help, command.name
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"{command.name} {parameter.name}"
            else:  # click has no help for arguments: the command's own text says what they are
                assert str(parameter.metavar).strip("[].") in command.help


# --- settings that ship ---------------------------------------------------------------------------------------------


def test_pipeline_yaml_is_the_embedded_default_and_every_field_is_commented() -> None:
    text = (ROOT / "pipeline.yaml").read_text(encoding="utf-8")
    cls = pipeline_class()
    assert validate(cls, parse_yaml(text)) == cls()
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if re.match(r"\s+[a-z_]+:", line):
            above = lines[number - 1].strip()
            assert "  # " in line or above.startswith("# "), f"pipeline.yaml line {number + 1} has no comment: {line}"


SHIPPED = sorted(
    path for folder in ("shared", "train", "analyze", "harvest") for path in (ROOT / folder).rglob("*.yaml")
)


@pytest.mark.parametrize("path", SHIPPED, ids=name_of)
def test_every_shipped_yaml_says_first_what_it_is(path: Path) -> None:
    assert path.read_text(encoding="utf-8").startswith("# ")
    assert load_yaml(path)


@pytest.mark.parametrize("variant", [None, *variants()])
@pytest.mark.parametrize("preset", [None, *presets()])
def test_every_preset_validates_with_every_variant(preset: str | None, variant: str | None) -> None:
    whole = resolve([preset] if preset else [], (), variant, here=False)
    assert validate(type(whole), to_dict(whole)) == whole
    if variant:
        assert whole.train.variant == variant


# --- links ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_inside_the_repository_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:|#", target):
            assert (page.parent / target.partition("#")[0]).exists(), f"{name_of(page)} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_to_a_heading_find_it(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target, anchor in re.findall(r"\]\(([^)#\s:]*)#([^)\s]+)\)", text):
        there = page.parent / target if target else page
        assert anchor in anchors(there), f"{name_of(page)} links to {target}#{anchor}"


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and most renderers of Markdown make them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


# --- paths ----------------------------------------------------------------------------------------------------------

PATH = re.compile(r"[\w.-]+(/[\w.-]+)*(/|\.(py|md|yaml|toml))")


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_every_path_that_is_named_exists(page: str) -> None:
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    named = [quoted for quoted in re.findall(r"`([^`]+)`", text) if PATH.fullmatch(quoted)]
    assert len(named) > 20
    missing = [path for path in named if not (ROOT / path).exists() and path != "final/"]
    assert not missing, f"{page} names paths that do not exist: {missing}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_source_file_that_a_page_names_exists(page: Path) -> None:
    # files of the reader's
    yours = {"train.py", "shared.py", "mine.yaml", "train/variants/mine.yaml", "saebench_saes.py"}
    folders = "harvest|train|tune|analyze|exchange|explain|live|transfer|models|shared|tests|benchmarks|studies|docs"
    inside = rf"(?:(?:{folders})/[\w./-]*\w|[\w]+\.py)"
    named = set(re.findall(rf"(?<![\w./<>-])({inside})(?![\w<*./-])", page.read_text(encoding="utf-8"))) - yours
    missing = sorted(path for path in named if not (ROOT / path).exists() and not (page.parent / path).exists())
    assert not missing, f"{name_of(page)} names {missing}"


def test_the_map_has_every_room() -> None:
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    rooms = {
        f"{folder.parent.relative_to(ROOT)}/"
        for stage in ("harvest", "train", "analyze", "exchange", "explain", "live", "transfer", "models", "shared")
        for folder in [*(ROOT / stage).glob("__init__.py"), *(ROOT / stage).glob("*/__init__.py")]
    }
    missing = sorted(room for room in rooms if f"`{room}`" not in text)
    assert not missing, f"docs/architecture.md does not name {missing}"


def test_where_is_answers_for_many_concepts() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.split("## Where is it?")[1].split("\n## ")[0]
    rows = [line.split("|")[1:-1] for line in table.splitlines() if line.startswith("| ") and "`" in line]
    assert len(rows) >= 10
    for concept, path in rows:
        assert PATH.fullmatch(re.findall(r"`([^`]+)`", path)[0]), f"no path for {concept.strip()}"


# --- plain English --------------------------------------------------------------------------------------------------

# Phrases to avoid, and what to write instead.
PLAIN = {
    r"(is|are|was|were) not there": "not found, does not exist",
    r"held against": "checked against, compared with",
    r"(leav\w+|left|count\w+) position 0 (out|in)|position 0 (is )?(left out|counted in)": "excluding position 0",
    r"without position 0": "excluding position 0",
    r"of (other|different) settings": "with different settings",
    r"asks? for|asked (for|to)": "requires, requested",
    r"at most so many": "at most N rows",
    r"so-manyeth": "every Nth",
    r"the same bits": "bit-identical",
    r"mend(s|ed|ing)?": "repair",
    r"(when|where) (it is|they are) named": "when requested",
    r"comes by": "is called",
    r"(go|goes|went|going) on (from )?(where|there)": "resume, continue",
    r"(laid|lays?|lies) over": "overrides, merged over",
    r"what (it is worth|is said|was made)": "name the thing",
    r"one's own": "your own",
}


def roundabout(text: str) -> Iterator[tuple[int, str, str]]:
    """(line, phrase, what to write instead) for each phrase of the list, also one that runs over the end of a line."""
    for pattern, instead in PLAIN.items():
        spaced = pattern.replace(" ", r"\s+")
        for found in re.finditer(rf"\b({spaced})\b", text):
            yield text.count("\n", 0, found.start()) + 1, " ".join(found[0].split()), instead


def test_a_roundabout_phrase_is_found_over_the_end_of_a_line() -> None:
    assert list(roundabout("one\nIt is held\n  against the other.")) == [(2, "held against", PLAIN["held against"])]
    assert not list(roundabout("It is checked against the other, and amended."))


def assert_plain(paths: Iterable[Path]) -> None:
    found = [
        f"{name_of(path)}:{line}: {phrase!r}: {instead}"
        for path in paths
        for line, phrase, instead in roundabout(path.read_text(encoding="utf-8"))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("page", WRITTEN, ids=name_of)
def test_pages_are_in_plain_english(page: Path) -> None:
    assert_plain([page])


@pytest.mark.parametrize(
    "folder",
    [
        ".",
        "harvest",
        "train",
        "tune",
        "analyze",
        "exchange",
        "explain",
        "live",
        "transfer",
        "models",
        "shared",
        "benchmarks",
    ],
)
def test_docstrings_comments_and_messages_are_in_plain_english(folder: str) -> None:
    files = (ROOT / folder).glob("*.py") if folder == "." else (ROOT / folder).rglob("*")
    assert_plain(sorted(path for path in files if path.suffix in {".py", ".js", ".j2", ".yaml"}))


# --- code blocks ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    line: int
    language: str
    text: str
    not_run: str | None  # the reason in `<!-- not run: … -->` right above it


def blocks(page: Path) -> list[Block]:
    found: list[Block] = []
    lines = page.read_text(encoding="utf-8").splitlines()
    number = 0
    while number < len(lines):
        opened = re.match(r"```(\S*)", lines[number])
        number += 1
        if not opened:
            continue
        start = number
        while not lines[number].startswith("```"):
            number += 1
        above = next((line for line in reversed(lines[: start - 1]) if line.strip()), "")
        reason = re.fullmatch(r"<!-- not run: (.+) -->", above.strip())
        text = "\n".join(lines[start:number]) + "\n"
        found.append(Block(start, opened[1], text, reason[1] if reason else None))
        number += 1
    return found


def runnable(page: Path) -> list[Block]:
    return [block for block in blocks(page) if block.language in ("python", "console") and not block.not_run]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_says_what_it_is(page: Path) -> None:
    for block in blocks(page):
        where = f"{name_of(page)}:{block.line}"
        assert block.language in ("python", "console", "text", "yaml", "json", "toml"), f"{where}: {block.language!r}"
        if block.language == "console":
            assert block.text.startswith("$ "), f"{where}: a console block begins with a command"


SLOW_PAGES = {"docs/sweeps.md"}
"""Whose commands train many runs."""


def with_blocks() -> list[Any]:
    found = [page for page in PAGES if runnable(page)]
    return [pytest.param(one, marks=[pytest.mark.slow] if name_of(one) in SLOW_PAGES else []) for one in found]


@pytest.mark.parametrize("page", with_blocks(), ids=name_of)
def test_blocks_run(page: Path, workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of one page run in order, in a folder with what a reader has by then: a cache and two runs."""
    folder = tmp_path / "here"
    shutil.copytree(workshop, folder)
    shutil.copytree(folder / "runs/topk", folder / "runs/demo-topk")  # README reads a run that `make demo` leaves
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {"__name__": "docs"}
    for block in runnable(page):
        where = f"{name_of(page)}:{block.line}"
        if block.language == "python":
            exec(compile("\n" * block.line + block.text, str(page), "exec", dont_inherit=True), names)
        else:
            for line in re.sub(r"\\\n", " ", block.text).splitlines():
                if line.startswith("$ "):
                    program, *arguments = shlex.split(line.removeprefix("$ "), comments=True)
                    assert program == "pipeline", f"{where}: only pipeline is run here, mark the block as not run"
                    assert pipeline.run(arguments) == 0, f"{where}: {line}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_yaml_and_json_blocks_parse(page: Path) -> None:
    for block in blocks(page):
        if block.language in ("yaml", "json") and not block.not_run:
            parse_yaml(block.text, f"{name_of(page)}:{block.line}")
