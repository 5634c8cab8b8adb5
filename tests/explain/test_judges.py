"""Language models as judges, before a server on loopback that fails, stalls and answers nonsense."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import sparse_pipeline as sp
from sparse_pipeline.explain.judges import endpoint
from sparse_pipeline.explain.judges.prompts import label_in, verdicts_in
from sparse_pipeline.explain.run import plan
from sparse_pipeline.resolve import explain_config, resolve
from sparse_pipeline.shared.errors import ConfigError, PipelineError, UsageError
from tests.explain.server import Reply, completion, oracle, serving
from tests.explain.worlds import AFTER, OWN, TOKEN, word

SMALL = {"learn": 10, "learn_silent": 5, "test": 10, "controls": 1, "latents": [TOKEN, AFTER]}
REQUESTS = 3 + 2 * 2 * 2 + 2 * 2 * 2
"""Three labels; two scores of two latents, and of one latent with two controls, in batches of ten of twenty windows."""


def perfect(number: int, body: dict[str, Any]) -> Reply:
    return completion(oracle(body))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "FIRST_PAUSE", 0.01)


def judge(url: str, **settings: Any) -> dict[str, Any]:
    return {"kind": "endpoint", "base_url": url, "model": "stand-in", **settings}


def explained(run: Path, url: str, more: dict[str, Any] | None = None, **settings: Any) -> dict[str, Any]:
    return sp.run_explain(run, **SMALL, **(more or {}), judge=judge(url, **settings)).document


def test_an_endpoint_labels_and_judges(run: Path) -> None:
    with serving(perfect) as server:
        document = explained(run, server.url, price_in=1.0, price_out=2.0)
    assert len(server.asked) == REQUESTS
    assert {body["temperature"] for body in server.asked} == {0.0}
    assert server.keys == [None] * REQUESTS
    first, second = document["latents"]
    assert first["label"] == f"the word {word(OWN)}"
    assert first["detection"]["value"] == first["fuzzing"]["value"] == 1
    assert second["label"].startswith("unclear")
    assert second["detection"]["value"] == 0.5
    assert document["judge"]["name"] == "stand-in"
    cost = REQUESTS * (100 * 1.0 + 10 * 2.0) / 1e6
    assert document["spent"] == {
        "requests": REQUESTS, "tokens_in": 100 * REQUESTS, "tokens_out": 10 * REQUESTS, "cost": round(cost, 6),
    }  # fmt: skip
    with serving(perfect) as again:  # another port: the questions are the same, and every answer is on disk
        assert explained(run, again.url)["latents"] == document["latents"]
    assert again.asked == []


def test_passing_failures_are_tried_again(run: Path) -> None:
    """429 with Retry-After, 500, a page that is not JSON, a lost connection, then answers."""
    failures: list[Reply] = [
        (429, {"Retry-After": "0.3"}, "slow down"),
        (500, {}, "oops"),
        (200, {}, "<html>busy</html>"),
        (200, {"Content-Length": "900"}, "cut"),
        (503, {}, "again"),
    ]

    def reply(number: int, body: dict[str, Any]) -> Reply:
        return failures[number] if number < len(failures) else perfect(number, body)

    with serving(reply) as server:
        document = explained(run, server.url, concurrency=1)
    assert document["latents"][0]["detection"]["value"] == 1
    assert len(server.asked) == REQUESTS + len(failures)
    assert document["spent"]["requests"] == REQUESTS + len(failures)
    assert server.times[1] - server.times[0] >= 0.3


def test_a_server_that_stalls(run: Path) -> None:
    released = threading.Event()

    def reply(number: int, body: dict[str, Any]) -> Reply:
        if number == 0:
            released.wait(20)
        return perfect(number, body)

    with serving(reply) as server:
        document = explained(run, server.url, timeout=0.3, concurrency=2)
        released.set()
    assert document["latents"][0]["fuzzing"]["value"] == 1
    assert len(server.asked) == REQUESTS + 1


def test_failing_for_good_keeps_what_was_answered(run: Path) -> None:
    def breaks(number: int, body: dict[str, Any]) -> Reply:
        return perfect(number, body) if number < 5 else (500, {}, "broken")

    with (
        serving(breaks) as server,
        pytest.raises(PipelineError, match="status 500: broken \\(after 3 attempts\\)") as e,
    ):
        explained(run, server.url, concurrency=1, retries=2)
    assert "the same command continues" in str(e.value.hint)
    assert not list(run.glob("explanations/*/explanations.json"))
    answers = run / "explanations/stand-in/answers.jsonl"
    assert len(answers.read_text().splitlines()) == 5
    with answers.open("a") as file:
        file.write('{"key": "unfinished')
    with serving(perfect) as server:
        document = explained(run, server.url)
    assert len(server.asked) == REQUESTS - 5
    assert document["latents"][0]["detection"]["value"] == 1


@pytest.mark.parametrize(
    ("status", "said", "hint"), [(401, "no key", "key_env"), (404, "no model", "base_url"), (400, "bad", "limit_field")]
)
def test_a_refusal_is_not_tried_again(run: Path, status: int, said: str, hint: str) -> None:
    with serving(lambda number, body: (status, {}, said)) as server, pytest.raises(PipelineError, match=said) as error:
        explained(run, server.url, concurrency=1)
    assert len(server.asked) == 1
    assert hint in str(error.value.hint)


def test_nonsense_is_counted_not_scored(run: Path) -> None:
    def nonsense(number: int, body: dict[str, Any]) -> Reply:
        good = oracle(body)
        verdict = good.startswith("[")
        return completion(["I would rather not.", "[1, 2, 3]", "[[]]"][number % 3] if verdict and number % 2 else good)

    with serving(nonsense) as server:
        document = explained(run, server.url, concurrency=1)
    counted = sum(one[name]["unanswered"] for one in document["latents"] for name in ("detection", "fuzzing")
                  if one[name])  # fmt: skip
    assert counted >= 10
    assert document["latents"][0]["detection"] is None or document["latents"][0]["detection"]["value"] == 1

    with serving(lambda number, body: completion("  \n ")) as server:
        document = sp.run_explain(run, **SMALL, name="mute", judge=judge(server.url)).document
    assert document["latents"] == []
    assert {one["why"] for one in document["not_explained"]} == {"the judge gave no label"}


def test_the_key_comes_from_the_environment_and_goes_nowhere_else(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    key = "sk-test-3f9a"
    with serving(perfect) as server:
        with pytest.raises(UsageError, match="MY_KEY, which is not set"):
            explained(run, server.url, key_env="MY_KEY")
        monkeypatch.setenv("MY_KEY", key)
        explained(run, server.url, key_env="MY_KEY")
        assert set(server.keys) == {f"Bearer {key}"}
    for file in run.rglob("*"):
        assert not file.is_file() or key.encode() not in file.read_bytes(), file
    with serving(lambda number, body: (401, {}, f"wrong key {key}")) as server:
        with pytest.raises(PipelineError, match=r"wrong key \[key\]") as error:
            explained(run, server.url, {"name": "other"}, key_env="MY_KEY")
        assert key not in str(error.value)
    with pytest.raises(UsageError, match="not encrypted"):
        explained(run, "http://example.com/v1", key_env="MY_KEY")
    for address in ("ftp://x/v1", "http://user:secret@x/v1", "http://x/v1?key=1"):
        with pytest.raises(ConfigError, match="base_url"):
            explained(run, address)
    assert key not in "".join(capsys.readouterr())


def test_limits_of_requests_and_cost(run: Path) -> None:
    def config(url: str, **more: Any) -> Any:
        changes = {**SMALL, **more, "judge": judge(url, price_in=1.0, price_out=1.0)}
        return explain_config(resolve((), changes={"explain": changes}, here=False))

    with serving(perfect) as server:
        planned = plan(run, config(server.url)).estimate
        assert planned.requests == REQUESTS
        assert planned.cost == pytest.approx((planned.tokens_in + planned.tokens_out) / 1e6)
        with pytest.raises(UsageError, match=f"up to {REQUESTS} requests") as error:
            explained(run, server.url, {"max_requests": REQUESTS - 1})
        assert f"explain.max_requests={REQUESTS}" in str(error.value.hint)
        with pytest.raises(UsageError, match="explain.max_cost allows 0.001"):
            explained(run, server.url, {"max_cost": 0.001}, price_in=1.0, price_out=1.0)
        assert server.asked == []

    def dear(number: int, body: dict[str, Any]) -> Reply:  # the server counts far more tokens than expected
        return completion(oracle(body), read=2_000_000)

    with serving(dear) as server, pytest.raises(PipelineError, match="stopped before more than explain.max_cost"):
        explained(run, server.url, {"max_cost": 3.0}, price_in=1.0, price_out=1.0, concurrency=1)
    assert len(server.asked) == 2


def test_requests_keep_their_rate(run: Path) -> None:
    with serving(perfect) as server:
        explained(run, server.url, requests_per_minute=1200, concurrency=4)
    gaps = [b - a for a, b in zip(server.times[:-1], server.times[1:], strict=True)]
    assert sum(gaps) >= (REQUESTS - 1) * 0.05 * 0.8


def test_a_local_model(run: Path, tmp_path: Path) -> None:
    """The embedded checkpoint says nothing sensible, repeatably; every prompt is asked once."""
    sizes = {"learn": 2, "learn_silent": 1, "test": 2, "least": 2, "before": 3, "after": 1, "latents": [TOKEN]}
    local = {"kind": "local", "model": "demo", "batch": 4, "label_tokens": 8}
    result = sp.run_explain(run, **sizes, controls=0, judge=local, device="cpu")
    answers = [json.loads(line) for line in (result.path.parent / "answers.jsonl").read_text().splitlines()]
    assert result.document["spent"]["requests"] == len(answers) >= 1
    assert all(one["tokens_in"] > 20 and one["tokens_out"] <= 32 for one in answers)
    again = sp.run_explain(run, **sizes, controls=0, judge=local, device="cpu")
    assert again.document["spent"]["requests"] == 0
    assert again.document["latents"] == result.document["latents"]


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("the word the", "the word the"),
        ("Some thoughts.\n\n[EXPLANATION]: digits in dates.", "digits in dates."),
        ("<think>is it\nthe?</think>**Label:** \"months\"", "months"),
        ("a\x1b[31mb\u202ec", "a [31mb c"),
        ("x" * 300, "x" * 199 + "…"),
        ("  \n--\n", None),
        ("<think>never ends", None),
    ],
)  # fmt: skip
def test_a_label_is_one_plain_line(answer: str, label: str | None) -> None:
    found = label_in(answer)
    assert (found and found.text) == label


@pytest.mark.parametrize(
    ("answer", "verdicts"),
    [
        ("[1, 0]", [True, False]),
        ("Sure: [1,0,1] no, [0, 1].", [False, True]),
        ("[true, false]", [True, False]),
        ("[1, 2]", [None, None]),
        ("[1.5, 0]", [None, None]),
        ('["1", "0"]', [None, None]),
        ("1, 0", [None, None]),
        ("[" * 5000, [None, None]),
    ],
)
def test_verdicts(answer: str, verdicts: list[bool | None]) -> None:
    assert verdicts_in(answer, 2) == verdicts


ODD: list[Callable[[], Reply]] = [
    lambda: (200, {}, "[]"),
    lambda: (200, {}, '{"choices": []}'),
    lambda: (200, {}, '{"choices": [{"message": {"content": null}}]}'),
    lambda: (200, {}, b"\xff\xfe"),
    lambda: (302, {"Location": "http://127.0.0.1:1/"}, ""),
]


@pytest.mark.parametrize("odd", range(len(ODD)))
def test_odd_responses_end_in_an_error_that_names_the_server(run: Path, odd: int) -> None:
    with serving(lambda number, body: ODD[odd]()) as server, pytest.raises(PipelineError, match=r"127\.0\.0\.1"):
        explained(run, server.url, concurrency=1, retries=1)
    assert len(server.asked) <= 2
