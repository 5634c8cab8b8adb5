from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_pipeline.shared.config.yaml import dump_yaml, load_yaml, parse_yaml
from sparse_pipeline.shared.errors import ConfigError, UsageError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 0.0003),  # text in YAML 1.1
        ("1e5", 100000.0),
        ("-2.5E+3", -2500.0),
        (".5", 0.5),
        ("1.", 1.0),
        (".inf", math.inf),
        ("-.Inf", -math.inf),
        ("12", 12),
        ("5_000_000", 5_000_000),
        ("010", 10),  # 8 in YAML 1.1
        ("0o10", 8),
        ("0x1F", 31),
        ("off", "off"),  # false in YAML 1.1
        ("yes", "yes"),
        ("true", True),
        ("FALSE", False),
        ("~", None),
        ("null", None),
        ("", None),
        ("1:30", "1:30"),  # 90 in YAML 1.1
        ("2024-01-01", "2024-01-01"),  # a date in YAML 1.1
        ("'3e-4'", "3e-4"),
        ("[1, 2.0, a]", [1, 2.0, "a"]),
    ],
)
def test_scalars_are_read_as_yaml_1_2_does(text: str, value: object) -> None:
    parsed = parse_yaml(text)
    assert parsed == value
    assert type(parsed) is type(value)


def test_nan() -> None:
    assert math.isnan(parse_yaml(".nan"))


def test_duplicate_key_names_both_lines() -> None:
    with pytest.raises(ConfigError, match=r"here, line 4, column 3: duplicate key 'lr' \(first on line 2\)"):
        parse_yaml("train:\n  lr: 1\n  k: 2\n  lr: 3\n", "here")


def test_merge_key_may_be_overridden() -> None:
    assert parse_yaml("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}")["b"] == {"x": 1, "y": 3}


@pytest.mark.parametrize(
    "text", ["a: [1", "a: !!python/object/apply:os.system [ls]", "a: 1\n---\nb: 2", "{[1]: 2}", "a: 0x"]
)
def test_what_is_not_plain_data_is_refused(text: str) -> None:
    if text == "a: 0x":  # not a number, so text
        assert parse_yaml(text) == {"a": "0x"}
        return
    with pytest.raises(ConfigError, match="text, line"):
        parse_yaml(text)


def test_load_yaml(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("# nothing\n")
    assert load_yaml(path) == {}
    path.write_text("- 1\n")
    with pytest.raises(ConfigError, match="expected a mapping at the top, found list"):
        load_yaml(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        load_yaml(path)
    with pytest.raises(UsageError, match="does not exist"):
        load_yaml(tmp_path / "b.yaml")


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(plain)
@settings(deadline=None)
def test_dump_reads_back(value: object) -> None:
    back = parse_yaml(dump_yaml(value))
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize(
    "text", ["3e-4", "1e5", "off", "no", "010", "1:30", "", "null", "1_000", "2024-01-01", "<<", "="]
)
def test_text_that_looks_like_more_is_quoted(text: str) -> None:
    assert dump_yaml({"a": text}) == f"a: '{text}'\n"


WRITTEN = {
    "variant": None,
    "seed": 0,
    "cache": "cache/layer-8 (two copies)",
    "name": "it's: a name",
    "domains": [],
    "penalties": {
        "position_diversity": {
            "weight": 0.01,
            "schedule": {"kind": "linear", "end": 0.1},
        },
        "off": {},
        "ortsae": {"weight": 1e-05, "every": 100_000_000},
    },
    "coder": {"groups": [128, 256, 512], "aux_coef": 0.03125, "tied": True, "aux_k": None, "latents": 18432},
    "optimizer": {"lr": 3e-4, "betas": (0.9, 0.999), "eps": 1e-16, "huge": float("inf"), "lowest": float("-inf")},
    "texts": ["3e-4", "off", "1:30", "010", "0x1F", "2024-01-01", "null", "", "<<", "=", "~", "# no comment", "- 1"],
    "plain": ["größer", "naïve – “quoted”", "a:b", "C:\\data", "{x}", "a,b", "layer_08.resid_mid", "@home", "%d"],
    "lines": "one\ntwo\n",
    "sweep": [{"a": 1, "b": [1, 2]}, {"a": 'say "no"'}, [[1, 2], ["x"]]],
    "long": "word " * 40,
}


def test_files_keep_the_bytes_that_earlier_programs_wrote() -> None:
    """frozen.yaml was written by PyYAML, as the config.yaml of every earlier run."""
    frozen = (Path(__file__).parent / "frozen.yaml").read_bytes()
    assert dump_yaml(WRITTEN).encode() == frozen
    assert parse_yaml(frozen.decode()) == {**WRITTEN, "optimizer": {**WRITTEN["optimizer"], "betas": [0.9, 0.999]}}


def test_a_value_used_twice_is_written_once_and_read_back() -> None:
    schedule = {"kind": "linear"}
    text = dump_yaml({"a": schedule, "b": schedule})
    assert text == "a: &id001\n  kind: linear\nb: *id001\n"
    assert parse_yaml(text) == {"a": schedule, "b": schedule}


def test_a_duplicate_key_beside_a_merge_key_is_an_error() -> None:
    with pytest.raises(ConfigError, match="line 2, column 19: duplicate key 'y'"):
        parse_yaml("a: &a {x: 1}\nb: {<<: *a, y: 1, y: 2}")
