"""The custom pipelines, through diffusers' own loading."""

import ast
import runpy
from pathlib import Path

import numpy as np
import pytest
import tiny_families
from cases import mostly_slow
from diffusers import DiffusionPipeline

from tts_verifier import BestOfN, wrap
from tts_verifier.errors import InputError
from tts_verifier.testing import FakeVerifier
from tts_verifier.types import Budget

# With numpy 2, diffusers' EulerDiscreteScheduler causes this warning.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

FILES = sorted((Path(__file__).parents[2] / "pipelines").glob("verified_*.py"))


def load(folder, name, **search):
    file = next(path for path in FILES if path.stem == f"verified_{name}")
    empty = {"text_encoder_3": None, "tokenizer_3": None} if name == "sd3" else {}
    return DiffusionPipeline.from_pretrained(
        folder, custom_pipeline=str(file), trust_remote_code=True, **empty, **search
    )


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """Gives the test its own cache of modules, into which diffusers copies the file."""
    from diffusers.utils import dynamic_modules_utils

    monkeypatch.setattr(
        dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules"))
    )


def test_there_is_one_for_every_family():
    assert {path.stem.removeprefix("verified_") for path in FILES} == set(tiny_families.FAMILIES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_is_as_the_script_writes_it(path):
    source = runpy.run_path(str(path.with_name("write.py")))["source"]
    assert path.read_text() == source(path.stem.removeprefix("verified_")), (
        "run: python pipelines/write.py"
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_is_short_and_nothing_but_glue(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 120
    assert not any(isinstance(n, ast.If | ast.For | ast.While) for n in ast.walk(ast.parse(text)))


@pytest.mark.parametrize(
    "name", mostly_slow(tiny_families.FAMILIES, quick=("sd15", "sd3", "flux", "wan"))
)
def test_it_loads_and_draws_what_a_wrapped_pipeline_draws(name, tmp_path):
    family = tiny_families.FAMILIES[name](tmp_path / "words")
    family.pipe.save_pretrained(tmp_path / "model")
    search = {"strategy": BestOfN(2)}
    options = {"budget": Budget(candidates=2)}
    custom = load(tmp_path / "model", name, verifier=FakeVerifier(), options=options, **search)
    assert type(custom).__name__ == f"Verified{type(family.pipe).__name__}"
    custom.set_progress_bar_config(disable=True)
    out = custom("a red circle", seed=1, **family.call)
    wanted = wrap(family.pipe, FakeVerifier(), **search)("a red circle", seed=1, **family.call)
    assert len(out.trials) == 2
    assert np.array_equal(np.asarray(out.images[0]), np.asarray(wanted.images[0]))


def test_its_verifier_is_loaded_once(tmp_path, monkeypatch):
    family = tiny_families.FAMILIES["sd3"](tmp_path / "words")
    family.pipe.save_pretrained(tmp_path / "model")
    loaded = []
    monkeypatch.setattr(
        "tts_verifier.verified.pipeline.load_verifier",
        lambda name: loaded.append(name) or FakeVerifier(),
    )
    custom = load(tmp_path / "model", "sd3", verifier="named", strategy=BestOfN(1))
    custom.set_progress_bar_config(disable=True)
    for _ in range(2):
        custom("a", seed=1, **family.call)
    assert loaded == ["named"]
    custom.search = ("another", BestOfN(2), None)
    assert len(custom("a", seed=1, **family.call).trials) == 2
    assert loaded == ["named", "another"]


def test_without_a_verifier_it_says_what_to_give(tmp_path):
    family = tiny_families.FAMILIES["sd3"](tmp_path / "words")
    family.pipe.save_pretrained(tmp_path / "model")
    custom = load(tmp_path / "model", "sd3")
    with pytest.raises(InputError, match="needs a verifier, it has none"):
        custom("a red circle")
    assert custom.components.keys() >= {"vae", "transformer"}
