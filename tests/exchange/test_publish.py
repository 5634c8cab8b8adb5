"""A published folder: the card, three formats, and the hub, played by a server on this machine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from huggingface_hub import ModelCard, constants

import sparse_pipeline as sp
from sparse_pipeline.exchange.card import LOADERS
from sparse_pipeline.exchange.hub import parse_hub_path
from sparse_pipeline.exchange.publish import Publication, publish
from sparse_pipeline.shared.config.yaml import parse_yaml
from sparse_pipeline.shared.errors import DataError, UsageError
from tests.exchange import planted as p
from tests.exchange.hub import SHA, stand_in
from tests.synthetic import make_cache

X = p.rows()


def test_the_folder_and_its_card(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache", n_seq=96, sites={p.SOURCE: p.D, p.TARGET: p.D})
    summary = {"fvu": 0.25, "fvu_untrained": 0.9991, "l0": 6.0, "dead": 3, "evaluated_on": "heldout"}
    coder = p.planted("topk", tied=False)
    run = p.save(coder, tmp_path / "mine", summary=summary)
    sae = p.planted("jumprelu")
    other = p.save(sae, tmp_path / "an-sae")
    wanted = Publication("you/coders", tmp_path / "out", cache=cache.path, model="google/gemma-2-2b")
    result = publish([run, other], wanted, "pipeline publish …")
    assert result.url is None
    assert "not uploaded" in str(result)

    text = (result.out / "README.md").read_text()
    front = parse_yaml(text.split("---")[1])
    assert (front["license"], front["base_model"], front["library_name"]) == ("gemma", "google/gemma-2-2b", "saelens")
    assert {"transcoder", "sparse-autoencoder"} < set(front["tags"])
    assert ModelCard(text).data.license == "gemma"  # the hub's own reader
    assert "| FVU | 0.25 |" in text
    assert "| FVU of the same coder untrained (control) | 0.9991 |" in text
    assert "approximate: TopK with k = 6 as one threshold" in text
    for name, original in (("mine", coder), ("an-sae", sae)):
        formats = next(one["formats"] for one in result.coders if one["name"] == name)
        assert len(formats) == 3
        for form, folder in formats.items():
            assert (result.out / folder).is_dir()
            assert LOADERS[form][1].format(repo="you/coders", folder=folder) in text
            loaded = sp.load_coder(result.out / folder)
            if not (name == "mine" and form == "saelens"):
                p.assert_same(p.outputs(loaded, X), p.outputs(original, X))


def test_what_is_missing_is_an_error(tmp_path: Path) -> None:
    run = p.save(p.planted("relu"), tmp_path / "run")
    with pytest.raises(UsageError, match="is not owner/name"):
        publish([run], Publication("coders", tmp_path / "out"), "")
    with pytest.raises(UsageError, match="licence of something/unheard-of is not known") as error:
        publish([run], Publication("you/coders", tmp_path / "out", model="something/unheard-of"), "")
    assert "--licence" in str(error.value.hint)
    assert not (tmp_path / "out").exists()


PROGRAM = """
import contextlib, io, json, os, sys
import sparse_pipeline as sp
from sparse_pipeline import pipeline

for line in sys.stdin:
    token, *words = json.loads(line)
    os.environ["HF_TOKEN"] = token
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        if words[0] == "load":
            coder = sp.load_coder(words[1])
            print(type(coder).__name__, coder.n_latents)
        else:
            code = pipeline.run(words)
    print(json.dumps([code, out.getvalue(), err.getvalue()]), flush=True)
"""


class Told(NamedTuple):
    """What a command left."""

    returncode: int
    stdout: str
    stderr: str


class Machine:
    """A process with its own view of the hub, which is settled by the environment when it starts."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "0", "HF_HOME": str(folder / "hf"), **environment},
        )  # fmt: skip

    def __call__(self, *words: str, token: str = "secret") -> Told:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([token, *words]) + "\n")
        self.process.stdin.flush()
        return Told(*json.loads(self.process.stdout.readline()))

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate(timeout=60)  # its input ends, and so does it


def test_upload_and_load_from_the_hub(tmp_path: Path) -> None:
    """With --yes everything in the folder is committed, and hf:// paths give it back; once offline, from the cache."""
    p.save(p.planted("jumprelu"), tmp_path / "run")

    with stand_in() as hub, Machine(tmp_path, HF_ENDPOINT=hub.address) as call:
        told = ("publish", "run", "you/coders", "--model", "google/gemma-2-2b", "--overwrite")
        refused = call(*told, "--yes", token="wrong")
        assert refused.returncode == 1
        assert "the hub refused the upload" in refused.stderr
        assert "Traceback" not in refused.stderr
        assert hub.repos == {}

        done = call(*told, "--yes", "--private")
        assert done.returncode == 0, done.stderr
        assert f"{hub.address}/you/coders/commit/{SHA}" in done.stdout
        folder = tmp_path / "published/coders"
        written = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        assert hub.repos == {"you/coders": written}
        assert hub.private == {"you/coders": True}

        place = f"hf://you/coders/{p.SOURCE}/saelens"
        loaded = call("load", place)
        assert loaded.stdout.split() == ["JumpReLU", str(p.F)], loaded.stderr
        fetched = [path for method, path in hub.requests if method == "GET" and "/resolve/" in path]
        assert fetched
        assert all(f"/{p.SOURCE}/saelens/" in path for path in fetched)  # nothing else of the repository

    with Machine(tmp_path, HF_HUB_OFFLINE="1") as call:
        offline = call("load", place)
    assert offline.stdout.split() == ["JumpReLU", str(p.F)], offline.stderr


def test_a_place_that_is_not_in_the_cache_is_an_error_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DataError, match="not in the local hub cache") as error:
        sp.load_coder("hf://you/coders/layer_08")
    assert "hf download you/coders" in str(error.value.hint)


def test_hub_paths() -> None:
    for text in ("hf://you/coders/a/b", "hf:/you/coders/a/b/"):  # a Path has one slash
        assert str(parse_hub_path(Path(text) if "//" in text else text)) == "hf://you/coders/a/b"
    found = parse_hub_path("hf://you/coders@v1/file.npz")
    assert (found.repo, found.folder, found.revision) == ("you/coders", "file.npz", "v1")
    assert parse_hub_path("hf://you/coders/file.npz?revision=main").revision == "main"
    for wrong in ("hf://you", "hf://", "hf://you/a b"):
        with pytest.raises(UsageError, match=re.escape(wrong)):
            parse_hub_path(wrong)
