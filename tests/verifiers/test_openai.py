"""The API judge against a loopback server that answers as good and as bad endpoints do."""

import gzip
import json
import math
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from chat_server import GOOD, Answer, ChatServer, Handler, chat_server, completion
from tiny_imagedoctor import noise

from tts_verifier import BestOfN, run
from tts_verifier.errors import InputError, RunWarning, ServerError
from tts_verifier.interfaces.endpoints import ChatReply, reply_of
from tts_verifier.log import read_trials
from tts_verifier.registry import builder
from tts_verifier.scoring.batches import images_at_once
from tts_verifier.testing import FakeGenerator, check_verifier
from tts_verifier.verifiers.chat_reply import Criterion, read_scores
from tts_verifier.verifiers.openai import OpenAIVerifier

IMAGES = [noise(20, 30), noise(30, 20, 1)]
PROMPTS = ["a cat", "a dog"]
QUICK = {"retry-after-ms": "1"}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with chat_server() as server:
        yield server


def judge(server: ChatServer, **arguments) -> OpenAIVerifier:
    return OpenAIVerifier(
        **{"model": "m", "base_url": server.url, "retries": 1, "parallel": 2} | arguments
    )


def test_scores_are_digits_of_nine_and_the_verifier_conforms(server: ChatServer) -> None:
    verifier = judge(server)
    check_verifier(verifier, IMAGES, PROMPTS)
    verdict = verifier.verify(IMAGES[:1], PROMPTS[:1])[0]
    assert verdict.scores["alignment"] == 1.0
    assert verdict.scores["plausibility_expected"] == pytest.approx(1 / 3)
    assert verdict.scores["from_logprobs"] == 0.0
    assert verifier.objective(verdict.scores) == pytest.approx(0.8 + 0.1 * 6 / 9 + 0.1 * 3 / 9)
    assert verdict.text == GOOD
    assert not verdict.error


def test_the_request_has_the_picture_the_prompt_and_the_schema(server: ChatServer) -> None:
    judge(server, max_side=16).verify([noise(40, 20)], ["a cat"], detail="score")
    request = server.requests[0]
    picture, prompt = request["messages"][1]["content"]
    assert picture["image_url"]["url"].startswith("data:image/png;base64,iVBOR")
    assert prompt["text"].endswith("\na cat")
    schema = request["response_format"]["json_schema"]["schema"]
    assert list(schema["properties"]) == ["alignment", "aesthetics", "plausibility"]
    assert schema["properties"]["alignment"]["enum"] == list(range(10))
    assert (request["logprobs"], request["temperature"]) == (True, 0.0)
    judge(server).verify(IMAGES[:1], ["a cat"])
    schema = server.requests[1]["response_format"]["json_schema"]["schema"]
    assert next(iter(schema["properties"])) == "reason"


def test_log_probabilities_make_expected_scores(server: ChatServer) -> None:
    pieces = ['{"alignment', '":', " 9", ', "aesthetics": ', "6", ', "plausibility": ', "3", "}"]
    likely = {2: {" 9": 0.5, " 0": 0.5}, 4: {"6": 0.9, "x": 0.1}, 6: {"3": 1.0}}

    def token(i: int, text: str) -> dict:
        top = [
            {"token": t, "logprob": math.log(p), "bytes": None}
            for t, p in likely.get(i, {text: 1.0}).items()
        ]
        return {"token": text, "logprob": -0.1, "bytes": None, "top_logprobs": top}

    content = [token(i, text) for i, text in enumerate(pieces)]
    answer = completion("".join(pieces), logprobs={"content": content, "refusal": None})
    server.answers = [(200, answer, {})]
    scores = judge(server).verify(IMAGES[:1], ["a cat"])[0].scores
    assert (scores["alignment"], scores["from_logprobs"]) == (1.0, 1.0)
    assert scores["alignment_expected"] == pytest.approx(0.5)
    assert scores["aesthetics_expected"] == pytest.approx(6 / 9)


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (['My draft: "alignment": ', "3", '. {"alignment": ', "9", "}"], 1.0),
        (['<think>{"alignment": ', "3", '}</think>{"alignment": ', "9", "}"], 1.0),
        (['{"alignment":', " 9}"], 0.9),
    ],
)
def test_an_expected_score_is_that_of_the_written_digit(pieces: list, expected: float) -> None:
    def token(text: str) -> SimpleNamespace:
        likely = {" 9}": 0.9, " 0": 0.1} if text == " 9}" else {text: 1.0}
        top = [SimpleNamespace(token=t, logprob=math.log(p)) for t, p in likely.items()]
        return SimpleNamespace(token=text, top_logprobs=top)

    message = SimpleNamespace(content="".join(pieces))
    logprobs = SimpleNamespace(content=[token(text) for text in pieces])
    choice = SimpleNamespace(message=message, finish_reason="stop", logprobs=logprobs)
    reply = reply_of(SimpleNamespace(choices=[choice]))
    found = read_scores(reply, [Criterion("alignment", "fits")])
    assert found == ({"alignment": 1.0}, {"alignment": pytest.approx(expected)}, "")


def test_a_sure_nine_is_no_more_than_one() -> None:
    tokens = [('{"a": ', {}), ("9", {"9": 0.2378666383142789}), ("}", {})]
    found = read_scores(ChatReply('{"a": 9}', tokens=tokens), [Criterion("a", "fits")])
    assert found[1] == {"a": 1.0}


def test_two_pictures_are_compared_in_one_request(server: ChatServer) -> None:
    answers = ['{"reason": "whiskers", "preferred": 9}', '{"preferred": 2}', "the first one"]
    server.answers = [(200, completion(text), {}) for text in answers]
    comparer = builder("comparer", "openai")(
        model="m", base_url=server.url, retries=0, parallel=1, usd_per_million_input=2,
        usd_per_million_output=0,
    )  # fmt: skip
    ones, others = [*IMAGES, IMAGES[0]], [*IMAGES[::-1], IMAGES[1]]
    first, second, failed = comparer.compare(ones, others, ["a"] * 3)
    assert first.scores["preferred"] == 1
    assert second.scores["preferred"] == pytest.approx(2 / 9)
    assert first.scores["cost_usd"] == pytest.approx(0.002)
    assert math.isnan(failed.scores["preferred"])
    assert failed.error == "the reply is no JSON object: 'the first one'"
    system, user = (message["content"] for message in server.requests[0]["messages"])
    assert system.startswith("You compare two generated images of one prompt.")
    assert [part["type"] for part in user] == ["image_url", "image_url", "text"]
    assert user[2]["text"] == "Both images were generated for this prompt:\na"
    wanted = server.requests[0]["response_format"]["json_schema"]["schema"]["required"]
    assert wanted == ["reason", "preferred"]
    with pytest.raises(InputError, match="2 prompts"):
        comparer.compare(IMAGES[:1], IMAGES[:1], PROMPTS)


def test_costs_are_columns(server: ChatServer) -> None:
    priced = judge(server, usd_per_million_input=2.0, usd_per_million_output=10.0)
    scores = priced.verify(IMAGES[:1], ["a cat"])[0].scores
    assert scores["cost_usd"] == pytest.approx(0.0022)
    assert (scores["cost_input_tokens"], scores["cost_output_tokens"]) == (1000, 20)
    assert math.isnan(judge(server).verify(IMAGES[:1], ["a cat"])[0].scores["cost_usd"])


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((200, completion("a lovely cat"), {}), "is no JSON object: 'a lovely cat'"),
        ((200, completion('{"alignment": 9, "aest'), {}), "is no JSON object"),
        ((200, completion("[1, 2]"), {}), "is no JSON object"),
        ((200, completion('{"alignment": 9}'), {}), "no aesthetics, plausibility from 0 to 9"),
        ((200, completion(GOOD.replace("9", "90")), {}), "no alignment from 0 to 9"),
        ((200, completion(GOOD.replace("9", "true")), {}), "no alignment from 0 to 9"),
        ((200, completion(GOOD.replace("9", "NaN")), {}), "no alignment from 0 to 9"),
        ((200, completion(""), {}), "the reply is empty"),
        ((200, completion(None), {}), "the reply is empty"),
        ((200, completion(GOOD, reason="length"), {}), "cut off by max_tokens"),
        ((200, completion(None, reason="content_filter"), {}), "filter refuses the request"),
        ((200, completion(None, message={"refusal": "I cannot"}), {}), "refuses: I cannot"),
        ((200, {"choices": []}, {}), "is no chat completion"),
        ((200, {"error": "busy"}, {}), "is no chat completion"),
        ((200, b"<html>", {"content-type": "text/html"}), "is no chat completion: '<html>'"),
        ((200, b'{"choices": [{"mess', {}), "JSONDecodeError: "),
        ((200, b"[" * 10**5, {}), "RecursionError: "),
        ((200, {"choices": {"1": 2}}, {}), "is no chat completion"),
        ((400, {"error": {"message": "image too small"}}, {}), "refuses the request: .*too small"),
        ((200, completion([{"type": "text"}]), {}), "the reply must be a text, it is a list"),
        ((403, {"error": {"message": "input was flagged"}}, {}), "APIStat|PermissionD.*flagged"),
        ((200, completion('{"alignment": 9, ' + GOOD[1:]), {}), "no alignment from 0 to 9"),
        ((200, b" " * 2**24 + b"{}", {}), "An answer may have 16,777,216 bytes"),
        ((200, gzip.compress(b"{}"), {"content-encoding": "gzip"}), "must not be compressed"),
        ((413, {"error": {"message": "too large"}}, {}), "APIStatusError: .*too large"),
        ((429, {"error": {"message": "slow down"}}, QUICK), r"RateLimitError \(tries: 2\): .*slow"),
        ((500, {"error": {"message": "oops"}}, QUICK), r"InternalServerError \(tries: 2\): .*oops"),
    ],
)
def test_what_is_no_score_is_nan_with_its_reason(server: ChatServer, answer, reason: str) -> None:
    server.answers = [answer]
    verifier = judge(server)
    verdict = verifier.verify(IMAGES[:1], PROMPTS[:1])[0]
    assert re.search(reason, verdict.error), verdict.error
    assert math.isnan(verifier.objective(verdict.scores))
    assert set(verdict.scores) == set(verifier.score_names)


def token_of(text: object, **top: object) -> dict:
    return {"token": text, "logprob": 0, "bytes": None, "top_logprobs": [top]}


@pytest.mark.parametrize(
    "odd",
    [
        {"usage": {"prompt_tokens": 10**400, "completion_tokens": True}},
        {"usage": [1]},
        {"logprobs": {"content": [token_of(None, token=None, logprob=-1)]}},
        {"logprobs": {"content": [token_of("9", token="9", logprob="a")]}},
        {"logprobs": {"content": [token_of("9", token="9", logprob=1e5)]}},
        {"logprobs": {"content": "abc"}},
    ],
)
def test_nonsense_beside_a_usable_reply_costs_its_scores_nothing(
    server: ChatServer, odd: dict
) -> None:
    usage = odd.pop("usage", {})
    server.answers = [(200, completion(GOOD, **odd) | {"usage": usage}, {})]
    scores = judge(server).verify(IMAGES[:1], PROMPTS[:1])[0].scores
    assert (scores["alignment"], scores["from_logprobs"]) == (1.0, 0.0)
    assert math.isnan(scores["cost_input_tokens"])
    assert math.isnan(scores["cost_output_tokens"])


def test_digits_may_be_written_as_numbers_or_texts(server: ChatServer) -> None:
    written = '{"alignment": 9.0, "aesthetics": "6", "plausibility": 3.5}'
    server.answers = [(200, completion(written), {})]
    verdict = judge(server).verify(IMAGES[:1], PROMPTS[:1])[0]
    assert verdict.scores["aesthetics"] == pytest.approx(6 / 9)
    assert verdict.scores["alignment"] == 1.0
    assert verdict.error == "the reply has no plausibility from 0 to 9"


def test_a_reply_of_any_length_and_letters_fits_into_a_log(
    server: ChatServer, tmp_path: Path
) -> None:
    text = json.dumps(completion(GOOD + " \ud800" + "x" * 10**6)).encode()
    server.answers = [(200, text, {})]
    run(["a cat"], FakeGenerator(), judge(server), BestOfN(1), folder=tmp_path / "run")
    reply = read_trials(tmp_path / "run")[0].verdict.text
    assert reply.startswith(GOOD + " \\ud800xx")
    assert len(reply) < 20_000


@pytest.mark.parametrize("status", [200, 400, 401, 429, 500])
def test_a_key_is_in_no_error_and_no_text(
    server: ChatServer, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    # With a line's end, as a file has.
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret123\n")
    body = {"error": {"message": "not accepted: sk-secret123"}}
    server.answers = [(status, completion("sk-secret123") if status == 200 else body, QUICK)]
    try:
        verdict = judge(server).verify(IMAGES[:1], PROMPTS[:1])[0]
        said = verdict.error + verdict.text
    except ServerError as error:
        said = str(error)
    assert "***" in said
    assert "secret" not in said


@pytest.mark.parametrize("status", [400, 401, 418])
def test_half_a_key_is_in_no_error_either(
    server: ChatServer, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret123")
    server.answers = [(status, {"error": {"message": "." * 176 + "sk-secret123"}}, {})]
    try:
        said = judge(server).verify(IMAGES[:1], PROMPTS[:1])[0].error
    except ServerError as error:
        said = str(error)
    assert said.endswith("..***")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"base_url": "http://u:secret@h:1/v1"}, "without a user, a password or a query"),
        ({"base_url": "http://h:1/v1?key=secret"}, "it has a user, a query or a fragment"),
        ({"base_url": "secret"}, "it has another form. A key belongs into an environment variable"),
        ({"base_url": "http://secret:99999"}, "base_url must be an address such as http://local"),
        ({"base_url": 7}, "base_url must be an address"),
        ({"api_key_env": "sk-secret"}, "api_key_env must be the name of an environment variable"),
        ({"api_key_env": 7}, "api_key_env must be the name of an environment variable"),
        ({"api_key_env": "MY_KEY"}, "The key in the environment variable MY_KEY must be printable"),
    ],
)
def test_an_address_and_a_key_are_checked_and_never_shown(
    server: ChatServer, monkeypatch: pytest.MonkeyPatch, arguments: dict, message: str
) -> None:
    monkeypatch.setenv("MY_KEY", "secret\r\nx: y")
    with pytest.raises(InputError, match=message) as caught:
        judge(server, **arguments)
    assert "secret" not in str(caught.value)
    if isinstance(url := arguments.get("base_url"), str):
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        with pytest.raises(InputError, match=message):
            judge(server, base_url=None)


def test_an_address_of_the_environment_is_a_setting(
    server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    assert judge(server, base_url=None).settings["base_url"] == server.url


def test_scoring_gives_it_enough_images_for_all_requests() -> None:
    verifier = OpenAIVerifier("m", base_url="http://127.0.0.1:9/v1", parallel=64)
    assert images_at_once(verifier)[0] == 256


def test_an_empty_address_of_the_environment_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-abcdefgh")
    given: list[str] = []

    def client(base_url: str, **more: Any) -> SimpleNamespace:
        given.append(base_url)
        return SimpleNamespace(close=more["http_client"].close)

    monkeypatch.setattr("openai.OpenAI", client)
    assert OpenAIVerifier("m").settings["base_url"] is None
    assert given == ["https://api.openai.com/v1"]


@pytest.mark.parametrize(
    ("variable", "value", "kind"),
    [
        ("ALL_PROXY", "ftp://user:secret@host", "ValueError"),
        ("SSL_CERT_FILE", "/secret", "FileNotFoundError"),
    ],
)
def test_proxies_of_the_environment_are_checked_at_once(
    server: ChatServer, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, kind: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(InputError, match=f"it raises {kind}. Check HTTP_PROXY") as caught:
        judge(server)
    assert "secret" not in str(caught.value)


def test_half_an_answer_is_tried_again(server: ChatServer) -> None:
    server.answers = [
        (200, json.dumps(completion(GOOD)).encode()[:40], {"content-length": "4000"}),
        (200, completion(GOOD), {}),
    ]

    verdict = judge(server).verify(IMAGES[:1], PROMPTS[:1])[0]
    assert verdict.scores["alignment"] == 1.0
    assert len(server.requests) == 2


def test_a_timeout_may_be_longer_than_a_socket_can_wait(server: ChatServer) -> None:
    verdict = judge(server, timeout=1e300).verify(IMAGES[:1], PROMPTS[:1])[0]
    assert verdict.scores["alignment"] == 1.0


def test_an_answer_that_comes_byte_by_byte_is_tried_again_and_then_nan(server: ChatServer) -> None:
    def drip() -> Iterator[bytes]:
        while not server.release.wait(0.02):
            yield b" "

    server.answers = [lambda body: (200, drip(), {"content-length": "4000"})]
    verdict = judge(server, timeout=0.2).verify(IMAGES[:1], PROMPTS[:1])[0]
    assert verdict.error == "no answer in time (tries: 2)"
    assert len(server.requests) == 2


def test_an_answer_that_does_not_come_is_nan_with_its_reason(server: ChatServer) -> None:
    def late(body: dict) -> Answer:
        server.release.wait(10)
        return 200, completion(GOOD), {}

    server.answers = [late]
    verdict = judge(server, timeout=0.2, retries=0).verify(IMAGES[:1], PROMPTS[:1])[0]
    assert verdict.error == "no answer in time (tries: 1)"


def test_an_endpoint_that_is_not_there_is_nan_with_its_reason(server: ChatServer) -> None:
    verifier = OpenAIVerifier("m", base_url="http://127.0.0.1:9/v1", retries=0)
    verdict = verifier.verify(IMAGES[:1], PROMPTS[:1])[0]
    assert verdict.error.startswith("APIConnectionError (tries: 1): ")


def test_busy_endpoints_are_asked_again(server: ChatServer) -> None:
    busy = (429, {"error": {"message": "slow down"}}, QUICK)
    server.answers = [busy, busy, (200, completion(GOOD), {})]
    verdict = judge(server, retries=2).verify(IMAGES[:1], PROMPTS[:1])[0]
    assert verdict.scores["alignment"] == 1.0
    assert len(server.requests) == 3


def test_one_picture_that_fails_costs_only_itself(server: ChatServer) -> None:
    def refuses_dogs(body: dict) -> Answer:
        if body["messages"][1]["content"][1]["text"].endswith("dog"):
            return 400, {"error": {"message": "not this picture"}}, {}
        return 200, completion(GOOD), {}

    server.answers = [refuses_dogs]
    good, bad = judge(server).verify(IMAGES, PROMPTS)
    assert good.scores["alignment"] == 1.0
    assert "not this picture" in bad.error


def test_what_an_endpoint_does_not_know_is_left_out_from_then_on(server: ChatServer) -> None:
    def old(body: dict) -> Answer:
        for name in ("logprobs", "max_completion_tokens", "response_format", "temperature"):
            if name in body:
                return 400, {"error": {"message": f"Unsupported parameter: {name}"}}, {}
        return 200, completion(f"Here it is: {GOOD} Done."), {}

    server.answers = [old]
    verifier = judge(server, parallel=1)
    with pytest.warns(RunWarning, match="The endpoint refuses .*; requests go on without"):
        verdicts = verifier.verify(IMAGES, PROMPTS)
    assert [v.scores["alignment"] for v in verdicts] == [1.0, 1.0]
    assert len(server.requests) == 6
    assert server.requests[-1]["max_tokens"] == 1024
    assert "top_logprobs" not in server.requests[-1]


@pytest.mark.parametrize(
    ("status", "code"), [(401, ""), (402, ""), (403, ""), (404, ""), (429, "insufficient_quota")]
)
def test_what_would_refuse_every_picture_ends_the_call(
    server: ChatServer, status: int, code: str
) -> None:
    server.answers = [(status, {"error": {"message": "no such thing", "code": code}}, QUICK)]
    with pytest.raises(ServerError, match=r"know the model 'm' and have credit.*no such thing"):
        judge(server).verify(IMAGES, PROMPTS)


@pytest.mark.parametrize(
    ("location", "elsewhere"),
    [
        ("/v1/chat/completions", "another address"),
        ("https://h.example/?token=secret", "h.example"),
        ("http://[::1", "another address"),
    ],
)
def test_pictures_go_to_no_other_address(server: ChatServer, location: str, elsewhere: str) -> None:
    server.answers = [(307, {}, {"location": location})]
    with pytest.raises(ServerError, match=f"it sends requests to {elsewhere}. Give the address"):
        judge(server).verify(IMAGES[:1], PROMPTS[:1])
    assert len(server.requests) == 1


def test_requests_keep_to_their_rate(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from tts_verifier.interfaces.endpoints import chat

    pauses = []
    clock = SimpleNamespace(monotonic=lambda: 100.0, sleep=pauses.append)
    monkeypatch.setattr(chat, "time", clock)
    judge(server, requests_per_minute=60).verify(IMAGES * 2, PROMPTS * 2)
    assert sorted(pauses) == [0, 1, 2, 3]


def test_other_criteria_are_scores_with_equal_weights(server: ChatServer) -> None:
    server.answers = [(200, completion('{"mood": 9, "light": 0}'), {})]
    verifier = judge(server, criteria={"mood": "calm", "light": "warm"})
    verdict = verifier.verify(IMAGES[:1], ["a cat"])[0]
    assert verifier.objective(verdict.scores) == pytest.approx(0.5)
    assert '"mood" (0 to 9): calm' in server.requests[0]["messages"][0]["content"]


def test_a_recipe_builds_it_and_no_key_is_in_the_settings(
    server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "secret")
    made = builder("verifier", "openai")(model="m", base_url=server.url, api_key_env="MY_KEY")
    assert made.settings["model"] == "m"
    assert "secret" not in repr(made.settings)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": ""}, "model must be a name that the endpoint knows, got ''"),
        ({"timeout": 0}, "timeout must be a number above 0, got 0"),
        ({"parallel": 1.5}, r"parallel must be a whole number above 0, got 1\.5"),
        ({"max_side": 0}, "max_side must be a whole number above 0"),
        ({"max_tokens": True}, "max_tokens must be a whole number above 0"),
        ({"requests_per_minute": -1}, "requests_per_minute must be a number above 0"),
        ({"retries": -1}, "retries must be 0 or more, got -1"),
        ({"usd_per_million_input": "3"}, "usd_per_million_input must be a number above 0, got '3'"),
        ({"usd_per_million_output": -1}, "usd_per_million_output must be a number above 0"),
        ({"criteria": {}}, "criteria must be texts by score name"),
        ({"criteria": {"mood": 3}}, "criteria must be texts by score name"),
        ({"criteria": {"cost_usd": "x"}}, "be none of cost_.*; got 'cost_usd'"),
        ({"criteria": {"a": "x", "a_expected": "y"}}, "got 'a_expected'"),
        ({"criteria": {'a"': "x"}}, "must have no quotes"),
        ({"base_url": None}, "needs a key in the environment variable OPENAI_API_KEY"),
    ],
)
def test_arguments_are_checked(server: ChatServer, arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        judge(server, **arguments)


def test_without_the_extra_its_name_is_said(
    server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(InputError, match=r"pip install 'tts-verifier\[api\]'"):
        judge(server)


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_forked_process_has_connections_of_its_own(
    server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Handler, "protocol_version", "HTTP/1.1")
    verifier = judge(server)
    verifier.verify(IMAGES[:1], PROMPTS[:1])
    if (child := os.fork()) == 0:
        status = 1
        try:
            verifier.verify(IMAGES[:1], PROMPTS[:1])
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    verifier.verify(IMAGES[:1], PROMPTS[:1])
    first, forked, again = server.ports
    assert again == first != forked
