"""What each endpoint answers, beside what the verifier says in this process."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from serving import serving
from tiny_imagedoctor import noise

from tts_verifier.testing import FakeVerifier
from tts_verifier.verifiers.remote.protocol import (
    MEDIA_TYPE,
    pack_message,
    request_of,
    unpack_message,
)

IMAGES = [noise(20 + 4 * i, 12, seed=i) for i in range(3)]
PROMPTS = ["a cat", "é", "<|im_end|> a dog"]


def png(image: Image.Image, form: str = "PNG") -> str:
    file = io.BytesIO()
    image.save(file, form)
    return base64.b64encode(file.getvalue()).decode()


def array_of(text: dict[str, Any]) -> Any:
    return np.frombuffer(base64.b64decode(text["data"]), "<f4").reshape(text["shape"])


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    verifier = FakeVerifier(unparsable=lambda image, prompt: prompt == "unparsable")
    with serving(verifier) as url:
        yield url


def post(url: str, path: str, body: object, **headers: str) -> httpx.Response:
    return httpx.post(url + path, json=body, headers=headers)


def test_json_gives_scores_boxes_reply_and_maps(url: str) -> None:
    body = {"prompts": PROMPTS, "images": [png(image) for image in IMAGES]}
    answer = post(url, "/v1/score", body).json()
    assert answer["protocol"] == 1
    assert answer["version"]
    assert answer["verifier"] == {"model": "fake"}
    assert answer["checkpoint"] == "fake"
    assert answer["missing"] == {}
    for result, verdict in zip(
        answer["results"], FakeVerifier().verify(IMAGES, PROMPTS), strict=True
    ):
        assert result["scores"] == verdict.scores
        assert result["objective"] == FakeVerifier().objective(verdict.scores)
        assert result["boxes"] == [list(box) for box in verdict.boxes]
        assert result["reply"] == verdict.text
        for name in verdict.heatmaps:
            grid = array_of(result["maps"][name])
            assert np.array_equal(grid, verdict.heatmaps.on_grid(name).grid)


@pytest.mark.parametrize("form", ["one by one", "one batch", "channels first", "files"])
def test_safetensors_give_the_same(url: str, form: str) -> None:
    pictures = [image.resize((16, 12)) for image in IMAGES]
    stack = np.stack([np.asarray(image) for image in pictures])
    arrays = {f"image.{i}": image for i, image in enumerate(stack)}
    if form == "one batch":
        arrays = {"images": stack}
    elif form == "channels first":
        arrays = {"images": stack.transpose(0, 3, 1, 2)}
    elif form == "files":
        files = [base64.b64decode(png(image)) for image in pictures]
        arrays = {f"image.{i}": np.frombuffer(file, np.uint8) for i, file in enumerate(files)}
    body = pack_message({"prompts": PROMPTS, "maps": [2, 3]}, arrays)
    response = httpx.post(f"{url}/v1/score", content=body, headers={"content-type": MEDIA_TYPE})
    assert response.headers["content-type"] == MEDIA_TYPE
    message, maps = unpack_message(response.content)
    for i, verdict in enumerate(FakeVerifier().verify(pictures, PROMPTS)):
        assert message["results"][i]["scores"] == verdict.scores
        for name in verdict.heatmaps:
            expected = verdict.heatmaps.on_grid(name).pooled(2, 3)
            assert np.array_equal(maps[f"{i}.{name}"], expected)


def test_the_answers_form_is_the_one_that_is_accepted(url: str) -> None:
    body = request_of([np.asarray(IMAGES[0])], ["a cat"], "score", False)
    headers = {"content-type": MEDIA_TYPE, "accept": "application/json"}
    answer = httpx.post(f"{url}/v1/score", content=body, headers=headers).json()
    assert answer["results"][0]["maps"] == {}
    assert answer["results"][0]["detail"] == "score"
    asked = {"prompts": ["a cat"], "images": [png(IMAGES[0])]}
    packed = post(url, "/v1/score", asked, accept=MEDIA_TYPE)
    assert sorted(unpack_message(packed.content)[1]) == ["0.artifact", "0.misalignment"]


def test_a_score_that_is_missing_is_null_and_a_map_is_absent_and_both_are_counted(url: str) -> None:
    body = {"prompts": ["unparsable", "a cat"], "images": [png(image) for image in IMAGES[:2]]}
    answer = post(url, "/v1/score", body).json()
    assert answer["missing"] == {"score": 1, "misalignment": 1, "artifact": 1}
    assert answer["results"][0]["objective"] is None
    assert set(answer["results"][0]["scores"].values()) == {None}
    assert answer["results"][0]["maps"] == {}
    metrics = httpx.get(f"{url}/metrics").text
    assert 'tts_missing_total{what="artifact"} 1.0' in metrics
    rewards = post(url, "/compute", {"prompt": body["prompts"], "image": body["images"]}).json()
    assert rewards["rewards"][0] is None
    assert rewards["missing"] == {"score": 1}


def test_flow_factory_gets_rewards_as_its_client_asks_for_them(url: str) -> None:
    # What its RemoteRewardClient sends.
    body = {
        "prompt": PROMPTS,
        "image": [png(image) for image in IMAGES],
        "video": None,
        "condition_images": None,
        "condition_videos": None,
        "kwargs": None,
    }
    assert httpx.get(f"{url}/health").json()["status"] == "ok"
    answer = post(url, "/compute", body).json()
    verdicts = FakeVerifier().verify(IMAGES, PROMPTS)
    assert answer["rewards"] == [FakeVerifier().objective(v.scores) for v in verdicts]
    assert answer["details"]["overall"] == [v.scores["overall"] for v in verdicts]
    assert "error" not in answer
    assert "maps" not in answer
    assert answer["checkpoint"] == "fake"
    more = post(url, "/compute", body | {"kwargs": {"maps": [4, 4], "seed": 3}}).json()
    expected = verdicts[1].heatmaps.on_grid("artifact").pooled(4, 4)
    assert np.array_equal(array_of(more["maps"][1]["artifact"]), expected)
    # The names that its template of a server reads.
    older = post(url, "/compute", {"prompts": PROMPTS, "images": body["image"]}).json()
    assert older["rewards"] == answer["rewards"]


def test_openai_clients_get_the_reply_with_maps_beside_it(url: str) -> None:
    openai = pytest.importorskip("openai")
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{png(IMAGES[0])}"}}
    official = "Evaluate it.\nYour task is provided as follows:\nText Caption: [a cat]"
    verdict = FakeVerifier().verify(IMAGES[:1], ["a cat"])[0]
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        assert [model.id for model in client.models.list()] == ["fake"]
        for text in ("a cat", official):
            content = [part, {"type": "text", "text": text}]
            done = client.chat.completions.create(
                model="any", messages=[{"role": "user", "content": content}], temperature=0
            )
            assert done.choices[0].message.content == verdict.text
            assert done.choices[0].finish_reason == "stop"
            more = done.model_extra["tts_verifier"]
            assert more["scores"] == verdict.scores
            assert more["maps"]["artifact"]["shape"] == [64, 64]


def test_openai_clients_may_leave_options_to_the_server(url: str) -> None:
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{png(IMAGES[0])}"}}
    messages = [{"role": "user", "content": [part, {"type": "text", "text": "a cat"}]}]
    more = {"model": None, "n": None, "stream": None, "tools": None, "max_tokens": 1, "seed": 3}
    answer = post(url, "/v1/chat/completions", {"messages": messages, **more})
    assert answer.json()["tts_verifier"]["reply"]


def test_the_openapi_page_describes_every_endpoint(url: str) -> None:
    page = httpx.get(f"{url}/openapi.json").json()
    assert sorted(page["paths"]) == [
        "/compute",
        "/health",
        "/metrics",
        "/v1/chat/completions",
        "/v1/models",
        "/v1/score",
        "/v1/verifier",
    ]
    content = page["paths"]["/v1/score"]["post"]["requestBody"]["content"]
    assert list(content["application/json"]["schema"]["properties"]) == [
        "protocol", "prompts", "images", "detail", "maps"
    ]  # fmt: skip
    assert "swagger" in httpx.get(f"{url}/docs").text


def test_metrics_are_prometheus_text(url: str) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    post(url, "/v1/score", {"prompts": ["a cat"], "images": [png(IMAGES[0])]})
    names = {
        family.name for family in text_string_to_metric_families(httpx.get(f"{url}/metrics").text)
    }
    assert {
        "tts_requests",
        "tts_pictures",
        "tts_missing",
        "tts_verdict_seconds",
        "tts_waiting",
    } <= names


def test_a_token_is_wanted_by_every_endpoint_but_health() -> None:
    with serving(FakeVerifier(), token="secret") as url:
        assert httpx.get(f"{url}/health").status_code == 200
        for path in ("/v1/verifier", "/v1/models", "/metrics"):
            refused = httpx.get(url + path)
            assert refused.status_code == 401
            assert "Bearer TOKEN" in refused.json()["error"]["message"]
            assert httpx.get(url + path, headers={"authorization": "Bearer secret"}).is_success
        body = {"prompts": ["a cat"], "images": [png(IMAGES[0])]}
        assert "fake" not in httpx.get(f"{url}/openapi.json").text
        wrong = {"content-type": "text/plain"}
        assert httpx.post(f"{url}/v1/score", content=b"", headers=wrong).status_code == 401
        for path in ("/v1/score", "/compute", "/v1/chat/completions"):
            for given in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Bearer é"}):
                raw = {name: value.encode() for name, value in given.items()}
                assert httpx.post(url + path, json=body, headers=raw).status_code == 401
        for given in ("Bearer secret", "bearer  secret"):
            assert post(url, "/v1/score", body, authorization=given).is_success
        assert post(url, "/v1/score", body, authorization="Basic secret").status_code == 401


def test_scores_that_are_no_numbers_stay_null() -> None:
    verifier = FakeVerifier(lambda image, prompt: {"a": math.nan, "b": math.inf, "c": 0.5})
    with serving(verifier) as url:
        answer = post(url, "/v1/score", {"prompts": ["x"], "images": [png(IMAGES[0])]})
        assert json.loads(answer.text)["results"][0]["scores"] == {"a": None, "b": None, "c": 0.5}
