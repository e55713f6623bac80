"""The judges as verifiers: conformance, long prompts, recipes, threads, moves, memory."""

import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tiny_contrastive
import torch
from click.testing import CliRunner
from PIL import Image

from tts_verifier import BestOfN, run
from tts_verifier.cli.score import score_command
from tts_verifier.errors import InputError, RecipeError, RunWarning
from tts_verifier.interfaces import is_movable
from tts_verifier.recipe import load_recipe
from tts_verifier.runner import execute
from tts_verifier.testing import FakeGenerator, FakeVerifier, check_verifier
from tts_verifier.verifiers import load_verifier
from tts_verifier.verifiers.contrastive import judge
from tts_verifier.verifiers.contrastive.aesthetic import Aesthetic
from tts_verifier.verifiers.contrastive.clip import ClipScore, PickScore
from tts_verifier.verifiers.contrastive.hpsv2 import HPSv2
from tts_verifier.verifiers.contrastive.imagereward import ImageReward

PICTURES = tiny_contrastive.pictures()


@pytest.fixture
def judges(request, clip_folder):
    made = {
        "clip": lambda: ClipScore(clip_folder),
        "pickscore": lambda: PickScore(clip_folder, softmax=True),
        "hpsv2": lambda: _pair(HPSv2, "base", request.getfixturevalue("hpsv2_files")),
        "imagereward": lambda: _pair(
            ImageReward, "tokenizer", request.getfixturevalue("imagereward_files")
        ),
        "aesthetic": lambda: _pair(Aesthetic, "head", request.getfixturevalue("aesthetic_files")),
    }
    return made


def _pair(kind, argument, files):
    model, other = files
    return kind(model, **{argument: other}, batch_size=2)


@pytest.mark.parametrize("name", ["clip", "pickscore", "hpsv2", "imagereward", "aesthetic"])
def test_a_judge_conforms_and_moves(judges, name):
    judge = judges[name]()
    prompts = ["a red circle", "the table", "a red circle"]
    check_verifier(judge, PICTURES[:3], prompts)
    assert judge.settings["verifier"] in ("pick", name)
    assert is_movable(judge)
    assert judge.nbytes > 10_000
    assert judge.device == "cpu"
    before = [v.scores for v in judge.verify(PICTURES, ["x"] * len(PICTURES))]
    assert [v.scores for v in judge.to("cpu").verify(PICTURES, ["x"] * len(PICTURES))] == before


def test_what_is_cut_of_a_prompt_is_said_once_and_in_each_verdict(judges):
    judge = judges["imagereward"]()
    with pytest.warns(RunWarning, match=r"36 tokens and the judge reads 35.*'table'") as warned:
        verdicts = judge.verify(PICTURES[:2], ["red " * 33 + "table", "red"])
    assert len(warned) == 1
    assert "36 tokens and the judge reads 35; it does not see 'table'" in verdicts[0].text
    assert verdicts[1].text == ""
    # No second warning, which would be an error here.
    again = judge.verify(PICTURES[:1], ["red " * 33 + "table"])
    assert again[0].text == verdicts[0].text
    expected = pytest.approx(verdicts[0].scores["imagereward"], abs=1e-5)
    assert again[0].scores["imagereward"] == expected
    assert judge.verify(PICTURES[:1], ["red " * 33])[0].text == ""


def test_a_note_quotes_a_part_of_what_is_cut(clip_folder):
    with pytest.warns(RunWarning, match=r"3002 tokens and the judge reads 77.*red' …"):
        verdict = ClipScore(clip_folder).verify(PICTURES[:1], ["red " * 3000])[0]
    assert 200 < len(verdict.text) < 300


@pytest.mark.parametrize("name", ["<|endoftext|>", "<|startoftext|>", "[SEP]", "[PAD]"])
def test_the_name_of_a_special_token_in_a_prompt_is_only_text(judges, name):
    for reader in (judges["pickscore"](), judges["imagereward"]()):
        prompts = ["the red", f"the red {name} table", f"the red {name} chair"]
        verdicts = reader.verify(PICTURES[:1] * 3, prompts)
        # A text that ended at the name would be the first prompt three times.
        assert len({reader.objective(verdict.scores) for verdict in verdicts}) == 3


def test_the_prefix_counts_as_part_of_the_prompt(clip_folder):
    fits = "red " * 75
    assert ClipScore(clip_folder).verify(PICTURES[:1], [fits])[0].text == ""
    with pytest.warns(RunWarning, match=r"80 tokens and the judge reads 77.*'red red red'"):
        ClipScore(clip_folder, prefix="of of of ").verify(PICTURES[:1], [fits])


def test_preference_compares_the_pictures_of_one_prompt(judges):
    judge = judges["pickscore"]()
    verdicts = judge.verify(PICTURES[:4], ["red", "table", "red", "table"])
    first, second, third, fourth = (v.scores["preference"] for v in verdicts)
    assert first + third == pytest.approx(1)
    assert second + fourth == pytest.approx(1)
    assert verdicts[0].scores["pick"] != verdicts[2].scores["pick"]
    judge.model.logit_scale.fill_(math.nan)
    unusable = judge.verify(PICTURES[:2], ["red", "red"])
    assert all(math.isnan(value) for v in unusable for value in v.scores.values())
    assert all("the network gave no finite score; float32 or bf" in v.error for v in unusable)


def test_memory_that_runs_out_halves_the_batch(judges, monkeypatch):
    judge = judges["hpsv2"]()
    expected = [v.scores["hpsv2"] for v in judge.verify(PICTURES, ["red"] * 8)]
    judge.batches.size = 8
    features, sizes = judge.model.get_image_features, []

    def tight(pixel_values):
        sizes.append(len(pixel_values))
        if len(pixel_values) > 4:
            raise torch.OutOfMemoryError("full")
        return features(pixel_values=pixel_values)

    monkeypatch.setattr(judge.model, "get_image_features", tight)
    got = [v.scores["hpsv2"] for v in judge.verify(PICTURES, ["red"] * 8)]
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert sizes == [8, 4, 4]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_narrow_dtype_stays_near(clip_folder, dtype):
    pictures, prompts = PICTURES[:2], ["red", "table"]
    wide = ClipScore(clip_folder, clamp=False, scale=1.0).verify(pictures, prompts)
    narrow = ClipScore(clip_folder, clamp=False, scale=1.0, dtype=dtype)
    assert narrow.settings["dtype"] == dtype
    for a, b in zip(wide, narrow.verify(pictures, prompts), strict=True):
        assert a.scores["clip"] == pytest.approx(b.scores["clip"], abs=0.02)


def test_threads_share_a_judge(clip_folder):
    judge = ClipScore(clip_folder, clamp=False)
    expected = judge.verify(PICTURES[:1], ["red"])[0].scores
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(judge.verify, PICTURES[:1], ["red"]) for _ in range(8)]
    assert all(call.result()[0].scores == expected for call in calls)


def test_a_judge_is_held_out_in_a_run(judges):
    result = run(
        ["a red circle"], FakeGenerator(), FakeVerifier(), BestOfN(2), judge=judges["imagereward"]()
    )
    trial = result.choices["0000"].trial
    assert math.isfinite(trial.judge["imagereward"])


RECIPE = """
generator: {{name: fake}}
verifier:
  name: clip
  model: {folder}
  clamp: false
  device: cpu
  dtype: float32
  batch_size: 4
judge: {{name: pickscore, model: {folder}}}
objective: {{weights: {{{score}: 1.0}}}}
strategy: {{name: best_of_n, n: 2}}
prompts: [a red circle]
output: {output}
"""


def test_a_recipe_names_judges_and_their_arguments(clip_folder, tmp_path):
    path = tmp_path / "judges.yaml"
    path.write_text(RECIPE.format(folder=clip_folder, output=tmp_path / "run", score="clip"))
    result = execute(load_recipe(path).build(), load_recipe(path).prompts, folder=tmp_path / "run")
    trial = result.choices["0000"].trial
    assert trial.objective == pytest.approx(trial.verdict.scores["clip"])
    assert math.isfinite(trial.judge["pick"])
    path.write_text(RECIPE.format(folder=clip_folder, output=tmp_path / "run", score="clipp"))
    with pytest.raises(RecipeError, match=r"judges.yaml:11: .*clipp"):
        load_recipe(path).build()


def test_a_name_with_a_checkpoint_loads_a_judge(clip_folder):
    assert isinstance(load_verifier(f"pickscore:{clip_folder}"), PickScore)


def test_tts_score_takes_a_judge_and_its_checkpoint(clip_folder, tmp_path):
    PICTURES[0].save(tmp_path / "a.png")
    options = ["--prompt", "red", "--verifier", f"clip:{clip_folder}", "--format", "jsonl"]
    done = CliRunner().invoke(score_command, [str(tmp_path / "a.png"), *options])
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["clip"] >= 0


@pytest.mark.parametrize("scale", [0, -1.0, math.inf, math.nan])
def test_a_scale_is_above_0(clip_folder, scale):
    with pytest.raises(InputError, match="scale must be a number above 0"):
        ClipScore(clip_folder, scale=scale)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": "x"}, "scale must be a number above 0, got 'x'"),
        ({"scale": True}, "scale must be a number above 0, got True"),
        ({"clamp": "no"}, "clamp must be true or false, got 'no'"),
        ({"softmax": None}, "softmax must be true or false, got None"),
        ({"prefix": 5}, "prefix must be a text, got 5"),
        ({"model": ""}, "A path must not be empty"),
    ],
)
def test_arguments_have_their_types(arguments, message):
    with pytest.raises(InputError, match=message):
        ClipScore(**{"model": "nowhere"} | arguments)
    with pytest.raises(InputError, match="antialias must be true or false, got 0"):
        HPSv2("nowhere", antialias=0)


def test_a_batch_size_and_a_device_are_checked(clip_folder):
    with pytest.raises(InputError, match="batch_size must be an integer from 1"):
        ClipScore(clip_folder, batch_size=0)
    with pytest.raises(InputError, match="device must be a device of this machine"):
        ClipScore(clip_folder, device="cuda:99")
    with pytest.raises(InputError, match="dtype must be"):
        ClipScore(clip_folder, dtype="int8")


def test_prompts_are_texts_one_for_each_picture(clip_folder):
    judge = ClipScore(clip_folder)
    with pytest.raises(InputError, match="one prompt for each image"):
        judge.verify(PICTURES[:2], ["red"])
    with pytest.raises(InputError, match="Prompt 0 must be a text"):
        judge.verify(PICTURES[:1], [None])


def test_the_recipe_of_the_page_runs_on_small_weights(clip_folder, imagereward_files, tmp_path):
    page = (Path(judge.__file__).parents[1] / "JUDGES.md").read_text(encoding="utf-8")
    path = tmp_path / "page.yaml"
    path.write_text(page.partition("```yaml\n")[2].partition("```")[0])
    model, tokenizer = imagereward_files
    changes = [f"verifier.model={clip_folder}", f"judge.model={model}", "strategy.n=2"]
    recipe = load_recipe(path, [*changes, f"judge.tokenizer={tokenizer}"])
    result = execute(recipe.build(generator=FakeGenerator()), recipe.prompts)
    assert all("imagereward" in trial.judge for trial in result.trials)


@pytest.mark.parametrize("size", [(60_000, 1), (1, 60_000)])
@pytest.mark.parametrize("name", ["clip", "hpsv2", "imagereward"])
def test_a_strip_is_judged_by_its_middle(judges, name, size):
    judge = judges[name]()
    verdict = judge.verify([Image.new("RGB", size, "red")], ["red"])[0]
    assert all(math.isfinite(value) for value in verdict.scores.values())


def test_a_judge_is_loaded_by_its_class_or_by_from_pretrained(clip_folder: Path) -> None:
    judge = ClipScore.from_pretrained(clip_folder, batch_size=2)
    assert type(judge) is ClipScore
    assert judge.settings == ClipScore(clip_folder, batch_size=2).settings
    with pytest.raises(TypeError, match="devise"):
        ClipScore.from_pretrained(clip_folder, devise="cpu")  # type: ignore[call-arg]
