"""The detector judge: GenEval's rules on a stub, and tiny random detectors of transformers."""

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw
from transformers import (
    DetrImageProcessorPil,
    RTDetrImageProcessorPil,
    YolosConfig,
    YolosForObjectDetection,
    YolosImageProcessorPil,
)

from tts_verifier.errors import CheckpointError, InputError
from tts_verifier.interfaces import is_movable
from tts_verifier.recipe import load_recipe
from tts_verifier.runner import execute
from tts_verifier.testing import check_verifier
from tts_verifier.verifiers.rules.colours import name_of_colour
from tts_verifier.verifiers.rules.detector import DetectorVerifier
from tts_verifier.verifiers.rules.object_rules import Detected, relations
from tts_verifier.verifiers.rules.object_specs import WantedObject, names_of_classes, parse_objects

LABELS = ["person", "cat", "dog", "car", "orange", "mouse", "wine glass", "bus", "sofa"]
NAMES = names_of_classes(LABELS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny YOLOS with random weights."""
    path = tmp_path_factory.mktemp("yolos")
    torch.manual_seed(0)
    config = YolosConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=[64, 64],
        num_detection_tokens=6,
        id2label=dict(enumerate(LABELS)),
        label2id={label: i for i, label in enumerate(LABELS)},
    )
    YolosForObjectDetection(config).save_pretrained(path)
    size = {"shortest_edge": 64, "longest_edge": 96}
    YolosImageProcessorPil(size=size).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def loaded(folder):
    return DetectorVerifier(folder, threshold=0.0, counting_threshold=0.0, batch_size=2)


@pytest.fixture
def stub(loaded, monkeypatch):
    """Returns a function that scores a picture with objects that are given, not found."""

    def score(prompt, *objects, judge=loaded, image=None):
        image = image or Image.new("RGB", (100, 100), "white")
        monkeypatch.setattr(judge, "detect", lambda images: [list(objects)] * len(images))
        return judge.verify([image], [prompt])[0]

    return score


def thing(name, box=(0.0, 0.0, 10.0, 10.0), confidence=0.9):
    return Detected(name, confidence, box)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a photo of a bus", [WantedObject("bus")]),
        ("A photo of an orange.", [WantedObject("orange")]),
        ("a cat and a red car", [WantedObject("cat"), WantedObject("car", colour="red")]),
        ("Two cats!", [WantedObject("cat", 2, 2)]),
        ("a photo of three cats", [WantedObject("cat", 3, 3)]),
        ("a photo of two wine glasses", [WantedObject("wine glass", 2, 2)]),
        (
            "4 people, a dog, and two mice",
            [
                WantedObject("person", 4, 4),
                WantedObject("dog"),
                WantedObject("computer mouse", 2, 2),
            ],
        ),
        ("an orange orange", [WantedObject("orange", colour="orange")]),
        ("a photo of a grey couch", [WantedObject("couch", colour="gray")]),
        (
            "a photo of a dog right of a cat",
            [WantedObject("cat"), WantedObject("dog", relation="right of")],
        ),
        (
            "a dog to the left of a cat",
            [WantedObject("cat"), WantedObject("dog", relation="left of")],
        ),
        (
            "a photo of a dog above two cats",
            [WantedObject("cat", 2, 2), WantedObject("dog", relation="above")],
        ),
    ],
)
def test_prompts_of_genevals_templates_are_read(prompt, expected):
    assert list(parse_objects(prompt, NAMES)) == expected


@pytest.mark.parametrize("prompt", ["a dragon", "a cat on a mat", "", "cats with hats", "and"])
def test_other_prompts_are_not_judged_and_say_why(stub, prompt):
    verdict = stub(prompt, thing("cat"))
    assert all(math.isnan(value) for value in verdict.scores.values())
    assert "Not judged. The prompt must name objects that the detector knows" in verdict.error


LEFT, RIGHT = (0.0, 0.0, 30.0, 30.0), (60.0, 0.0, 90.0, 30.0)


@pytest.mark.parametrize(
    ("prompt", "boxes", "value"),
    [
        ("a red cat and a blue cat", [RIGHT, LEFT], 1.0),
        ("a red cat and a blue cat", [LEFT], 0.5),
        ("a cat and a cat", [LEFT], 0.5),
        ("a cat and a cat", [LEFT, RIGHT, LEFT], 1.0),
        ("a cat left of a cat", [RIGHT, LEFT], 1.0),
        ("a cat left of a cat", [LEFT], 1 / 3),
        ("two cats and three cats", [LEFT] * 5, 1.0),
        ("two cats and three cats", [LEFT] * 7, (1 + 3 / 5) / 2),
    ],
)
def test_an_object_serves_one_wish(stub, prompt, boxes, value):
    image = Image.new("RGB", (100, 100), "red")
    image.paste("blue", (50, 0, 100, 100))
    cats = [thing("cat", box, 0.9 - i / 100) for i, box in enumerate(boxes)]
    verdict = stub(prompt, *cats, image=image)
    assert verdict.scores["objects"] == pytest.approx(value)
    assert verdict.scores["objects_passed"] == float(value == 1)


def test_where_ways_multiply_the_surest_objects_serve_the_first_wish(stub):
    """All 120 x 120 ways for two classes would take minutes, and a prompt can name more."""
    image = Image.new("RGB", (100, 100), "red")
    image.paste("blue", (50, 0, 100, 100))
    found = [
        thing(name, box, 0.9 - i / 100)
        for name in ("cat", "dog")
        for i, box in enumerate([LEFT, LEFT, RIGHT, RIGHT, RIGHT])
    ]
    wishes = "two red {0}s and two blue {0}s"
    verdict = stub(f"{wishes.format('cat')} and {wishes.format('dog')}", *found, image=image)
    # The fifth is one too many for the last wish of its class.
    assert verdict.scores["objects"] == pytest.approx((1 + 1 + 2 / 3 + 1) / 4)


def test_objects_are_counted(stub):
    for count, value in ((1, 1 / 3), (3, 1.0), (4, 3 / 4), (0, 0.0)):
        verdict = stub("three cats", *[thing("cat")] * count)
        assert verdict.scores["objects"] == pytest.approx(value)
        assert verdict.scores["objects_passed"] == float(count == 3)
        assert f"cat: 3 wanted, {count} found" in verdict.text
    assert stub("a cat", *[thing("cat")] * 4).scores["objects_passed"] == 1


def test_the_least_sure_of_too_many_is_at_fault(stub):
    sure, doubtful = thing("cat"), thing("cat", (20.0, 0.0, 30.0, 9.0), confidence=0.6)
    verdict = stub("one cat", doubtful, sure)
    assert verdict.boxes == (doubtful.box,)
    assert "Found: cat 0.60 at (20, 0, 30, 9)" in verdict.text


def test_numbers_need_a_higher_confidence(folder, stub):
    judge = DetectorVerifier(folder)
    verdict = stub("one cat", thing("cat", confidence=0.4), judge=judge)
    assert verdict.scores["objects"] == 0
    assert stub("a cat", thing("cat", confidence=0.4), judge=judge).scores["objects"] == 1
    assert stub("a cat", thing("cat", confidence=0.2), judge=judge).scores["objects"] == 0


def test_colours_are_those_in_the_middle_of_the_boxes(stub):
    image = Image.new("RGB", (100, 50), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((5, 5, 45, 45), fill="red")
    draw.ellipse((55, 5, 95, 45), fill="blue")
    left, right = thing("car", (0.0, 0.0, 50.0, 50.0)), thing("car", (50.0, 0.0, 100.0, 50.0))
    assert stub("a red car", left, image=image).scores["objects_passed"] == 1
    wrong = stub("a red car", right, image=image)
    assert wrong.scores == {"objects": 0.5, "objects_passed": 0.0}
    assert wrong.boxes == (right.box,)
    assert "car: red wanted, blue found" in wrong.text
    assert stub("two red cars", left, right, image=image).scores["objects"] == 0.75
    assert stub("a red car", image=image).scores["objects"] == 0


def test_relations_are_genevals(stub):
    cat = thing("cat", (0.0, 40.0, 20.0, 60.0))
    right, above = thing("dog", (70.0, 40.0, 90.0, 60.0)), thing("dog", (0.0, 0.0, 20.0, 20.0))
    assert stub("a dog right of a cat", cat, right).scores["objects_passed"] == 1
    wrong = stub("a dog right of a cat", cat, above)
    assert wrong.scores["objects"] == pytest.approx(2 / 3)
    assert wrong.boxes == (above.box,)
    assert stub("a dog right of a cat", right).scores["objects"] == pytest.approx(1 / 3)
    assert relations(above.box, cat.box) == {"above"}
    assert relations(cat.box, above.box) == {"below"}
    assert relations((30, 30, 50, 50), (0, 0, 20, 20)) == {"right of", "below"}
    assert relations(cat.box, cat.box) == set()


@pytest.mark.parametrize(
    ("colour", "name"),
    [
        ((220, 20, 30), "red"), ((250, 140, 10), "orange"), ((250, 220, 20), "yellow"),
        ((30, 160, 40), "green"), ((20, 60, 200), "blue"), ((130, 30, 160), "purple"),
        ((250, 170, 190), "pink"), ((240, 60, 160), "pink"), ((120, 70, 30), "brown"),
        ((10, 10, 12), "black"), ((250, 250, 245), "white"), ((128, 128, 128), "gray"),
        ((90, 200, 230), "blue"), ((0, 60, 0), "green"), ((255, 0, 10), "red"),
    ],
)  # fmt: skip
def test_colours_have_one_of_eleven_names(colour, name):
    assert name_of_colour(*(value / 255 for value in colour)) == name


METADATA = {
    "tag": "position",
    "include": [
        {"class": "cat", "count": 1},
        {"class": "dog", "count": 2, "position": ["left of", 0], "color": "brown"},
    ],
    "exclude": [{"class": "dog", "count": 3}, {"class": "couch", "count": 1}],
    "prompt": "whatever the text says",
}


def test_a_file_of_genevals_metadata_needs_no_template(folder, tmp_path, stub):
    path = tmp_path / "metadata.jsonl"
    path.write_text(json.dumps(METADATA) + "\n\n")
    judge = DetectorVerifier(folder, specs=path)
    assert judge.specs["whatever the text says"] == (
        WantedObject("cat"),
        WantedObject("dog", 2, 2, "brown", "left of", 0),
        WantedObject("couch", 0, 0),
    )
    sofa = thing("couch", (50.0, 50.0, 60.0, 60.0))
    verdict = stub("whatever the text says", thing("cat"), sofa, judge=judge)
    assert "couch: at most 0 wanted, 1 found" in verdict.text
    assert sofa.box in verdict.boxes
    assert verdict.scores == {"objects": 0.2, "objects_passed": 0.0}


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        "{",
        '{"prompt": "x"}',
        '{"prompt": "", "include": []}',
        '{"prompt": "x", "include": [{"class": "dragon", "count": 1}]}',
        '{"prompt": "x", "include": [{"class": "cat", "count": 0}]}',
        '{"prompt": "x", "include": [{"class": "cat", "count": 1, "color": "mauve"}]}',
        '{"prompt": "x", "include": [{"class": "cat", "count": 1, "position": ["near", 0]}]}',
        '{"prompt": "x", "include": [{"class": "cat", "count": 1, "position": ["above", 3]}]}',
        '{"prompt": "x", "include": [{"class": "cat", "count": 1, "position": ["above", 0]}]}',
        '{"prompt": "x", "include": []}',
        '{"prompt": "x", "include": [{"class": "cat", "count": 2}], "exclude": '
        '[{"class": "cat", "count": 2}]}',
        json.dumps({"prompt": "PLACE", "include": [{"class": "cat", "count": 1}]}),
    ],
)
def test_a_damaged_line_of_metadata_is_named(folder, tmp_path, line):
    path = tmp_path / "metadata.jsonl"
    line = line.replace("PLACE", METADATA["prompt"])
    path.write_text(f"{json.dumps(METADATA)}\n{line}\n")
    with pytest.raises(InputError, match=r"metadata.jsonl:2 must be a line of GenEval's metadata"):
        DetectorVerifier(folder, specs=path)
    with pytest.raises(InputError, match="must be a file of JSON lines"):
        DetectorVerifier(folder, specs=tmp_path / "none.jsonl")


def test_a_real_detector_conforms(loaded):
    images = [Image.new("RGB", size, c) for size, c in (((40, 64), "red"), ((64, 20), "blue"))]
    check_verifier(loaded, images, ["a cat", "a photo of two dogs"])
    assert is_movable(loaded)
    assert loaded.to("cpu").device == "cpu"
    assert loaded.nbytes > 10_000


@pytest.mark.parametrize("letterbox", [False, True])
def test_boxes_are_in_pixels_of_the_picture(folder, letterbox):
    judge = DetectorVerifier(folder, threshold=0.0, counting_threshold=0.0, letterbox=letterbox)
    image = Image.new("RGB", (30, 90), "green")
    boxes = [detected.box for detected in judge.detect([image])[0]]
    assert boxes
    assert all(0 <= x1 <= x2 <= 30 and 0 <= y1 <= y2 <= 90 for x1, y1, x2, y2 in boxes)


def test_a_letterboxed_picture_is_seen_as_its_padded_square(folder):
    judge = DetectorVerifier(folder, threshold=0.0, counting_threshold=0.0, letterbox=True)
    plain = DetectorVerifier(folder, threshold=0.0, counting_threshold=0.0)
    image = Image.effect_noise((32, 64), 80).convert("RGB")
    square = Image.new("RGB", (64, 64), (114, 114, 114))
    square.paste(image, (16, 0))
    got, expected = judge.detect([image])[0], plain.detect([square])[0]
    assert [d.confidence for d in got] == pytest.approx([d.confidence for d in expected])
    shifted = [min(max(d.box[0] - 16, 0), 32) for d in expected]
    assert [d.box[0] for d in got] == pytest.approx(shifted, abs=1e-3)


def test_a_strip_is_too_long_for_a_letterbox(folder):
    judge = DetectorVerifier(folder, letterbox=True)
    with pytest.raises(InputError, match=r"at most 9433 pixels a side, this one is 9500 x 2"):
        judge.verify([Image.new("RGB", (9500, 2))], ["a cat"])


@pytest.mark.parametrize("kind", [DetrImageProcessorPil, RTDetrImageProcessorPil])
def test_processors_of_other_detectors_serve_too(folder, tmp_path, kind):
    for file in ("config.json", "model.safetensors"):
        (tmp_path / file).write_bytes((folder / file).read_bytes())
    kind(size={"height": 64, "width": 64}).save_pretrained(tmp_path)
    images = [Image.new("RGB", (40, 64), "red"), Image.new("RGB", (64, 20), "blue")]
    assert len(DetectorVerifier(tmp_path).verify(images, ["a cat", "a dog"])) == 2


def test_a_checkpoint_that_is_no_detector_is_refused(folder, tmp_path):
    with pytest.raises(CheckpointError, match="is none of them"):
        DetectorVerifier(tmp_path / "none")
    with pytest.raises(CheckpointError, match="must be a detector that transformers loads"):
        DetectorVerifier(tmp_path)
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="with safetensors"):
        DetectorVerifier(tmp_path)


def test_missing_weights_are_refused(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    for file in ("config.json", "preprocessor_config.json"):
        (tmp_path / file).write_bytes((folder / file).read_bytes())
    tensors = load_file(folder / "model.safetensors")
    tensors = {n: t for n, t in tensors.items() if "bbox_predictor" not in n}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="must hold all weights of its detector"):
        DetectorVerifier(tmp_path)


def test_a_network_that_says_nothing_finite_is_no_picture_without_objects(folder):
    judge = DetectorVerifier(folder, threshold=0.0)
    judge.model.class_labels_classifier.layers[0].weight.data.fill_(math.nan)
    verdict = judge.verify([Image.new("RGB", (30, 20))], ["a photo of a cat"])[0]
    assert math.isnan(verdict.scores["objects"])
    assert math.isnan(verdict.scores["objects_passed"])
    assert "the network gave no finite confidence" in verdict.error


@pytest.mark.parametrize("argument", ["threshold", "counting_threshold"])
@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, "x", True])
def test_thresholds_are_shares(folder, argument, value):
    with pytest.raises(InputError, match=f"{argument} must be a number in"):
        DetectorVerifier(folder, **{argument: value})


def test_letterbox_is_true_or_false(folder):
    with pytest.raises(InputError, match="letterbox must be true or false, got 'no'"):
        DetectorVerifier(folder, letterbox="no")


def test_a_recipe_takes_genevals_file_as_prompts_and_as_what_they_ask_for(folder, tmp_path):
    rows = [METADATA, METADATA | {"prompt": "another", "include": [{"class": "bus", "count": 1}]}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "detector.yaml").write_text(f"""
generator: {{name: fake}}
verifier: {{name: detector, model: {folder}, specs: {tmp_path}/metadata.jsonl, threshold: 0.0}}
strategy: {{name: best_of_n, n: 2}}
prompts: {{file: metadata.jsonl}}
""")
    recipe = load_recipe(tmp_path / "detector.yaml")
    result = execute(recipe.build(), recipe.prompts)
    assert [choice.trial.prompt.category for choice in result.choices.values()] == ["position"] * 2
    assert all(0 <= trial.objective <= 1 for trial in result.trials)
    assert "bus: 1 or more wanted" in result.choices["0001"].trial.verdict.text
