from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from sparse_pipeline.shared.config.docs import class_doc, commented_yaml, described_schema, field_docs, markdown
from sparse_pipeline.shared.config.registry import keyed, tagged
from sparse_pipeline.shared.config.settings import apply_set, find_settings, identity, merge, to_dict, validate
from sparse_pipeline.shared.config.yaml import parse_yaml
from sparse_pipeline.shared.errors import ConfigError, UsageError


@dataclass(frozen=True, kw_only=True)
class Base:
    latents: int = 1024
    """Dictionary size F."""


@dataclass(frozen=True, kw_only=True)
class TopK(Base):
    """Keep the k largest."""

    architecture: Literal["topk"] = "topk"
    k: int = 32
    """Latents kept per row."""


@dataclass(frozen=True, kw_only=True)
class Nested(Base):
    architecture: Literal["nested"] = "nested"
    groups: tuple[int, ...] = (512, 512)
    """Group sizes;
    they sum to latents."""

    def __post_init__(self) -> None:
        if sum(self.groups) != self.latents:
            raise ValueError(f"groups sum to {sum(self.groups)}, expected latents = {self.latents}")


@dataclass(frozen=True)
class Ortho:
    kind: Literal["ortho"] = "ortho"
    weight: float = 0.25
    mode: Literal["fixed", "adaptive"] = "fixed"


@dataclass(frozen=True)
class Pairs:
    kind: Literal["pairs"] = "pairs"
    share: float = 0.001


AnyCoder: Any = tagged({"topk": TopK, "nested": Nested}, "architecture")
Penalties: Any = keyed({"ortho": Ortho, "pairs": Pairs})


@dataclass(frozen=True)
class Optimizer:
    lr: float | None = None
    betas: tuple[float, float] = (0.9, 0.999)


@dataclass(frozen=True)
class Train:
    """How to train."""

    cache: Path | None = None
    coder: AnyCoder = field(default_factory=Nested)
    """What to train."""
    penalties: Penalties = field(default_factory=dict)
    optimizer: Optimizer = field(default_factory=Optimizer)
    tokens: int | Literal["auto"] = 5
    quick: bool = False


Whole = dataclasses.make_dataclass("Whole", [("train", Train, field(default_factory=Train))], frozen=True)
DEFAULTS: dict[str, Any] = to_dict(Whole())


def problems(settings: dict[str, Any], cls: Any = Whole) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        validate(cls, settings)
    return caught.value.problems


def test_round_trip() -> None:
    whole = validate(Whole, {"train": {"cache": "a/b", "coder": {"architecture": "topk", "k": 8}, "tokens": "auto"}})
    assert whole.train == Train(cache=Path("a/b"), coder=TopK(k=8), tokens="auto")
    assert validate(Whole, to_dict(whole)) == whole
    assert json.loads(json.dumps(to_dict(whole))) == to_dict(whole)
    assert validate(Whole, whole) is whole


def test_every_problem_at_once_with_its_path_and_what_was_meant() -> None:
    found = problems(
        {
            "train": {
                "coder": {"architecture": "topkk"},
                "penalties": {"orto": {}, "ortho": {"weigth": 1, "mode": "adaptiv"}},
                "optimizer": {"betas": [1]},
                "tokens": "atuo",
                "lr": 3e-4,
                "cash": "x",
            }
        }
    )
    assert found == [
        "train.coder: unknown architecture 'topkk'; did you mean 'topk'? (known: topk, nested)",
        "train.penalties.orto: unknown kind 'orto'; did you mean 'ortho'? (known: ortho, pairs)",
        "train.penalties.ortho.mode: expected 'fixed' or 'adaptive', "
        "found \"adaptiv\" (text); did you mean 'adaptive'?",
        "train.penalties.ortho.weigth: unknown key; did you mean 'weight'?",
        "train.optimizer.betas.1: is required",
        'train.tokens: expected a valid integer, found "atuo" (text); or '
        "expected 'auto', found \"atuo\" (text); did you mean 'auto'?",
        "train.lr: unknown key; did you mean 'train.optimizer.lr'?",
        "train.cash: unknown key; did you mean 'cache'?",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"coder": {"architecture": "topk", "k": "48"}}, 'train.coder.k: expected a valid integer, found "48" (text)'),
        (
            {"coder": {"architecture": "topk", "k": 48.5}},
            "train.coder.k: expected a valid integer, found 48.5 (a number)",
        ),
        (
            {"coder": {"architecture": "topk", "k": True}},
            "train.coder.k: expected a valid integer, found true (a boolean)",
        ),
        ({"coder": {"k": 48}}, "train.coder: needs 'architecture', one of: topk, nested"),
        (
            {"coder": {"architecture": "nested", "groups": [1, 2]}},
            "train.coder: groups sum to 3, expected latents = 1024",
        ),
        ({"quick": 1}, "train.quick: expected a valid boolean, found 1 (an integer)"),
        ({"optimizer": []}, "train.optimizer: expected a mapping, found [] (a list)"),
        ({"penalties": 3}, "train.penalties: expected a mapping, found 3 (an integer)"),
        ({"zzz": 1}, "train.zzz: unknown key; known: cache, coder, penalties, optimizer, tokens, quick"),
    ],
)
def test_each_problem(change: dict[str, Any], message: str) -> None:
    assert problems({"train": change}) == [message]


def test_where_is_put_before_the_path() -> None:
    with pytest.raises(ConfigError, match=r"^train\.quick: "):
        validate(Train, {"quick": 1}, "train")
    with pytest.raises(ConfigError, match="^train: expected a mapping, found 3"):
        validate(Train, 3, "train")  # type: ignore[arg-type]


def test_an_integer_is_a_number_and_gives_the_same_identity() -> None:
    one, other = (validate(Train, {"optimizer": {"lr": lr}}) for lr in (1, 1.0))
    assert identity(one) == identity(other)


def test_keyed_entries_take_their_key_as_kind() -> None:
    train = validate(Train, {"penalties": {"ortho": None, "second": {"kind": "ortho", "weight": 1}, "pairs": {}}})
    assert train.penalties == {"ortho": Ortho(), "second": Ortho(weight=1.0), "pairs": Pairs()}


def test_merge_replaces_lists_and_goes_deep() -> None:
    base = {"a": {"x": [1, 2], "y": 1}, "b": 1}
    assert merge(base, {"a": {"x": [3]}, "c": None}) == {"a": {"x": [3], "y": 1}, "b": 1, "c": None}
    assert base == {"a": {"x": [1, 2], "y": 1}, "b": 1}


def test_merge_drops_what_a_new_tag_does_not_know() -> None:
    changed = merge(DEFAULTS, {"train": {"coder": {"latents": 64, "architecture": "topk"}}}, Whole)
    assert changed["train"]["coder"] == {"architecture": "topk", "latents": 64}
    back = merge(changed, {"train": {"coder": {"architecture": "nested"}}}, Whole)
    assert back["train"]["coder"] == {"architecture": "nested", "latents": 64}
    untyped = merge(DEFAULTS, {"train": {"coder": {"architecture": "topk"}}})
    assert untyped["train"]["coder"] == {"architecture": "topk"}


def test_merge_keeps_unknown_keys_for_validate_to_refuse() -> None:
    changed = merge(DEFAULTS, {"train": {"coder": {"architecture": "topk", "groups": [1]}}}, Whole)
    assert problems(changed) == ["train.coder.groups: unknown key; known: latents, architecture, k"]


def test_null_removes_a_penalty_and_clears_a_field() -> None:
    base = merge(DEFAULTS, {"train": {"penalties": {"ortho": {}, "pairs": {}}, "cache": "x"}}, Whole)
    changed = merge(base, {"train": {"penalties": {"ortho": None}, "cache": None}}, Whole)
    assert changed["train"]["penalties"] == {"pairs": {}}
    assert changed["train"]["cache"] is None
    assert merge(base, {"train": {"penalties": None}}, Whole)["train"]["penalties"] == {}
    assert apply_set(base, ["train.penalties=null"], Whole)["train"]["penalties"] == {}


def test_apply_set() -> None:
    sets = [
        "train.coder.architecture=topk",
        "train.coder.k=48",
        "train.optimizer.lr=3e-4",
        "train.penalties.pairs.share=0.1",
    ]
    train = validate(Whole, apply_set(DEFAULTS, sets, Whole)).train
    assert train == Train(coder=TopK(k=48), optimizer=Optimizer(lr=3e-4), penalties={"pairs": Pairs(share=0.1)})
    assert apply_set({}, ["a.b=[1, 2]", "a.c=x=y", "d="]) == {"a": {"b": [1, 2], "c": "x=y"}, "d": None}


@pytest.mark.parametrize("text", ["train.coder.k", "=3", "train..k=3", ".k=3"])
def test_malformed_set(text: str) -> None:
    with pytest.raises(UsageError, match="expected KEY.KEY=VALUE"):
        apply_set(DEFAULTS, [text])


def test_set_below_a_value() -> None:
    with pytest.raises(UsageError, match=r"train\.tokens is 5 \(an integer\), so it has no keys"):
        apply_set(DEFAULTS, ["train.tokens.x=3"])
    with pytest.raises(ConfigError, match="--set train.tokens, line 1"):
        apply_set(DEFAULTS, ["train.tokens=[1"])


def test_identity_is_sha256_of_canonical_json() -> None:
    text = '{"a":[1,2.5],"b":"é"}'
    assert identity({"b": "é", "a": (1, 2.5)}) == hashlib.sha256(text.encode()).hexdigest()
    with pytest.raises(ValueError, match="Out of range"):
        identity({"a": float("nan")})


def test_a_registered_class_carries_its_own_name() -> None:
    with pytest.raises(TypeError, match="Pairs is registered as 'ortho' and needs `kind: Literal\\[\"ortho\"\\]"):
        tagged({"ortho": Pairs}, "kind")
    assert tagged({"pairs": Pairs}, "kind") is Pairs
    with pytest.raises(TypeError, match="not one of"):
        tagged({"pairs": Pairs}, "sort")


def test_find_settings(tmp_path: Path) -> None:
    (tmp_path / "gemma-small.yaml").write_text("{}")
    assert find_settings("gemma-small", tmp_path) == tmp_path / "gemma-small.yaml"
    assert find_settings(str(tmp_path / "gemma-small.yaml")) == tmp_path / "gemma-small.yaml"
    with pytest.raises(UsageError, match="no such preset; did you mean 'gemma-small'"):
        find_settings("gema-small", tmp_path)
    with pytest.raises(UsageError, match="is a folder"):
        find_settings(str(tmp_path))


def test_docs_come_from_the_classes() -> None:
    assert field_docs(Nested) == {"latents": "Dictionary size F.", "groups": "Group sizes; they sum to latents."}
    assert class_doc(TopK) == "Keep the k largest."
    assert class_doc(Optimizer) == ""
    properties = described_schema(Whole)["$defs"]["TopK"]["properties"]
    assert properties["latents"]["description"] == "Dictionary size F."
    table = markdown(Whole)
    assert "| `k` | `32` | Latents kept per row. |" in table
    assert "## `TopK`: `train.coder`" in table
    assert "## `Pairs`: `train.penalties.*`" in table


def test_commented_yaml_reads_back() -> None:
    whole = Whole(Train(penalties={"ortho": Ortho()}, optimizer=Optimizer(lr=3e-4)))
    text = commented_yaml(whole)
    assert validate(Whole, parse_yaml(text)) == whole
    assert "    latents: 1024  # Dictionary size F.\n" in text
    assert text.startswith("train:  # How to train.\n  cache: null\n")


@dataclass(frozen=True)
class Written:
    count: int = 0
    most: int | None = None
    rate: float = 0.0
    sites: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()
    pair: tuple[float, float] = (0.0, 1.0)
    mode: Literal["auto"] | bool = "auto"


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("count", "1e6", 1_000_000),
        ("count", "262_144", 262_144),
        ("count", "1M", 1_000_000),
        ("most", "1.5k", 1500),
        ("most", "2B", 2_000_000_000),
        ("most", "null", None),
        ("rate", "3e-4", 3e-4),
        ("sites", "layer_02.resid_mid", ("layer_02.resid_mid",)),
        ("sites", "[a, b]", ("a", "b")),
        ("sizes", "64", (64,)),
        ("sizes", "[1k, 2e3]", (1000, 2000)),
        ("mode", "true", True),
    ],
)
def test_settings_are_read_as_people_write_them(key: str, text: str, expected: Any) -> None:
    assert getattr(validate(Written, apply_set({}, [f"{key}={text}"])), key) == expected


@pytest.mark.parametrize(
    "text", ["count=1.5", "count=0.0001k", "count=1X", "count=M", "count=true", "sites=true", "pair=1", "rate=1M"]
)
def test_what_could_mean_anything_else_is_still_an_error(text: str) -> None:
    with pytest.raises(ConfigError, match="expected"):
        validate(Written, apply_set({}, [text]))


def test_none_suggests_the_choice_that_means_nothing_of_the_kind() -> None:
    @dataclass(frozen=True)
    class Schedule:
        decay: Literal["cosine", "constant"] = "cosine"

    with pytest.raises(ConfigError, match="did you mean 'constant'"):
        validate(Schedule, {"decay": "none"})
