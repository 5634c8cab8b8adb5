"""Which latents fire on new text, against a hook on the plain model and the coder's own `encode`."""

from __future__ import annotations

import html.parser
import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import sparse_pipeline as sp
from sparse_pipeline import pipeline
from sparse_pipeline.models.folder import DEMO_MODEL
from sparse_pipeline.shared.errors import DataError, UsageError
from sparse_pipeline.shared.overview.find import kind_of
from sparse_pipeline.shared.runs.explanations import write_explanations
from tests.browser import NARROW_AND_WIDE, faults_of, needs_chromium

TEXT = 'def join(words):\n    return "<eos>".join(words)  # <script>alert("&")</script> \x1b[31m 木'


@pytest.fixture(scope="module")
def here(workshop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workshop, and a report on its run topk."""
    folder = tmp_path_factory.mktemp("ask") / "w"
    shutil.copytree(workshop, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        sp.run_analyze("topk", only="top_activations", name="about-topk", controls=False)
    return folder


@pytest.fixture(autouse=True)
def _there(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)


def plain() -> Any:
    """The model as anyone would load it."""
    return AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype=torch.float32, attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def oracle() -> tuple[list[int], np.ndarray]:
    """The ids of the text, and codes [T, F] from a hook on the plain model."""
    model, tokenizer = plain(), AutoTokenizer.from_pretrained(DEMO_MODEL)
    ids = [tokenizer.bos_token_id, *tokenizer.backend_tokenizer.encode(TEXT, add_special_tokens=False).ids]
    assert tokenizer.eos_token_id in ids, "the plain call takes <eos> for a special token"
    ids = [tokenizer.bos_token_id, *tokenizer(TEXT, add_special_tokens=False, split_special_tokens=True)["input_ids"]]
    held: list[torch.Tensor] = []
    norm = model.model.layers[2].pre_feedforward_layernorm
    handle = norm.register_forward_pre_hook(lambda _m, args: held.append(args[0].clone()))
    with torch.no_grad():
        model(input_ids=torch.tensor([ids]))
    handle.remove()
    return ids, held[0][0].numpy()


@pytest.fixture
def codes(oracle: tuple[list[int], np.ndarray]) -> np.ndarray:
    with torch.no_grad():
        found: np.ndarray = sp.load_coder("topk").encode(torch.from_numpy(oracle[1])).dense().numpy()
    return found


def ask(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = pipeline.run(["ask", *arguments])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_the_command_gives_the_codes_of_a_hook_and_encode(
    oracle: tuple[list[int], np.ndarray], codes: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = ask(capsys, "topk", TEXT, "--json", "--top", "128")
    found = json.loads(out)
    assert code == 0
    assert found["source"] == "layer_02.resid_mid"
    assert found["model_checked"].startswith("sha256 ")
    assert [token["token_id"] for token in found["tokens"]] == oracle[0]
    assert 1 not in oracle[0], "<eos> in the text is plain text"
    assert "".join(token["token"] for token in found["tokens"][1:]).startswith(TEXT[:-1])  # the last one is bytes
    for row, token in zip(codes, found["tokens"], strict=True):
        fired = {entry["latent"]: entry["activation"] for entry in token["latents"]}
        assert set(fired) == set(np.flatnonzero(row)), token
        np.testing.assert_allclose([fired[i] for i in sorted(fired)], row[row > 0], rtol=1e-5)
        values = [entry["activation"] for entry in token["latents"]]
        assert values == sorted(values, reverse=True)
        assert token["l0"] == (row > 0).sum()
        assert token["position_0"] is (token["position"] == 0)
    labels = sp.open_report("about-topk").latents("topk")["fires_on"]
    shown = {entry["latent"]: entry["label"] for token in found["tokens"] for entry in token["latents"]}
    assert any(shown.values())
    assert all((label or "") == labels[latent] for latent, label in shown.items())


def test_top_latents_is_the_same_frame_for_a_run_and_for_a_coder_with_a_model(codes: np.ndarray) -> None:
    frame = sp.top_latents("topk", None, TEXT)
    dense = np.zeros_like(codes)
    dense[frame["position"], frame["latent"]] = frame["activation"]
    np.testing.assert_allclose(dense, codes, rtol=1e-5)
    assert frame["position_0"].tolist() == (frame["position"] == 0).tolist()
    coder = sp.load_coder("topk")
    own = sp.top_latents(coder, plain(), TEXT, k=2)
    assert own["position"].value_counts().max() == 2
    best = frame.groupby("position").head(2).reset_index(drop=True)
    assert own[["position", "latent"]].equals(best[["position", "latent"]])
    assert own["token"].drop_duplicates().tolist() == best["token"].drop_duplicates().tolist()
    coder.source = None
    with pytest.raises(UsageError, match="source site is not known"):
        sp.top_latents(coder, plain(), TEXT)
    assert len(sp.top_latents(coder, plain(), TEXT, k=2, source="layer_02.resid_mid")) == len(own)
    with pytest.raises(UsageError, match="names no model"):
        sp.top_latents(coder, None, TEXT)


def test_the_table_fits_80_columns_and_the_page_is_safe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    code, out, _ = ask(capsys, "topk", TEXT + " e" * 40, "--html", str(page))
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert "position 0: the same in every text" in out
    assert "\x1b" not in out
    assert "\\u001b" in out

    tags: list[tuple[str, dict[str, str | None]]] = []

    class Parser(html.parser.HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.append((tag, dict(attrs)))

    text = page.read_text(encoding="utf-8")
    Parser().feed(text)
    assert {tag for tag, _ in tags}.isdisjoint({"script", "img", "link", "iframe", "a"})
    assert not any(name.startswith("on") or name in ("src", "href") for _, attrs in tags for name in attrs)
    assert "&lt;" in text
    before = page.read_bytes()
    code, _, err = ask(capsys, "topk", "a", "--html", str(page))
    assert (code, "already exists" in err, page.read_bytes() == before) == (2, True, True)


@needs_chromium
@pytest.mark.slow
def test_nothing_on_the_page_overflows_and_axe_finds_no_fault(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], browser: Any
) -> None:
    page = tmp_path / "page.html"
    assert ask(capsys, "topk", TEXT, "--html", str(page))[0] == 0
    assert faults_of(browser, page, NARROW_AND_WIDE) == {}


def test_text_from_stdin_in_colour(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("return a list"))
    code, piped, _ = ask(capsys, "topk", "-", "--top", "1")
    assert code == 0
    assert piped == ask(capsys, "topk", "return a list", "--top", "1")[1]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured = ask(capsys, "topk", "return a list", "--top", "1")[1]
    assert "\x1b[38;2;" in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    assert ask(capsys, "topk", "return a list", "--top", "1")[1] == piped


def test_the_model_must_be_the_one_that_was_harvested(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = plain(), AutoTokenizer.from_pretrained(DEMO_MODEL)
    saved = tmp_path / "saved"
    model.save_pretrained(saved)  # the same weights in float32: other bytes
    tokenizer.save_pretrained(saved)
    code, out, _ = ask(capsys, "topk", "a list", "--model", str(saved), "--json")
    assert code == 0
    found = json.loads(out)
    assert found["model_checked"].startswith("activations at layer_02.resid_mid within")
    assert found["tokens"] == json.loads(ask(capsys, "topk", "a list", "--json")[1])["tokens"]
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.mul_(-1)
    model.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    code, _, err = ask(capsys, "topk", "a list", "--model", str(tmp_path / "other"))
    assert code == 3
    assert "is not the model of cache/demo: at layer_02.resid_mid the activations of its first document" in err
    with pytest.raises(DataError, match="is not the model of"):
        sp.top_latents("topk", str(tmp_path / "other"), "a list")


def test_a_run_without_its_cache_takes_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree("runs/topk", tmp_path / "runs/topk")
    monkeypatch.chdir(tmp_path)
    code, _, err = ask(capsys, "topk", "a list")
    assert code == 2
    assert "the coder's language model is not known: no cache at cache/demo" in err
    assert "next: --model FOLDER" in err
    code, out, _ = ask(capsys, "topk", "a list", "--model", "demo")
    assert code == 0
    assert "not checked against the run's cache" in out
    assert "no report on this run" in out
    scores = {"detection": None, "fuzzing": None, "controls": {}}
    latents = [{"latent": latent, "label": f"thing {latent}", **scores} for latent in range(128)]
    sha256 = json.loads(Path("runs/topk/final/config.json").read_bytes())["sha256"]
    document = {"coder_sha256": sha256, "judge": {"name": "rule"}, "latents": latents}
    write_explanations(Path("runs/topk"), "rule", document)
    code, out, _ = ask(capsys, "topk", "a list", "--model", "demo", "--json")
    fired = [one for token in json.loads(out)["tokens"] for one in token["latents"]]
    assert code == 0
    assert fired
    assert all(one["label"] == f"thing {one['latent']}" for one in fired)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("topk", ""), 2, "the text is empty"),
        (("topk", "a " * 300), 2, "the model takes at most 256"),
        (("tipk", "a"), 3, "no run 'tipk' in runs; did you mean 'topk'"),
        (("topk", "a", "--model", "runs"), 2, "--model: no config.json in runs"),
        (("topk", "a", "--device", "cuda:7"), 2, "--device: found cuda:7"),
        (("topk", "a", "--html", "no/folder/a.html"), 2, "the folder of no/folder/a.html was not found"),
    ],
)
def test_what_cannot_be_asked(
    arguments: tuple[str, ...], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found, out, err = ask(capsys, *arguments)
    assert (found, out) == (code, "")
    assert message in err
    assert kind_of(Path("runs/topk")) == "run"
