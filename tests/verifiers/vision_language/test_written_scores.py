"""UnifiedReward and VisualQuality-R1: texts of training, replies of any kind, expectations."""

import hashlib
import math

import numpy as np
import pytest
import torch
from tiny_imagedoctor import noise
from tiny_judges import save_judge

from tts_verifier.errors import InputError
from tts_verifier.testing import check_verifier
from tts_verifier.verifiers.imagedoctor.text.expected_scores import expected_scores
from tts_verifier.verifiers.imagedoctor.text.reply import parse_reply
from tts_verifier.verifiers.vision_language import instructions
from tts_verifier.verifiers.vision_language.digits import expected_number
from tts_verifier.verifiers.vision_language.inference.replies import Reply, digit_ids
from tts_verifier.verifiers.vision_language.unifiedreward import UnifiedReward, VisualQuality
from tts_verifier.verifiers.vision_language.vqascore import VQAScore

IMAGES = [noise(60, 60), noise(60, 90, 1)]
PROMPTS = ["a cat", "a dog on a hill"]
WRITTEN = "Alignment Score (1-5): 2.69\nCoherence Score (1-5): 2.4\nStyle Score (1-5): 3"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory):
    return VQAScore(save_judge(tmp_path_factory.mktemp("judge"))).engine


def writes(engine, monkeypatch: pytest.MonkeyPatch, text: str, odds: float = 30.0) -> None:
    """The model replies with a text, each token of which has this lead in logits over the rest."""
    ids = [*engine.processor.tokenizer.encode(text), engine.processor.tokenizer.eos_token_id]
    done = []

    def generate(input_ids, generation_config, **_):
        done.append(generation_config)
        count = len(input_ids)
        shown = ids[: generation_config.max_new_tokens]
        scores = torch.zeros(len(shown), count, len(engine.processor.tokenizer))
        for step, token in enumerate(shown):
            scores[step, :, token] = odds
        sequences = torch.cat([input_ids, torch.tensor([shown] * count)], 1)
        return type("Done", (), {"sequences": sequences, "scores": list(scores)})

    monkeypatch.setattr(engine.model, "generate", generate)


@pytest.mark.parametrize(
    ("text", "digest"),
    [
        (instructions.HPSV3, "f6ee57479d4e9eee76b49c00dc962e1e696a5a2b3cc32cebd9b1fa76fe27502c"),
        (
            instructions.UNIFIED_REWARD,
            "26b7b69f0ac7e57191730fa7fb4130737af3dce280c3320ffaec8013d68594c2",
        ),
        (
            instructions.VISUAL_QUALITY + instructions.ANSWER_ALONE,
            "a8533fe38bfb7da25c34334790c12502db98846519baf394cef556ada160b09a",
        ),
        (
            instructions.VISUAL_QUALITY + instructions.ANSWER_AFTER_THINKING,
            "f0f7669e0707fee790e9b7c5000af610c1579eae269ea0d6d856900d6757e09f",
        ),
    ],
)
def test_texts_are_byte_for_byte_those_of_training(text: str, digest: str) -> None:
    assert hashlib.sha256(text.encode()).hexdigest() == digest


def test_random_weights_write_no_score_and_conform(engine) -> None:
    for judge in (UnifiedReward(engine, max_new_tokens=4), VisualQuality(engine, max_new_tokens=4)):
        check_verifier(judge, IMAGES, PROMPTS)
        verdict = judge.verify(IMAGES, PROMPTS)[0]
        assert all(map(math.isnan, verdict.scores.values()))
        assert "from 1 to 5 in the form that was asked for" in verdict.error


def test_three_scores_are_read_and_expected(engine, monkeypatch: pytest.MonkeyPatch) -> None:
    writes(engine, monkeypatch, WRITTEN)
    verdict = UnifiedReward(engine).verify(IMAGES, PROMPTS)[1]
    assert verdict.text == WRITTEN
    assert not verdict.error
    assert verdict.scores == pytest.approx(
        {
            "alignment": 2.69, "coherence": 2.4, "style": 3.0,
            "alignment_expected": 2.69, "coherence_expected": 2.4, "style_expected": 3.0,
        }
    )  # fmt: skip
    objective = UnifiedReward.objective(verdict.scores)
    assert objective == pytest.approx((2.69 + 2.4 + 3.0) / 3)


def test_doubt_about_a_digit_moves_the_expected_score(engine, monkeypatch) -> None:
    writes(engine, monkeypatch, WRITTEN, odds=2.0)
    scores = UnifiedReward(engine).verify(IMAGES, PROMPTS)[0].scores
    assert scores["alignment"] == 2.69
    assert scores["alignment_expected"] != pytest.approx(2.69, abs=0.01)
    assert 1 <= scores["alignment_expected"] <= 5


@pytest.mark.parametrize(
    ("reply", "missing"),
    [
        ("Alignment Score (1-5): 2.69\nStyle Score (1-5): 3", "no coherence from 1 to 5"),
        (WRITTEN.replace("2.4", "7.4"), "no coherence from 1 to 5"),
        (WRITTEN.replace("2.4", "12"), "no coherence from 1 to 5"),
        ("I cannot judge this image.", "no alignment, coherence, style from 1 to 5"),
        ("", "no alignment, coherence, style from 1 to 5"),
    ],
)
def test_a_score_that_is_not_there_is_nan_with_its_reason(
    engine, monkeypatch: pytest.MonkeyPatch, reply: str, missing: str
) -> None:
    writes(engine, monkeypatch, reply)
    verdict = UnifiedReward(engine).verify(IMAGES[:1], PROMPTS[:1])[0]
    assert math.isnan(UnifiedReward.objective(verdict.scores))
    assert missing in verdict.error
    assert verdict.text == reply


def test_a_reply_that_is_cut_off_says_so(engine, monkeypatch: pytest.MonkeyPatch) -> None:
    writes(engine, monkeypatch, WRITTEN)
    verdict = UnifiedReward(engine, max_new_tokens=40).verify(IMAGES[:1], PROMPTS[:1])[0]
    assert verdict.scores["alignment"] == 2.69
    assert "it was cut off after 40 tokens" in verdict.error


@pytest.mark.parametrize(
    ("reply", "quality"),
    [
        ("<answer>3.42</answer>", 3.42),
        ("<think>4 of 5?</think> <answer> 2 </answer>", 2.0),
        ("<answer>1.0</answer><answer>4.5</answer>", 4.5),
        ("3.42", math.nan),
        ("<answer>good</answer>", math.nan),
        ("<answer>0.5</answer>", math.nan),
        ("<answer>3.42", math.nan),
    ],
)
def test_quality_is_read_from_the_answer_only_and_never_random(
    engine, monkeypatch: pytest.MonkeyPatch, reply: str, quality: float
) -> None:
    writes(engine, monkeypatch, reply)
    verdict = VisualQuality(engine).verify(IMAGES[:1], PROMPTS[:1])[0]
    expected = {"quality": quality, "quality_expected": quality}
    assert verdict.scores == pytest.approx(expected, nan_ok=True)
    assert bool(verdict.error) == math.isnan(quality)


def test_visual_quality_counts_its_image_and_ignores_the_prompt(engine, monkeypatch) -> None:
    turns = []
    template = engine.processor.apply_chat_template
    monkeypatch.setattr(
        engine.processor,
        "apply_chat_template",
        lambda turn, **kw: turns.append(turn) or template(turn, **kw),
    )
    writes(engine, monkeypatch, "<answer>3</answer>")
    VisualQuality(engine, thinking=True).verify(IMAGES[:1], ["a cat"])
    first, image, question = turns[-1][0]["content"]
    assert (first["text"], image["type"]) == ("Picture 1: ", "image")
    assert question["text"].endswith("with only one score in <answer> </answer> tags.")
    assert "<think>" in question["text"]
    assert "a cat" not in question["text"]


def reply_of(text: str, probs: list[dict[int, float]]) -> Reply:
    digits = np.zeros((len(text), 10), np.float32)
    given = iter(probs)
    for i, letter in enumerate(text):
        for digit, p in (next(given) if letter.isdigit() else {}).items():
            digits[i, digit] = p
    return Reply(text, list(text), digits, True)


def test_the_expectation_is_imagedoctors() -> None:
    """On 0 to 1 both give the same: units, tenths and hundredths."""
    text = "semantic alignment score: 0.86</answer>"
    reply = reply_of(text, [{0: 0.7, 1: 0.3}, {8: 0.6, 9: 0.4}, {6: 0.5, 7: 0.25, 1: 0.25}])
    parsed = parse_reply(text, reasoning=False)
    start, end = parsed.spans["semantic_alignment"]
    probs = np.zeros((len(text), 12), np.float32)
    probs[:, :10] = reply.digits
    probs[start, 10:] = 0.7, 0.3
    expected = expected_scores(parsed, text, list(text), probs)["semantic_alignment_expected"]
    assert expected_number(reply, start, end, 0, 1) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("text", "probs", "expected"),
    [
        ("2.5", [{2: 1.0}, {5: 1.0}], 2.5),
        ("2.5", [{2: 0.5, 3: 0.5}, {5: 1.0}], 0.5 * 2.5 + 0.5 * 3),
        ("2.5", [{2: 0.5, 1: 0.5}, {5: 1.0}], 0.5 * 2.5 + 0.5 * 1.99),
        ("2.5", [{2: 0.5, 7: 0.5}, {5: 1.0}], 2.5),
        ("5.0", [{5: 1.0}, {0: 0.5, 9: 0.5}], 5.0),
        ("4", [{4: 0.75, 5: 0.25}], 4.25),
    ],
)
def test_other_units_count_with_their_nearest_value(
    text: str, probs: list[dict[int, float]], expected: float
) -> None:
    assert expected_number(reply_of(text, probs), 0, len(text), 1, 5) == pytest.approx(expected)


def test_a_number_that_is_not_written_digit_by_digit_has_no_expectation() -> None:
    reply = Reply("2.50", ["2.", "50"], np.full((2, 10), 0.1, np.float32), True)
    assert expected_number(reply, 0, 4, 1, 5) is None
    assert expected_number(reply_of("12.5", [{1: 1.0}] * 3), 0, 4, 1, 5) is None


def test_a_tokenizer_without_digits_and_a_limit_of_zero_are_refused(engine) -> None:
    with pytest.raises(InputError, match="max_new_tokens must be a whole number from 1"):
        UnifiedReward(engine, max_new_tokens=0)
    lacking = type("Letters", (), {"encode": lambda self, form, **_: [1, 2]})()
    with pytest.raises(InputError, match="writes numbers digit by digit; for this one 0123456789"):
        digit_ids(lacking)


@pytest.mark.parametrize("tokens", ["x", None, 1.5, True, 2**16])
def test_a_limit_of_tokens_is_a_whole_number_and_thinking_true_or_false(tokens: object) -> None:
    with pytest.raises(InputError, match="max_new_tokens must be a whole number from 1 to 65535"):
        VisualQuality("nowhere", max_new_tokens=tokens)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="thinking must be true or false, got 'no'"):
        VisualQuality("nowhere", thinking="no")  # type: ignore[arg-type]
