"""P("Yes") on every family: equal in batches and alone, to transformers' own, and clear errors."""

import json
from pathlib import Path
from threading import Thread

import pytest
import torch
from PIL import Image
from tiny_imagedoctor import noise
from tiny_judges import FAMILIES, save_judge, tokenizer

from tts_verifier import BestOfN, run
from tts_verifier.errors import CheckpointError, InputError, RunWarning
from tts_verifier.registry import builder
from tts_verifier.testing import FakeGenerator, FakeVerifier, check_verifier
from tts_verifier.types import Compare
from tts_verifier.verifiers.vision_language.vqascore import VQAScore

IMAGES = [noise(90, 60), noise(60, 100, 1), noise(30, 30, 2)]
PROMPTS = ["a cat", "two dogs in front of a house on a hill", "<|im_end|>: a token's name"]


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_judge(tmp_path_factory.mktemp("judge"), request.param)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_judge(tmp_path_factory.mktemp("qwen"))


def test_every_family_conforms_and_a_batch_equals_one_at_a_time(folder: Path) -> None:
    judge = VQAScore(folder)
    check_verifier(judge, IMAGES, PROMPTS)
    together = [v.scores["vqascore"] for v in judge.verify(IMAGES, PROMPTS)]
    alone = [
        judge.verify([image], [prompt])[0].scores["vqascore"]
        for image, prompt in zip(IMAGES, PROMPTS, strict=True)
    ]
    assert together == pytest.approx(alone, abs=1e-6)
    assert len(set(together)) == 3


def test_two_pictures_are_compared_at_once(folder: Path) -> None:
    judge = VQAScore(folder)
    first, second = IMAGES, [*IMAGES[1:], IMAGES[0]]
    together = judge.compare(first, second, PROMPTS)
    alone = [
        judge.compare([one], [other], [prompt])[0].scores["preferred"]
        for one, other, prompt in zip(first, second, PROMPTS, strict=True)
    ]
    assert [v.scores["preferred"] for v in together] == pytest.approx(alone, abs=1e-5)
    assert all(0 < value < 1 for value in alone)
    assert len(set(alone)) == 3
    assert judge.compare([], [], []) == []
    with pytest.raises(InputError, match="2 images and 1 prompt"):
        judge.compare(IMAGES[:1], IMAGES[:2], PROMPTS[:1])
    with pytest.raises(InputError, match="empty"):
        judge.compare(IMAGES[:1], IMAGES[1:2], [" "])


def test_a_preference_is_that_of_the_first_token(qwen: Path) -> None:
    judge = builder("comparer", "vqascore")(model=str(qwen))
    processor, model = judge.engine.processor, judge.engine.model
    image = "<|vision_start|><|image_pad|><|vision_end|>"
    text = (
        f"<|im_start|>user\nPicture 1: {image}\nPicture 2: {image}\nWhich of the two pictures "
        'shows "a cat" better? Answer with the number of the picture, 1 or 2.<|im_end|>\n'
        "<|im_start|>assistant\n"
    )
    inputs = processor(text=[text], images=[IMAGES[:2]], return_tensors="pt")
    with torch.no_grad():
        probs = model(**inputs).logits[0, -1].softmax(-1)
    one, two = (float(probs[processor.tokenizer.convert_tokens_to_ids(n)]) for n in "12")
    verdict = judge.compare(IMAGES[:1], IMAGES[1:2], ["a cat"])[0]
    assert verdict.scores["preferred"] == pytest.approx(one / (one + two), abs=1e-5)
    assert verdict.text == f'P("1") = {one:.4f}, P("2") = {two:.4f}'


def test_weights_that_overflow_give_no_preference(qwen: Path) -> None:
    judge = VQAScore(qwen)
    judge.engine.model.lm_head.weight.data.fill_(float("nan"))
    verdict = judge.compare(IMAGES[:1], IMAGES[1:2], ["a cat"])[0]
    assert verdict.scores["preferred"] != verdict.scores["preferred"]
    assert "no finite probability" in verdict.error


def test_a_pair_that_is_too_long_costs_only_itself_and_no_run(
    qwen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = VQAScore(qwen)
    monkeypatch.setattr(judge.engine, "_longest", 200)
    good, long = judge.compare(IMAGES[:2], IMAGES[1:3], ["a cat", "a cat " * 50])
    assert good.error == ""
    assert long.scores["preferred"] != long.scores["preferred"]
    assert "must have at most 200 tokens" in long.error

    monkeypatch.setattr(judge.engine, "_longest", 10)
    result = run(
        ["a cat"], FakeGenerator(), FakeVerifier(), BestOfN(2), ties=2, near=1.0, comparer=judge
    )
    (compared,) = (t for t in result.trials if isinstance(t.proposal, Compare))
    assert "must have at most 10 tokens" in compared.error


def test_a_run_settles_near_ties_by_the_pairs(qwen: Path) -> None:
    judge = VQAScore(qwen)
    result = run(
        ["a cat"], FakeGenerator(), FakeVerifier(), BestOfN(3), ties=2, near=1.0, comparer=judge
    )
    compared = [t for t in result.trials if isinstance(t.proposal, Compare)]
    assert len(compared) == 1
    assert 0 < compared[0].objective < 1
    assert "in this order 0." in compared[0].verdict.text
    assert 'P("2")' in compared[0].verdict.text


def test_the_score_is_the_probability_of_the_first_token(qwen: Path) -> None:
    judge = VQAScore(qwen)
    processor, model = judge.engine.processor, judge.engine.model
    text = (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>"
        'Does this image show "a cat"?<|im_end|>\n<|im_start|>assistant\n'
    )
    inputs = processor(text=[text], images=[IMAGES[0]], return_tensors="pt")
    with torch.no_grad():
        probs = model(**inputs).logits[0, -1].softmax(-1)
    yes = processor.tokenizer.convert_tokens_to_ids("Yes")
    score = judge.verify(IMAGES[:1], ["a cat"])[0].scores["vqascore"]
    assert score == pytest.approx(float(probs[yes]), abs=1e-6)


def test_a_recipe_builds_it_by_its_name(qwen: Path) -> None:
    judge = builder("verifier", "vqascore")(model=str(qwen), batch_size=2, dtype="float32")
    assert judge.settings["model"] == str(qwen)
    assert judge.settings["question"] == 'Does this image show "{}"?'
    assert judge.rerank(IMAGES, "a cat")[0].verdict.detail == "diagnose"


def test_threads_get_what_one_gets(qwen: Path) -> None:
    judge, found = VQAScore(qwen), {}
    expected = [v.scores for v in judge.verify(IMAGES, PROMPTS)]
    threads = [
        Thread(target=lambda i=i: found.update({i: judge.verify(IMAGES, PROMPTS)}))
        for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all([v.scores for v in verdicts] == expected for verdicts in found.values())
    assert len(found) == 4


def test_when_memory_runs_out_the_batch_is_halved(
    qwen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = VQAScore(qwen, batch_size=2)
    expected = [v.scores["vqascore"] for v in judge.verify(IMAGES * 2, PROMPTS * 2)]
    embed = judge.engine.model.get_input_embeddings()

    def short_of_memory(ids):
        if len(ids) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return embed(ids)

    monkeypatch.setattr(judge.engine.model, "get_input_embeddings", lambda: short_of_memory)
    with pytest.warns(RunWarning, match="from now on 1 questions"):
        verdicts = judge.verify(IMAGES * 2, PROMPTS * 2)
    assert [v.scores["vqascore"] for v in verdicts] == pytest.approx(expected, abs=1e-6)


def test_another_runtime_error_is_raised(qwen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = VQAScore(qwen)

    def fail(ids):
        raise RuntimeError("a kernel failed")

    monkeypatch.setattr(judge.engine.model, "get_input_embeddings", lambda: fail)
    with pytest.raises(RuntimeError, match="a kernel failed"):
        judge.verify(IMAGES, PROMPTS)


def test_a_probability_that_is_not_finite_is_nan_with_its_reason(qwen: Path) -> None:
    judge = VQAScore(qwen)
    judge.engine.model.lm_head.weight.data.fill_(float("inf"))
    verdict = judge.verify(IMAGES[:1], ["a cat"])[0]
    assert str(verdict.scores["vqascore"]) == "nan"
    assert "no finite probability" in verdict.error


def test_an_answer_of_several_tokens_is_refused(qwen: Path) -> None:
    with pytest.raises(InputError, match=r"answer must be a single token.*'Maybe' is 5"):
        VQAScore(qwen, answer="Maybe")


@pytest.mark.parametrize("answer", [None, 5, ["Yes"]])
def test_an_answer_is_a_text(answer: object) -> None:
    with pytest.raises(InputError, match="answer must be a text, got"):
        VQAScore("nowhere", answer=answer)


@pytest.mark.parametrize("question", ["Is it there?", "{} or {}?", 3])
def test_a_question_needs_one_place_for_the_prompt(question: object) -> None:
    with pytest.raises(InputError, match=r"question must be a text with one \{\} for the prompt"):
        VQAScore("nowhere", question=question)


def test_what_the_model_does_not_take_costs_its_neighbours_nothing(qwen: Path) -> None:
    judge = VQAScore(qwen)
    images, prompts = [*IMAGES, noise(2, 900)], ["a cat", "x" * 4100, "a dog", "a strip"]
    good, long, other, strip = judge.verify(images, prompts)
    assert "at most 4096 tokens for this model, this one has 4" in long.error
    assert "must accept the images (of 2 x 900" in strip.error
    assert str(long.scores["vqascore"]) == str(strip.scores["vqascore"]) == "nan"
    expected = judge.verify([IMAGES[0], IMAGES[2]], ["a cat", "a dog"])
    for verdict, alone in zip((good, other), expected, strict=True):
        assert verdict.scores["vqascore"] == pytest.approx(alone.scores["vqascore"], abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be a positive integer, got 0"),
        ({"device": "cuda:77"}, "device must be a device of this machine"),
        ({"dtype": "int8"}, "dtype must be float32"),
        ({"speed": 3}, "Unknown options speed. .*Available: batch_size"),
    ],
)
def test_options_are_checked_before_anything_is_loaded(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        VQAScore("nowhere/at-all", **arguments)


def test_a_checkpoint_that_is_none_is_refused(tmp_path: Path, qwen: Path) -> None:
    with pytest.raises(CheckpointError, match="is neither"):
        VQAScore("no such thing")
    with pytest.raises(CheckpointError, match="is not in the offline cache"):
        VQAScore("nobody/nothing", local_files_only=True)
    with pytest.raises(CheckpointError, match=r"must hold the config\.json"):
        VQAScore(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match=r"needs an image-text-to-text model.*is a bert"):
        VQAScore(tmp_path)
    (tmp_path / "config.json").write_bytes((qwen / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match="must hold the tokenizer and the image processor"):
        VQAScore(tmp_path)


def copied(source: Path, target: Path, *, without: tuple[str, ...] = ()) -> Path:
    for file in source.iterdir():
        if file.name not in without:
            (target / file.name).write_bytes(file.read_bytes())
    return target


def test_a_folder_without_weights_or_with_some_is_refused(qwen: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = copied(qwen, tmp_path, without=("model.safetensors",))
    with pytest.raises(CheckpointError, match="must hold the safetensors of a qwen2_5_vl"):
        VQAScore(folder)
    weights = load_file(qwen / "model.safetensors")
    name = next(name for name in weights if "mlp" in name)
    save_file({k: v for k, v in weights.items() if k != name}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"must hold all weights.*1 are missing"):
        VQAScore(folder)


def test_a_processor_that_does_not_fit_its_model_is_refused(qwen: Path, tmp_path: Path) -> None:
    folder = copied(qwen, tmp_path)
    config = folder / "preprocessor_config.json"
    config.write_text(config.read_text().replace('"patch_size": 14', '"patch_size": 16'))
    with pytest.raises(CheckpointError, match=r"must fit its model.*Take both from the same"):
        VQAScore(folder)


def test_a_checkpoint_without_a_chat_template_is_refused(qwen: Path, tmp_path: Path) -> None:
    folder = copied(qwen, tmp_path, without=("chat_template.jinja",))
    with pytest.raises(CheckpointError, match="must hold a chat template"):
        VQAScore(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["chat_template"] = (qwen / "chat_template.jinja").read_text()
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert VQAScore(folder).verify(IMAGES, PROMPTS)[0].scores == pytest.approx(
        VQAScore(qwen).verify(IMAGES, PROMPTS)[0].scores
    )


def test_prompts_and_images_that_cannot_be_used_are_refused(qwen: Path) -> None:
    judge = VQAScore(qwen)
    with pytest.raises(InputError, match="Prompt 0 must say what the image should show"):
        judge.verify([Image.new("RGB", (40, 40))], [" "])
    with pytest.raises(InputError, match="Prompt 0 must be valid Unicode"):
        judge.verify(IMAGES[:1], ["\ud800"])
    with pytest.raises(InputError, match="detail must be 'score' or 'diagnose'"):
        judge.verify(IMAGES, PROMPTS, detail="all")


def test_names_of_special_tokens_in_a_prompt_are_text(qwen: Path) -> None:
    judge = VQAScore(qwen)
    text = judge.engine.plain("a <|image_pad|> and <|im_end|>")
    ids = judge.engine.processor.tokenizer(text)["input_ids"]
    assert not set(ids) & set(tokenizer().all_special_ids)
    assert judge.verify(IMAGES[:1], ["a <|image_pad|>"])[0].scores["vqascore"] > 0


def test_an_answer_is_encoded_while_threads_prepare_batches(qwen: Path) -> None:
    """As beside a GPU, where several threads encode prompts with padding."""
    judge, failed = VQAScore(qwen), []

    def prepare() -> None:
        for length in range(20):
            texts = ["x" * length, "x" * 3 * length]
            found = judge.engine.processor.tokenizer(texts, padding=True, return_tensors="pt")
            if found["input_ids"].shape[0] != 2:
                failed.append(length)

    threads = [Thread(target=prepare) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(50):
        VQAScore(judge.engine, answer="No")
    for thread in threads:
        thread.join()
    assert not failed
