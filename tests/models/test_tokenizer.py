"""A tokenizer that is missing or does not fit is refused by name; what begins a sequence is a setting."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from sparse_pipeline.harvest.config import HarvestConfig
from sparse_pipeline.harvest.plan import plan
from sparse_pipeline.harvest.prepare import prepare
from sparse_pipeline.harvest.run import harvest
from sparse_pipeline.models.checkpoint import find_checkpoint
from sparse_pipeline.models.tokenizer import Specials, load_tokenizer, special_tokens
from sparse_pipeline.shared.cache import Flag, open_cache
from sparse_pipeline.shared.cache.vocabulary import Vocabulary
from sparse_pipeline.shared.errors import UsageError
from sparse_pipeline.shared.overview.describe import describe, describe_text
from tests.harvest.conftest import CTX
from tests.models.tokenizers import save_word_tokenizer

_THE_TEXTS = "the quick function returns a list of values from its argument while error class None 42 import"
WORDS = tuple(_THE_TEXTS.split())


def folder_of(family: str, path: Path, vocabulary: int = 4096) -> Path:
    """A checkpoint's folder with a config.json and nothing else."""
    from transformers import AutoConfig

    AutoConfig.for_model(family, vocab_size=vocabulary).save_pretrained(path)
    return path


def loaded(path: Path) -> object:
    return load_tokenizer(find_checkpoint(HarvestConfig(model=str(path), ctx=16, device="cpu")), str(path))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "bert", "qwen2"])
def test_a_folder_without_a_tokenizer_is_refused(family: str, tmp_path: Path) -> None:
    """transformers makes an empty tokenizer of it, with which every text is <unk>."""
    path = folder_of(family, tmp_path)
    (path / "tokenizer_config.json").write_text('{"model_max_length": 64}')  # holds no vocabulary
    with pytest.raises(UsageError, match=f"no tokenizer in {path}: expected tokenizer.json") as caught:
        loaded(path)
    assert "copy" in str(caught.value.hint)


@pytest.mark.parametrize(("known", "embedded"), [(20, 4096), (1000, 2300)])
def test_a_vocabulary_far_below_the_models_is_refused(known: int, embedded: int, tmp_path: Path) -> None:
    save_word_tokenizer(folder_of("llama", tmp_path, embedded), [f"w{i}" for i in range(known - 2)], eos="</s>")
    with pytest.raises(UsageError, match=rf"has {known:,} tokens, the model embeds {embedded:,}: it is incomplete"):
        loaded(tmp_path)


@pytest.mark.parametrize(("known", "embedded"), [(20, 128), (1200, 2300), (300, 200)])
def test_a_padded_embedding_and_a_larger_tokenizer_are_accepted(known: int, embedded: int, tmp_path: Path) -> None:
    save_word_tokenizer(folder_of("llama", tmp_path, embedded), [f"w{i}" for i in range(known - 2)], eos="</s>")
    assert len(loaded(tmp_path)) == known  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("specials", "bos", "expected"),
    [
        ({"bos": "<s>", "eos": "</s>"}, "auto", "<s>"),
        ({"eos": "<|end|>", "bos": "<|end|>"}, "auto", "<|end|>"),  # one token for both, as in GPT-2
        ({"eos": "</s>"}, "auto", None),  # as in Qwen and T5
        ({"cls": "[CLS]", "eos": "</s>"}, "auto", "[CLS]"),
        ({"bos": "<s>", "eos": "</s>"}, "none", None),
        ({"eos": "<|end|>"}, "<|end|>", "<|end|>"),
        ({"bos": "<s>", "eos": "</s>"}, "the", "the"),
    ],
)
def test_what_begins_a_sequence(specials: dict[str, str], bos: str, expected: str | None, tmp_path: Path) -> None:
    tokenizer = save_word_tokenizer(tmp_path, WORDS, **specials)
    found = special_tokens(tokenizer, "m", vocabulary=64, bos=bos)
    vocabulary = tokenizer.get_vocab()
    pad = expected or specials["eos"]
    assert found == Specials(
        None if expected is None else vocabulary[expected], vocabulary[specials["eos"]], vocabulary[pad], expected
    )
    assert found.filler in vocabulary.values()


def test_special_tokens_that_cannot_be(tmp_path: Path) -> None:
    tokenizer = save_word_tokenizer(tmp_path, WORDS, bos="<s>", eos="</s>")
    with pytest.raises(
        UsageError, match=r"harvest.bos: the tokenizer of m has no token '<S>'; did you mean '<s>'"
    ) as e:
        special_tokens(tokenizer, "m", vocabulary=64, bos="<S>")
    assert "--set harvest.bos=none" in str(e.value.hint)
    with pytest.raises(UsageError, match="the BOS token of m, '<s>', has id 18, but the model embeds ids below 18"):
        special_tokens(tokenizer, "m", vocabulary=18)
    with pytest.raises(UsageError, match="the EOS token of m, '</s>', has id 19") as e:
        special_tokens(tokenizer, "m", vocabulary=19)
    assert e.value.hint == "--set harvest.separator=none"
    assert special_tokens(tokenizer, "m", vocabulary=19, separator="none").bos == 18
    bare = save_word_tokenizer(tmp_path / "bare", WORDS)
    with pytest.raises(UsageError, match="has no EOS token"):
        special_tokens(bare, "m", vocabulary=64)
    assert special_tokens(bare, "m", vocabulary=64, separator="none") == Specials(None, None, 0, None)


@pytest.fixture
def words_model(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model's weights and configuration, without its tokenizer."""
    path = tmp_path / "words"
    path.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tiny_model / name, path)
    return path


def config_of(model: Path, dataset: Path, folder: Path, **changes: object) -> HarvestConfig:
    base = HarvestConfig(
        model=str(model),
        dataset=str(dataset),
        sites=("layer_01.resid_mid",),
        tokens=24 * CTX,
        ctx=CTX,
        batch_tokens=8 * CTX,
        cache_dir=folder / "cache",
        device="cpu",
    )
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def test_a_token_that_the_model_does_not_embed_is_refused_where_it_occurs(
    words_model: Path, texts_file: Path, tmp_path: Path
) -> None:
    filler = [f"w{i}" for i in range(4096 - len(WORDS) - 2 + 1)]
    words = ["<unk>", "</s>", *WORDS[:-1], *filler, "import"]  # "import" is the first id that the model lacks
    save_word_tokenizer(words_model, words, eos="</s>")
    config = config_of(words_model, texts_file, tmp_path, tokens=None)
    for run in (plan, harvest):
        with pytest.raises(
            UsageError, match=r"texts.jsonl:\d+: token \d+ has id 4096, but .*words embeds ids from 0 to"
        ):
            run(config)
    assert not (tmp_path / "cache").exists() or not list((tmp_path / "cache").iterdir())
    without = tmp_path / "without.jsonl"
    lines = texts_file.read_text().splitlines()
    without.write_text("\n".join(line for line in lines if "import" not in line))
    assert plan(config_of(words_model, without, tmp_path, tokens=None)).counted


@pytest.mark.parametrize(("known", "share"), [(WORDS[:8], "5[0-9]%"), (("other",), "100%")])
def test_text_that_the_tokenizer_does_not_know_is_refused(
    known: tuple[str, ...], share: str, words_model: Path, texts_file: Path, tmp_path: Path
) -> None:
    save_word_tokenizer(words_model, [*known, *(f"w{i}" for i in range(4000))], eos="</s>")
    config = config_of(words_model, texts_file, tmp_path)
    for run in (plan, harvest):
        with pytest.raises(UsageError, match=f"{share} of the first [0-9,]+ tokens of .* are unknown to the tokenizer"):
            run(config)


@pytest.mark.parametrize("packing", ["concat", "apart", "document"])
def test_a_cache_without_bos(packing: str, words_model: Path, texts_file: Path, tmp_path: Path) -> None:
    """Its tokens are those of the text, and its reports and samplers know."""
    save_word_tokenizer(words_model, [*WORDS, *(f"w{i}" for i in range(4000))], eos="</s>")
    how = {"packing": "concat", "cross_document_attention": False} if packing == "apart" else {"packing": packing}
    result = harvest(config_of(words_model, texts_file, tmp_path, **how))
    cache = open_cache(result.path)
    assert cache.manifest["extra"]["bos"] == {"setting": "auto", "token": None, "token_id": None}
    assert not cache.has_bos
    assert "sequences begin with text, without BOS" in describe_text(describe(cache.path))
    flags, tokens = cache.flags, cache.tokens
    starts = (flags & Flag.DOC_START) != 0
    assert starts[:, 0].any()
    # where documents are kept apart, attention begins with each: these rows count as position 0
    inside = starts & (np.arange(CTX) > 0)
    assert ((flags & Flag.BOS) != 0)[~inside].sum() == 0
    assert ((flags & Flag.BOS) != 0)[inside].all() == (packing != "concat")
    if packing == "concat":
        text = [line for line in texts_file.read_text().splitlines() if '""' not in line]
        stream = [word for line in text for word in (*line[len('{"text": "') : -2].split(), "</s>")]
        vocabulary = Vocabulary.of(cache)
        assert [vocabulary.piece(int(t)).strip() for t in tokens.flat] == stream[: tokens.size]


def test_the_setting_is_part_of_the_identity_only_when_set(words_model: Path, texts_file: Path, tmp_path: Path) -> None:
    save_word_tokenizer(words_model, [*WORDS, *(f"w{i}" for i in range(4000))], bos="<s>", eos="</s>")
    one = harvest(config_of(words_model, texts_file, tmp_path, bos="auto")).path
    two = harvest(config_of(words_model, texts_file, tmp_path, bos="none")).path
    assert one != two
    assert "bos" not in open_cache(one).config["harvest"]
    assert open_cache(two).config["harvest"]["bos"] == "none"
    extra = open_cache(one).manifest["extra"]["bos"]
    assert extra == {"setting": "auto", "token": "<s>", "token_id": len(WORDS) + 4000 + 1}
    assert (open_cache(one).tokens[:, 0] == extra["token_id"]).all()
    assert f"sequences begin with BOS '<s>' (id {extra['token_id']})" in describe_text(describe(one))
    prepare(config_of(words_model, texts_file, tmp_path, bos="the"))
