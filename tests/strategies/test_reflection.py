"""Reflection: a rewriting after each verdict, draws from it, and what fails on the way."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from chat_server import ChatServer, chat_server, completion
from click.testing import CliRunner
from histories import PROMPT, TASK, seed, trial
from html_pages import whole

from tts_verifier import run
from tts_verifier.analysis.report import write_report
from tts_verifier.cli.run import run_command
from tts_verifier.errors import (
    InputError,
    RecipeError,
    RunError,
    RunWarning,
    ServerError,
    UnsupportedError,
)
from tts_verifier.interfaces import RewriteRequest
from tts_verifier.log import read_trials
from tts_verifier.recipe import load_recipe
from tts_verifier.shapes.rewriter import ShapesRewriter
from tts_verifier.strategies.adaptive import Adaptive
from tts_verifier.strategies.common.chat_rewriter import ChatRewriter
from tts_verifier.strategies.reflection import Reflection
from tts_verifier.testing import FakeGenerator, FakeVerifier
from tts_verifier.types import Draw, Rewrite, Verdict


class Adding:
    """Adds a word to what the image was made from."""

    def __init__(self):
        self.settings = {"rewriter": "adding"}
        self.requests = []

    def rewrite(self, requests):
        self.requests += requests
        return [f"{request.asked}, again" for request in requests]


def test_it_rewrites_after_the_best_unused_image_and_draws_from_the_text() -> None:
    search = Reflection(2, 2, width=2, rewriter=Adding())
    draws = [Draw(seed(0)), Draw(seed(1))]
    assert search.propose(TASK, []) == draws
    history = [trial("a", 0, draws[0], 0.2), trial("b", 0, draws[1], 0.7)]
    assert search.propose(TASK, history) == [Rewrite("b")]
    history.append(trial("r", 1, Rewrite("b"), verdict=Verdict({}, text="better")))
    more = [Draw(seed(2), rewrite="r"), Draw(seed(3), rewrite="r")]
    assert search.propose(TASK, history) == more
    history += [trial("c", 2, more[0], 0.9), trial("d", 2, more[1], 0.1)]
    assert search.propose(TASK, history) == [Rewrite("c")]
    assert Reflection(2, 1, rewriter=Adding()).propose(TASK, history) == []
    assert Reflection(2, 2, rewriter=Adding(), enough=0.9).propose(TASK, history) == []


@pytest.mark.parametrize(
    "failed",
    [
        {"verdict": None, "error": "no connection"},
        {"verdict": Verdict({}, text="")},
        {"verdict": Verdict({}, text=PROMPT.text)},
    ],
)
def test_without_a_new_text_it_draws_from_the_prompt(failed: dict) -> None:
    history = [trial("a", 0, Draw(seed(0)), 0.2), trial("r", 1, Rewrite("a"), **failed)]
    assert Reflection(1, 1, width=1, rewriter=Adding()).propose(TASK, history) == [Draw(seed(1))]


def test_a_run_draws_from_the_texts_and_verifies_against_the_prompt() -> None:
    rewriter, seen = Adding(), []

    def scores(image, prompt):
        seen.append(prompt)
        return {"a": image.getpixel((0, 0))[0] / 255}

    result = run(["x"], FakeGenerator(), FakeVerifier(scores), Reflection(2, 2, rewriter=rewriter),
                 objective={"a": 1})  # fmt: skip
    assert set(seen) == {"x"}
    assert len(seen) == 2 + 2 * 2
    assert rewriter.requests[0].prompt == rewriter.requests[0].asked == "x"
    texts = [t.verdict.text for t in result.trials if isinstance(t.proposal, Rewrite)]
    assert texts[0] == "x, again"
    assert len(texts) == 2
    assert result.summaries[0].candidates == 6
    assert result.choices["0000"].trial.finished
    assert sum(t.cost.verifier_calls for t in result.trials) == 6


def test_a_log_has_the_texts_and_their_cost_and_a_continued_run_asks_for_none(tmp_path) -> None:
    folder, parts = tmp_path / "run", (FakeGenerator(), FakeVerifier())
    first = run(["x", "y"], *parts, Reflection(rewriter=Adding()), folder=folder)
    table = pd.read_parquet(folder / "trials.parquet")
    rows = table[table.kind == "rewrite"]
    assert (rows.reply.str.endswith(", again")).all()
    assert (rows.verifier_calls == 0).all()
    assert (rows.generate_seconds >= 0).all()
    assert rows.image_path.isna().all()
    again = Adding()
    second = run(["x", "y"], *parts, Reflection(rewriter=again), folder=folder)
    assert again.requests == []
    assert [t.id for t in second.trials] == [t.id for t in first.trials]
    write_report([folder], folder / "page.html")
    pages = "".join(whole(page) for page in folder.glob("*.html"))
    assert "the prompt rewritten after #" in pages


def test_a_rejudged_run_keeps_the_texts(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "generator: {name: simulated}\nverifier: {name: shapes-oracle}\nprompts: [two red stars]\n"
        "strategy: {name: reflection, rewriter: {name: shapes}}\n"
    )
    first, second = tmp_path / "a", tmp_path / "b"
    assert CliRunner().invoke(run_command, [str(path), "--output", str(first)]).exit_code == 0
    again = ["--rejudge", str(first), "--output", str(second)]
    result = CliRunner().invoke(run_command, [str(path), *again])
    assert result.exit_code == 0, result.output
    ids = [[t.id for t in read_trials(folder)] for folder in (first, second)]
    assert ids[0] == ids[1]


class Broken(Adding):
    def rewrite(self, requests):
        raise RuntimeError("no connection")


class Short(Adding):
    def rewrite(self, requests):
        return []


def test_a_rewriter_that_fails_costs_its_text_only() -> None:
    with pytest.warns(match="A candidate failed"):
        result = run(["x"], FakeGenerator(), FakeVerifier(), Reflection(rewriter=Broken()))
    failed = [t for t in result.trials if t.error]
    assert {t.error for t in failed} == {"RuntimeError: no connection"}
    assert not any(t.proposal.rewrite for t in result.trials if isinstance(t.proposal, Draw))
    assert result.choices["0000"].trial is not None
    with pytest.raises(RunError, match="Short must return a text for each of 1 requests"):
        run(["x"], FakeGenerator(), FakeVerifier(), Reflection(rewriter=Short()))


def test_adaptive_hands_the_rewriter_through() -> None:
    rewriter = Adding()
    run(["x"], FakeGenerator(), FakeVerifier(), Adaptive(Reflection(rewriter=rewriter)))
    assert rewriter.requests


@pytest.mark.parametrize(
    ("values", "message", "argument"),
    [
        ({"rewriter": {}}, "rewriter needs a 'name'", "rewriter"),
        ({"rewriter": {"name": "shape"}}, "Unknown rewriter 'shape'", "rewriter.name"),
        ({"rewriter": {"name": "shapes", "x": 1}}, "'shapes' has no argument 'x'", "rewriter.x"),
        ({"rewriter": 3}, "rewriter must be a rewriter or a table, got 3", "rewriter"),
        ({"rewriter": Adding(), "width": 0}, "width must be a positive integer, got 0", "width"),
        ({"rewriter": Adding(), "enough": "x"}, "enough must be a finite number", "enough"),
    ],
)  # fmt: skip
def test_unusable_arguments_are_refused(values: dict, message: str, argument: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Reflection(**values)
    assert caught.value.argument == argument


class Plain(FakeGenerator):
    supports = frozenset({Draw})


class NoRewriter(Reflection):
    def __init__(self):
        super().__init__(rewriter=Adding())
        self.rewriter = None


def test_what_cannot_rewrite_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="can draw from a rewritten prompt, Plain cannot"):
        run(["x"], Plain(), FakeVerifier(), Reflection(rewriter=Adding()))
    with pytest.raises(InputError, match="NoRewriter proposes to rewrite a prompt and has no"):
        run(["x"], FakeGenerator(), FakeVerifier(), NoRewriter())
    path = tmp_path / "mine.yaml"
    path.write_text(
        "generator: {name: fake}\nverifier: {name: fake}\nprompts: [x]\n"
        "strategy:\n  name: reflection\n  rewriter:\n    name: shape\n"
    )
    with pytest.raises(RecipeError, match=r"mine.yaml:7: Unknown rewriter 'shape'"):
        load_recipe(path).build()


@pytest.mark.parametrize(
    ("prompt", "asked", "reply", "text"),
    [
        ("four black circles", None, "four black circle - 5 wrong", "three black circles"),
        ("three stars", None, "three star - 2 wrong; 4/6", "four stars"),
        ("four stars", None, "four star - 2 wrong; 4/6", "a picture of four stars"),
        ("three stars", "four stars", "three star - 2 wrong", "a picture of four stars"),
        ("a star and a circle", None, "circle wrong shape", "a circle and a star"),
        ("a star left of a red circle", None, "", "a red circle right of a star"),
        ("a star and a circle", "a circle and a star", "", "a picture of a circle and a star"),
        ("a red star", None, "wrong colour", "a picture of a red star"),
    ],
)
def test_captions_are_rewritten_by_rules(prompt: str, asked: str, reply: str, text: str) -> None:
    looked = trial("a", 0, Draw(1), verdict=Verdict({}, text=reply))
    request = RewriteRequest(prompt, asked or prompt, looked)
    assert ShapesRewriter().rewrite([request]) == [text]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret123")
    with chat_server() as server:
        yield server


def chat(server: ChatServer, *answers: Any, **arguments: Any) -> ChatRewriter:
    server.answers = list(answers)
    return ChatRewriter("small", base_url=server.url, **arguments)


def test_a_chat_model_is_told_what_went_wrong(server: ChatServer) -> None:
    rewriter = chat(server, (200, completion(' "a single red circle" '), {}))
    verdict = Verdict({"overall": 0.5}, boxes=((1, 2, 3, 4),), text="two circles")
    request = RewriteRequest("a red circle", "one circle", trial("a", 0, Draw(1), verdict=verdict))
    assert rewriter.rewrite([request]) == ["a single red circle"]
    asked = server.requests[0]
    assert (asked["model"], asked["temperature"]) == ("small", 0.0)
    told = asked["messages"][1]["content"].splitlines()
    assert told[0] == "User's prompt: a red circle"
    assert told[1] == "Image made from: one circle"
    assert told[2] == "Scores, higher is better: overall 0.50"
    assert "1,2,3,4" in told[3]
    assert told[4] == "The verifier's words: two circles"
    unheated = chat(server, (200, completion("x"), {}), temperature=None)
    unheated.rewrite([request])
    assert "temperature" not in server.requests[1]
    assert unheated.settings["temperature"] is None


REQUEST = RewriteRequest("x", "x", trial("a", 0, Draw(1), 0.5))


def test_a_chat_model_that_refuses_a_temperature_is_asked_without(server: ChatServer) -> None:
    refused = (400, {"error": {"message": "temperature is not supported"}}, {})
    rewriter = chat(server, refused, (200, completion("a cat"), {}))
    with pytest.warns(RunWarning, match="The endpoint refuses temperature; requests go on without"):
        assert rewriter.rewrite([REQUEST, REQUEST]) == ["a cat", "a cat"]
    assert ["temperature" in request for request in server.requests] == [True, False, False]


def test_a_chat_model_with_a_wrong_key_ends_the_run(server: ChatServer) -> None:
    rewriter = chat(server, (401, {"error": {"message": "no such key sk-secret123"}}, {}))
    with pytest.raises(ServerError, match=r"must accept the key.*no such key \*\*\*"):
        run(["x"], FakeGenerator(), FakeVerifier(), Reflection(1, 1, width=1, rewriter=rewriter))


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (completion("a big", reason="length"), "RuntimeError: the reply was cut off by max_tokens"),
        (completion([{"text": "x"}]), "RuntimeError: the reply must be a text, it is a list"),
        (completion(None), "RuntimeError: the reply is empty"),
        (completion('" "'), "the rewriter gave no text"),
        (
            completion("x " * 3000),
            "the rewriter's text must have at most 4000 characters, it has 5999",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:A candidate failed")
def test_what_a_chat_model_gives_instead_of_a_prompt_is_an_error_of_the_rewriting(
    server: ChatServer, answer: dict, error: str
) -> None:
    search = Reflection(1, 1, width=1, rewriter=chat(server, (200, answer, {})))
    result = run(["x"], FakeGenerator(), FakeVerifier(), search)
    assert [t.error[: len(error)] for t in result.trials if t.error] == [error]
    assert not any(t.proposal.rewrite for t in result.trials if isinstance(t.proposal, Draw))


def test_thoughts_of_a_chat_model_are_no_prompt(server: ChatServer) -> None:
    thoughts = '<think>hm "red"' + "." * 20_000 + '</think>\n"a cat"'
    assert chat(server, (200, completion(thoughts), {})).rewrite([REQUEST]) == ["a cat"]


class Giving(Adding):
    def __init__(self, given):
        super().__init__()
        self.given = given

    def rewrite(self, requests):
        return self.given


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ([None], "the rewriter gave no text"),
        ([3], "the rewriter must give a text, it gave a int"),
        (["y" * 4001], "the rewriter's text must have at most 4000 characters, it has 4001"),
    ],
)
def test_what_is_no_text_is_an_error_of_the_rewriting(given: list, error: str) -> None:
    search = Reflection(1, 1, width=1, rewriter=Giving(given))
    result = run(["x"], FakeGenerator(), FakeVerifier(), search)
    assert [t.error for t in result.trials if t.error] == [error]


def test_half_of_a_letter_in_a_text_fits_into_a_log(tmp_path: Path) -> None:
    search = Reflection(1, 1, width=1, rewriter=Giving(["a \ud800 cat"]))
    run(["x"], FakeGenerator(), FakeVerifier(), search, folder=tmp_path / "run")
    texts = [t.verdict.text for t in read_trials(tmp_path / "run")]
    assert "a \\ud800 cat" in texts


@pytest.mark.parametrize("given", [None, "ab"])
def test_a_rewriter_must_return_a_list(given: object) -> None:
    with pytest.raises(RunError, match="must return a text for each of 1 requests, it returned"):
        run(["x"], FakeGenerator(), FakeVerifier(), Reflection(rewriter=Giving(given)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": ""}, "model must be a name that the endpoint knows, got ''"),
        ({"base_url": "http://u:secret@h/v1"}, "without a user, a password or a query"),
        ({"base_url": 5}, "base_url must be an address such as http://localhost:8000/v1"),
    ],
)
def test_arguments_of_a_chat_rewriter_are_checked(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ChatRewriter(**{"model": "m"} | arguments)


@pytest.mark.parametrize("temperature", [-1, math.inf, "hot", True])
def test_a_temperature_is_a_number_or_none(temperature: object) -> None:
    with pytest.raises(InputError, match="temperature must be finite, not negative, got"):
        ChatRewriter("small", temperature=temperature)  # type: ignore[arg-type]


def test_a_chat_model_without_a_key_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openai")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(InputError, match="needs a key in the environment variable OPENAI_API_KEY"):
        ChatRewriter("small")
    ChatRewriter("small", base_url="http://localhost:1/v1")
    monkeypatch.setitem(__import__("sys").modules, "openai", None)
    with pytest.raises(InputError, match=r"pip install 'tts-verifier\[api\]'"):
        ChatRewriter("small", base_url="http://localhost:1/v1")
