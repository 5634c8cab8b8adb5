"""Chats, special tokens in text, datasets that are tokenised already: ids, flags, and what training makes of them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from sparse_pipeline import pipeline
from sparse_pipeline.harvest.config import HarvestConfig
from sparse_pipeline.harvest.data.reading import BadRowError, Reading
from sparse_pipeline.harvest.job import Job
from sparse_pipeline.harvest.prepare import prepare
from sparse_pipeline.harvest.run import harvest
from sparse_pipeline.shared.cache import Flag, open_cache
from sparse_pipeline.shared.cache.heldout import split_rows
from sparse_pipeline.shared.console import Console
from sparse_pipeline.shared.errors import ConfigError, UsageError
from tests.harvest.conftest import CTX, make_texts
from tests.harvest.test_run import config_for

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}{% endgeneration %}"
    "{% else %}{{ m['content'] }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ '<|im_start|>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + (first if loop.first else '') }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] | trim }}{% endgeneration %}"
    "{% else %}{{ m['content'] | trim }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}{{ '[' + m['role'] + ']\n\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}{% endgeneration %}{{ eos_token }}"
    "{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
)
DROPS_REASONING = CHATML.replace(
    "{% generation %}{{ m['content'] }}", "{% generation %}{{ m['content'].split('</think>')[-1].lstrip() }}"
)
TEMPLATES = {"chatml": CHATML, "gemma": GEMMA, "llama": LLAMA, "drops reasoning": DROPS_REASONING}

CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "What is a list?"}, {"role": "assistant", "content": " A list holds values.\n"}],
    [
        {"role": "system", "content": "Be short: 漢字 🤖"},
        {"role": "user", "content": "user"},
        {"role": "assistant", "content": "user\n<|im"},
        {"role": "user", "content": "again"},
        {"role": "assistant", "content": "<think>hm, a list</think>\n\nthe list of values"},
    ],
]


@pytest.fixture(scope="module")
def chat_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with two more tokens, and ChatML as its template."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = tmp_path_factory.mktemp("models") / "tiny-chat"
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def rows_file(folder: Path, rows: list[dict[str, Any]]) -> Path:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def job_for(model: Path, rows: list[dict[str, Any]], folder: Path, template: str | None = None, **changes: Any) -> Job:
    changes = {"tokens": 400 * CTX, "on_bad_row": "skip", **changes}
    job = prepare(config_for(model, rows_file(folder, rows), folder / "cache", **changes))
    assert job.tokenizer is not None
    if template is not None:
        job.tokenizer.chat_template = template
    return job


@pytest.mark.parametrize("template", TEMPLATES)
def test_chats_have_the_ids_and_roles_of_the_library(chat_model: Path, tmp_path: Path, template: str) -> None:
    """Against `apply_chat_template` and its mask of the assistant's tokens (the templates mark what it generates)."""
    changes: dict[str, Any] = {"format": "chat", "train_roles": ["assistant"]}
    rows = [{"messages": chat} for chat in CHATS]
    job = job_for(chat_model, rows, tmp_path, TEMPLATES[template], **changes)
    assert job.tokenizer is not None
    found = list(job.tokenised(Reading()))
    for chat, document in zip(CHATS, found, strict=True):
        encoded = job.tokenizer.apply_chat_template(
            chat, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        ids, mask = np.array(encoded["input_ids"]), np.array(encoded["assistant_masks"], bool)
        leads = int(ids[0] == job.specials.bos)
        assert leads == (template in ("gemma", "llama"))
        np.testing.assert_array_equal(document.tokens, ids[leads:])
        assert document.close == (ids[-1] != job.specials.eos)
        assert document.flags is not None
        np.testing.assert_array_equal((document.flags & Flag.UNTRAINED) == 0, mask[leads:])
        own = (document.flags & Flag.TEMPLATE) != 0
        assert not (own & mask[leads:]).any()
        special = np.isin(document.tokens, job.tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"]))
        assert own[special].all()
        contents = "".join(job.tokenizer.convert_ids_to_tokens(document.tokens[~own].tolist()))
        assert "assistant" not in contents
        assert "list" in contents


def test_what_train_roles_leaves_out(chat_model: Path, tmp_path: Path) -> None:
    rows = [{"conversations": [{"from": "human", "value": "a list"}, {"from": "gpt", "value": "of values"}]}]
    flags = {}
    for roles in (None, ["user"], ["assistant", "template"]):
        changes = {"format": "chat", "text_column": "conversations", "train_roles": roles}
        (document,) = job_for(chat_model, rows, tmp_path, **changes).tokenised(Reading())
        assert document.flags is not None
        flags[str(roles)] = document.flags
    every = flags["None"]
    assert set(every) == {0, int(Flag.TEMPLATE)}
    user, rest = ((flags[roles] & Flag.UNTRAINED) == 0 for roles in ("['user']", "['assistant', 'template']"))
    np.testing.assert_array_equal(user, ~rest)
    assert 0 < user.sum() < (every == 0).sum()
    for changes, message in (
        ({"train_roles": ("user",)}, "only chats have roles"),
        ({"format": "chat", "packing": "prompts"}, "prompts are text or tokens"),
    ):
        with pytest.raises((ConfigError, ValueError), match=message):
            HarvestConfig(**changes)  # type: ignore[arg-type]


USER = {"role": "user", "content": "x"}


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (None, "column 'messages' is null, expected a list of messages"),
        ("hello", "column 'messages' is str, expected a list of messages"),
        ([], "column 'messages' is an empty list"),
        ([USER, "hi"], "message 1 of column 'messages' is str, expected an object"),
        ([{"content": "x"}], "message 0 .* has no 'role'"),
        ([{"role": "user", "content": None}], "the 'content' of message 0 .* is null"),
        ([{"role": "user", "content": [{"type": "image"}]}], "the 'content' of message 0 .* has no text"),
        ([{"role": "user", "content": "\ud83d"}], "message 0 .* holds a lone surrogate"),
        ([USER, USER], "the chat template refuses the messages: roles must alternate"),
    ],
)
def test_bad_chats_are_named_and_skipped(chat_model: Path, tmp_path: Path, messages: Any, message: str) -> None:
    rows = [{"messages": CHATS[0]}, {"messages": messages}, {"messages": CHATS[0]}]
    job = job_for(chat_model, rows, tmp_path, GEMMA, format="chat")
    with pytest.raises(BadRowError, match=f"rows.jsonl:2.*{message}"):
        list(job.tokenised(Reading()))
    reading = Reading("skip")
    assert [document.index for document in job.tokenised(reading)] == [0, 1]
    assert reading.skipped.total() == 1


def test_a_tokenizer_without_a_template_and_text_in_place_of_chats(
    tiny_model: Path, chat_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="has no chat template"):
        list(job_for(tiny_model, [{"messages": CHATS[0]}], tmp_path, format="chat").tokenised(Reading()))
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(UsageError, match=r"a\.txt is text, found format: chat, which requires a table"):
        list(prepare(config_for(chat_model, tmp_path / "a.txt", tmp_path, format="chat")).tokenised(Reading()))
    for rows, hint in (
        ([{"messages": CHATS[0]}], "--set harvest.format=chat"),
        ([{"conversations": []}], "--set harvest.format=chat --set harvest.text_column=conversations"),
        ([{"input_ids": [1]}], "--set harvest.format=tokens"),
    ):
        with pytest.raises(UsageError, match="no column 'text'") as caught:
            list(job_for(chat_model, rows, tmp_path).tokenised(Reading()))
        assert hint in str(caught.value.hint)


SPELLED = "one <|im_start|> two<eos> three <|im_end|>"


def test_spelled_out_special_tokens(chat_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [SPELLED, "none", SPELLED]
    rows = [{"text": text} for text in texts]
    plain, parsed = (job_for(chat_model, rows, tmp_path, special_tokens=mode) for mode in ("text", "parse"))
    reading = Reading()
    assert plain.tokenizer is not None
    start, eos, end = plain.tokenizer.convert_tokens_to_ids(["<|im_start|>", "<eos>", "<|im_end|>"])
    for document in plain.tokenised(reading):
        assert not np.isin(document.tokens, [start, eos, end]).any()
    assert dict(reading.spelled) == {"<|im_start|>": 2, "<eos>": 2, "<|im_end|>": 2}
    assert "6 special tokens spelled out in the text were read as plain text" in reading.notes()[0]
    reading = Reading()
    for text, document in zip(texts, parsed.tokenised(reading), strict=True):
        expected = parsed.tokenizer(text, add_special_tokens=False)["input_ids"]  # type: ignore[misc]
        np.testing.assert_array_equal(document.tokens, expected)
        assert document.flags is not None
        np.testing.assert_array_equal(document.flags == Flag.TEMPLATE, np.isin(document.tokens, [start, end]))
    assert not reading.spelled
    harvest(plain.config, Console())
    assert (
        "special tokens spelled out in the text were read as plain text (<|im_start|> 2 ×," in capsys.readouterr().err
    )
    # in a message they are the user's text; the template's own are tokens
    chat = [{"role": "user", "content": SPELLED}, {"role": "assistant", "content": "fine"}]
    job = job_for(chat_model, [{"messages": chat}], tmp_path, format="chat")
    reading = Reading()
    (document,) = job.tokenised(reading)
    assert [int((document.tokens == token).sum()) for token in (start, eos, end)] == [2, 0, 2]
    assert reading.spelled.total() == 3
    assert job.tokenizer is not None
    assert job.tokenizer.decode(document.tokens) == job.tokenizer.apply_chat_template(chat, tokenize=False)
    job = job_for(chat_model, [{"messages": chat}], tmp_path, format="chat", special_tokens="parse")
    (document,) = job.tokenised(Reading())
    assert [int((document.tokens == token).sum()) for token in (start, eos, end)] == [3, 1, 3]


def test_tokens_of_a_dataset_that_is_tokenised(tiny_model: Path, tmp_path: Path) -> None:
    """The cache of the ids is bit for bit that of the text; BOS and padding of the dataset are not doubled."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    texts = make_texts(80)
    plain = config_for(tiny_model, rows_file(tmp_path, [{"text": text} for text in texts]), tmp_path / "a")
    expected = open_cache(harvest(plain).path)
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    longest = max(map(len, ids)) + 2
    rows = []
    for one in ids:
        whole = [tokenizer.bos_token_id, *one, tokenizer.eos_token_id] if one else []
        padding = longest - len(whole)
        rows.append({"input_ids": whole + [0] * padding, "attention_mask": [1] * len(whole) + [0] * padding})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "ids.parquet")
    cache = open_cache(harvest(config_for(tiny_model, tmp_path / "ids.parquet", tmp_path / "b", format="tokens")).path)
    for name in ("tokens", "doc_id", "pos_in_doc", "flags"):
        np.testing.assert_array_equal(getattr(cache, name), getattr(expected, name))
    for site in plain.sites:
        assert torch.equal(cache.rows(site, range(cache.n_rows)), expected.rows(site, range(cache.n_rows)))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([5, 4096, 7], "token 4096 is outside the model's vocabulary of 4,096"),
        ([5, -1], "token -1 is outside"),
        ([1.5], "column 'input_ids' is a list of float64, expected a list of token ids"),
        (["a"], r"column 'input_ids' is a list of <U1, expected"),
        ([[1, 2], [3, 4]], "column 'input_ids' is a list of lists, expected a list of token ids"),
        ([[1, 2], [3]], "column 'input_ids' is a list of lists, expected a list of token ids"),
        ("12", "column 'input_ids' is str, expected a list of token ids"),
        (None, "column 'input_ids' is null, expected a list of token ids"),
    ],
)
def test_bad_token_ids_are_named_and_skipped(tiny_model: Path, tmp_path: Path, ids: Any, message: str) -> None:
    job = job_for(tiny_model, [{"input_ids": [5, 6, 7]}, {"input_ids": ids}], tmp_path, format="tokens")
    with pytest.raises(BadRowError, match=f"rows.jsonl:2: .*{message}"):
        list(job.tokenised(Reading()))
    assert len(list(job.tokenised(Reading("skip")))) == 1


def test_settings_of_a_format_decide_the_identity(tmp_path: Path) -> None:
    from sparse_pipeline.harvest.config import cache_path, content_settings

    base = HarvestConfig(dataset="x.jsonl")
    assert not {"format", "special_tokens", "train_roles"} & set(content_settings(base))
    others = [{"format": "chat"}, {"format": "tokens"}, {"special_tokens": "parse"}]
    changes: list[dict[str, Any]] = [*others, {"format": "chat", "train_roles": ("user",)}]
    paths = {cache_path(HarvestConfig(dataset="x.jsonl", **change)) for change in changes}
    assert len({cache_path(base), *paths}) == 5


@pytest.mark.parametrize("kind", ["chat", "tokens"])
def test_from_harvest_to_report(
    kind: str, chat_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The rows that a role or the sampler leaves out are in the cache, and training and evaluation do not see them."""
    from transformers import AutoTokenizer

    monkeypatch.chdir(tmp_path)
    if kind == "chat":
        texts = make_texts(400, seed=5)
        pairs = zip(texts[::2], texts[1::2], strict=True)
        chats = [
            [{"role": "user", "content": a}, {"role": "assistant", "content": f"{b} 漢字 🤖 é"}] for a, b in pairs if a
        ]
        rows: list[dict[str, Any]] = [{"messages": chat} for chat in chats]
    else:
        tokenizer = AutoTokenizer.from_pretrained(chat_model)
        rows = [{"input_ids": tokenizer(text, add_special_tokens=False)["input_ids"]} for text in make_texts(200)]
    settings: dict[str, Any] = {
        "harvest": {
            "model": str(chat_model), "dataset": str(rows_file(tmp_path, rows)), "format": kind, "ctx": CTX,
            "sites": ["layer_01.resid_mid", "layer_01.mlp_out"], "tokens": 4096, "name": "c", "device": "cpu",
            **({"train_roles": ["assistant", "template"]} if kind == "chat" else {}),
        },
        "train": {
            "source": "layer_01.resid_mid", "target": "layer_01.mlp_out", "min_steps": 2, "device": "cpu",
            "coder": {"latents": 32, "k": 4}, "data": {"batch_size": 64, "epochs": 1},
            "sampler": {"template": "exclude"},
        },
    }  # fmt: skip
    (tmp_path / "pipeline.yaml").write_text(json.dumps(settings))
    assert pipeline.run(["harvest"]) == 0
    cache = open_cache(tmp_path / "cache" / "c")
    flags = cache.flags.reshape(-1)
    left_out = (flags & Flag.UNTRAINED) != 0
    split = split_rows(cache, 0.05)
    assert left_out.any() == (kind == "chat")
    np.testing.assert_array_equal(split.train | split.heldout, ((flags & Flag.PADDING) == 0) & ~left_out)
    capsys.readouterr()
    assert pipeline.run(["train", "--variant", "topk", "--json"]) == 0
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    trained = split.train & ((flags & Flag.TEMPLATE) == 0)
    assert run["tokens"] == trained.sum() // 64 * 64
    assert pipeline.run(["analyze", "topk", "--only", "top_activations", "--json"]) == 0
    report = Path(json.loads(capsys.readouterr().out)["report"])
    assert report.is_file()
    (latents,) = report.parent.rglob("latents.jsonl.gz")
    lines = [json.loads(line) for line in gzip.decompress(latents.read_bytes()).splitlines()]
    blocks = [block for line in lines for block in line["panels"]["top_activations"] if block["type"] == "examples"]
    items = [item for block in blocks for group in block["groups"] for item in group["items"]]
    assert items
    assert all("".join(item["tokens"]) == item["text"] and item["token"] for item in items)
    if kind == "chat":  # several tokens to a character, shown as one; the ends of a sequence may cut one
        assert any("漢" in item["tokens"] and "🤖" in item["tokens"] and "" in item["tokens"] for item in items)
        assert not any("�" in item["text"].removeprefix("<bos>").strip("�") for item in items)
