from __future__ import annotations

import hashlib
import math
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import mostly_slow
from tiny_imagedoctor import example, noise, talkative

from tts_verifier.errors import CheckpointError, InputError, RunWarning
from tts_verifier.interfaces import Verifier
from tts_verifier.verifiers.imagedoctor import ImageDoctor
from tts_verifier.verifiers.imagedoctor.checkpoint.loading import find_checkpoint
from tts_verifier.verifiers.imagedoctor.engine.engine import Engine
from tts_verifier.verifiers.imagedoctor.requests import GeneratedReply, GenerationRequest
from tts_verifier.verifiers.imagedoctor.text import reply

REPLY = (
    "<think>\nI need to focus on the bounding box area. Proposed regions (xyxy): "
    "1.[0,0,256,128];2.[400,400,512,512]\n</think>\n<answer>Semantic Alignment score: 0.5;\n"
    "Misalignment Locations: ;\nAesthetic score: 0.25;\nPlausibility score: 1;\n"
    "Artifact Locations: ;\nOverall Impression score: 0.75</answer>"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tiny")
    example().make(made)
    return made


@pytest.fixture(scope="module")
def doctor(folder: Path) -> ImageDoctor:
    """Random weights whose replies, each different, hold heatmap tokens."""
    return talkative(folder, batch_size=3)


def script_replies(
    monkeypatch: pytest.MonkeyPatch, doctor: ImageDoctor, text: str, has_map: tuple[bool, bool]
) -> None:
    """Makes every reply `text`, with random states for the maps that it has."""

    def fake(
        _engine: Engine, requests: Iterable[GenerationRequest], *, expected: int
    ) -> Iterator[tuple[int, GeneratedReply]]:
        ids = doctor.checkpoint.tokenizer.encode(text)
        states = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
        probs = np.array([[*map(text[i].__eq__, "0123456789"), text[i] == "0", text[i] == "1"]
                         for i in range(len(ids))], np.float32)  # fmt: skip
        for i, request in enumerate(requests):
            visual = torch.zeros(len(request.patches) // 4, 64)
            yield i, GeneratedReply(ids, True, states, has_map, visual, probs)

    monkeypatch.setattr(Engine, "replies", fake)


def test_a_verdict_has_scores_maps_boxes_and_text_on_the_images_own_pixels(
    monkeypatch: pytest.MonkeyPatch, doctor: ImageDoctor
) -> None:
    script_replies(monkeypatch, doctor, REPLY, (True, True))
    (verdict,) = doctor.verify([noise(100, 60)], ["a dog"])
    written = {"semantic_alignment": 0.5, "aesthetics": 0.25, "plausibility": 1.0, "overall": 0.75}
    assert verdict.scores == pytest.approx(
        written | {f"{name}_expected": value for name, value in written.items()}
    )
    assert verdict.boxes == ((0, 0, 50, 15), (78.125, 46.875, 100, 60))
    assert list(verdict.heatmaps) == ["misalignment", "artifact"]
    for grid_map in verdict.heatmaps.values():
        assert grid_map.shape == (60, 100)
        assert grid_map.dtype == np.float32
    assert verdict.text == REPLY
    assert verdict.detail == "diagnose"
    assert verdict.cost.verifier_calls == 1


def test_a_map_whose_token_was_not_written_is_absent(
    monkeypatch: pytest.MonkeyPatch, doctor: ImageDoctor
) -> None:
    script_replies(monkeypatch, doctor, REPLY, (False, True))
    assert list(doctor.verify([noise(9, 9)], ["a dog"])[0].heatmaps) == ["artifact"]
    script_replies(monkeypatch, doctor, REPLY, (False, False))
    assert not doctor.verify([noise(9, 9)], ["a dog"])[0].heatmaps


def test_a_reply_that_does_not_parse_is_nan_with_the_raw_text(
    monkeypatch: pytest.MonkeyPatch, doctor: ImageDoctor
) -> None:
    script_replies(monkeypatch, doctor, "no idea", (False, False))
    (verdict,) = doctor.verify([noise(9, 9)], ["a dog"])
    assert all(math.isnan(v) for v in verdict.scores.values())
    assert len(verdict.scores) == 8
    assert verdict.text == "no idea"


def test_a_reply_that_is_cut_is_warned_of_and_keeps_its_text(
    doctor: ImageDoctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reply, "MAX_REPLY_CHARACTERS", REPLY.index("Plausibility"))
    script_replies(monkeypatch, doctor, REPLY, (False, False))
    with pytest.warns(RunWarning, match=r"A reply must have at most \d+ characters"):
        verdict = doctor.verify([noise(20, 20)], ["cat"])[0]
    assert verdict.scores["aesthetics"] == 0.25
    assert math.isnan(verdict.scores["plausibility"])
    assert verdict.text == REPLY


def test_detail_score_gives_numbers_and_no_maps(
    monkeypatch: pytest.MonkeyPatch, doctor: ImageDoctor
) -> None:
    script_replies(monkeypatch, doctor, "Aesthetic score: 0.5;</answer>", (True, True))
    (verdict,) = doctor.verify([noise(9, 9)], ["a dog"], detail="score")
    assert verdict.scores["aesthetics"] == 0.5
    assert not verdict.heatmaps
    assert verdict.detail == "score"


def test_maps_can_be_asked_for_always_or_never(
    monkeypatch: pytest.MonkeyPatch, doctor: ImageDoctor
) -> None:
    script_replies(monkeypatch, doctor, "Aesthetic score: 0.5;</answer>", (True, True))
    for heatmaps, kept in ((True, 2), (False, 0)):
        verifier = ImageDoctor(doctor.checkpoint, heatmaps=heatmaps)
        for detail in ("score", "diagnose"):
            (verdict,) = verifier.verify([noise(9, 9)], ["a dog"], detail=detail)  # type: ignore[arg-type]
            assert len(verdict.heatmaps) == kept


SIZES = [(64, 64), (30, 90), (1, 1), (200, 17), (64, 64), (81, 80), (5, 300)]
PROMPTS = ["a dog", "two red cats on a mat", "x", "日本語の犬", "a dog " * 20, "<|im_end|>", "é"]


@pytest.mark.parametrize("fit", mostly_slow(["squash", "pad"], quick=["pad"]))
def test_verdicts_depend_on_neither_companions_nor_place_nor_batch_size(
    doctor: ImageDoctor, fit: Any
) -> None:
    verifier = ImageDoctor(doctor.checkpoint, fit=fit, batch_size=3)
    images = [noise(w, h, seed=i) for i, (w, h) in enumerate(SIZES)]
    together = verifier.verify(images, PROMPTS)
    backwards = verifier.verify(images[::-1], PROMPTS[::-1])[::-1]
    alone = [verifier.verify([i], [p])[0] for i, p in zip(images, PROMPTS, strict=True)]
    assert sum(len(v.heatmaps) for v in together) > 2
    assert len({v.text for v in together}) > 1
    for a, b, c in zip(together, backwards, alone, strict=True):
        assert a.text == b.text == c.text
        assert list(a.heatmaps) == list(b.heatmaps) == list(c.heatmaps)
        for name, grid_map in a.heatmaps.items():
            np.testing.assert_allclose(grid_map, b.heatmaps[name], atol=1e-5)
            np.testing.assert_allclose(grid_map, c.heatmaps[name], atol=1e-5)


def test_rerank_puts_the_unusable_last(
    monkeypatch: pytest.MonkeyPatch, doctor: ImageDoctor
) -> None:
    script_replies(monkeypatch, doctor, REPLY, (True, True))
    ranking = doctor.rerank([noise(8, 8), noise(9, 9)], "a dog")
    assert [item.index for item in ranking] == [0, 1]
    assert ranking.best.objective == pytest.approx(0.8 * 0.5 + 0.1 * 0.25 + 0.1 * 1.0)


def test_no_images_give_no_verdicts(doctor: ImageDoctor) -> None:
    assert doctor.verify([], []) == []


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "Prompt 1 must say what the image should show; it is empty"),
        (" \n", "it is empty"),
        (None, "Prompt 1 must be a text, got None"),
        ("a" * 20_001, "at most 20000 characters; it has 20001"),
        ("\ud800", "must be valid Unicode"),
    ],
)
def test_prompts_that_cannot_be_used_are_errors(
    doctor: ImageDoctor, prompt: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        doctor.verify([noise(8, 8)] * 2, ["a dog", prompt])


def test_a_prompt_longer_than_the_models_context_is_an_error(
    monkeypatch: pytest.MonkeyPatch, doctor: ImageDoctor
) -> None:
    monkeypatch.setattr(doctor, "pair_processor", replace(doctor.pair_processor, most_tokens=1600))
    with pytest.raises(InputError, match=r"must fit into the model's 1600 tokens .* they take"):
        doctor.verify([noise(8, 8)], ["long " * 50])


def test_other_arguments_that_cannot_be_used_are_errors(folder: Path, doctor: ImageDoctor) -> None:
    with pytest.raises(InputError, match="one prompt for each image, got 1 images and 2"):
        doctor.verify([noise(8, 8)], ["a", "b"])
    with pytest.raises(InputError, match="detail must be 'score' or 'diagnose', got 'all'"):
        doctor.verify([noise(8, 8)], ["a"], detail="all")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="fit must be one of squash, pad, got 'crop'"):
        ImageDoctor(doctor.checkpoint, fit="crop")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="batch_size must be a positive integer, got 0"):
        ImageDoctor(doctor.checkpoint, batch_size=0)
    with pytest.raises(InputError, match="Unknown options quantise"):
        ImageDoctor.from_pretrained(str(folder), quantise=True)  # type: ignore[call-arg]
    with pytest.raises(InputError, match="max_new_tokens must be a positive integer, got 0"):
        ImageDoctor.from_pretrained(str(folder), device="cpu", max_new_tokens=0)


def test_settings_say_what_decides_a_verdict(folder: Path) -> None:
    loaded = Verifier.from_pretrained(str(folder), device="cpu", fit="pad", max_new_tokens=7)
    assert loaded.settings == {
        "model": str(folder),
        "revision": None,
        "precision": None,
        "dtype": "float32",
        "device": "cpu",
        "fit": "pad",
        "max_new_tokens": 7,
        "repetition_penalty": 1.05,
        "answer_template": False,
    }


def test_a_verifier_in_fp8_gives_verdicts_and_says_so(folder: Path) -> None:
    loaded = ImageDoctor.from_pretrained(str(folder), device="cpu", precision="fp8")
    assert loaded.settings["precision"] == "fp8"
    assert loaded.checkpoint.model.model.layers[0].mlp.up_proj.weight.itemsize == 1
    (verdict,) = loaded.verify([np.zeros((56, 56, 3), np.uint8)], ["a red circle"])
    assert verdict.scores


def test_an_unknown_precision_is_refused_before_anything_is_searched_for() -> None:
    with pytest.raises(InputError, match="precision must be 'fp8' or left out, got 'fp4'"):
        ImageDoctor.from_pretrained("nowhere", precision="fp4")


def test_fp8_is_refused_if_the_gpu_that_a_verifier_waits_for_cannot_multiply_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = "tts_verifier.verifiers.imagedoctor.verifier.gpu_that_is_full"
    monkeypatch.setattr(module, lambda _: "cuda:0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "A100")
    with pytest.raises(InputError, match=r"8\.9 or more .*; A100 has 8\.0"):
        ImageDoctor.from_pretrained(str(folder), precision="fp8")


def test_a_log_tells_the_bundled_weights_from_older_ones() -> None:
    assert Verifier.from_pretrained("shapes", device="cpu").settings["revision"] == "2026-11-26"
    folder = find_checkpoint("shapes")
    files = b"".join(path.read_bytes() for path in sorted(folder.glob("*.safetensors")))
    digest = hashlib.sha256(files).hexdigest()
    # With new weights, change BUNDLED_REVISION as well.
    assert digest == "f6725fa1fce2b2a4c70656d9e1fc133d9876af4751516e116caf81df98e4e991"


def test_missing_bundled_weights_are_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("importlib.resources.files", lambda _package: tmp_path)
    with pytest.raises(CheckpointError, match="bundled verifier's weights are missing"):
        Verifier.from_pretrained("shapes")


def test_importing_the_folder_loads_no_torch() -> None:
    code = (
        "import sys, tts_verifier.verifiers.imagedoctor as m; assert 'torch' not in sys.modules; "
        "assert not hasattr(m, 'nothing')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_segment_anything_itself_stays_unimported(doctor: ImageDoctor) -> None:
    assert "segment_anything" not in sys.modules


def test_moving_gives_back_all_buffers_and_changes_no_verdict(doctor: ImageDoctor) -> None:
    images = [noise(30, 40, i) for i in range(2)]
    before = doctor.verify(images, ["a", "b"])
    assert doctor.engine.decode_step is not None
    assert doctor.to("cpu") is doctor
    assert doctor.engine.decode_step is None
    assert [v.text for v in doctor.verify(images, ["a", "b"])] == [v.text for v in before]


def test_what_does_not_fit_on_the_gpu_waits_in_host_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr("tts_verifier.loading.memory.free_bytes", lambda _: 4 * 2**30)
    with pytest.warns(RunWarning, match="do not fit on cuda:1 beside what is there"):
        waiting = ImageDoctor.from_pretrained(str(folder))
    assert (waiting.home, str(waiting.device)) == ("cuda:1", "cpu")
    assert waiting.settings["dtype"] == "bfloat16"
    assert waiting.nbytes == sum(p.nbytes for p in waiting.checkpoint.model.parameters()) + sum(
        b.nbytes for b in waiting.checkpoint.model.buffers()
    )
    placed = ImageDoctor.from_pretrained(str(folder), device="cpu")
    assert placed.home is None
