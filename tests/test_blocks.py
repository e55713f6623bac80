"""Every fenced block of every page is run or checked; what shows commands elsewhere is too.

A block whose page says `<!-- checked by: FILE::TEST -->` above it is left to that test.
"""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
import tiny_families
import yaml
from diffusers import DiffusionPipeline, StableDiffusion3Pipeline
from page_blocks import PAGES, ROOT, Block, blocks
from page_commands import COMMANDS, OTHER_PROGRAMS, check_command, commands
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image
from serving import serving

from tts_verifier import BestOfN, registry, run
from tts_verifier.generators.diffusers.loading import load_pipeline
from tts_verifier.recipe import load_recipe
from tts_verifier.testing import FakeGenerator, FakeVerifier
from tts_verifier.training.entries import read_config

BLOCKS = [block for page in PAGES for block in blocks(page)]
LEFT = [block for block in BLOCKS if block.mark.startswith("checked by: ")]
FAKE_RECIPE = yaml.safe_load((ROOT / "recipes" / "fake.yaml").read_text("utf-8"))
CONFIGS = {"flow": "flow-shapes", "grpo": "grpo"}
"""Entry of `tts-train` -> the config that fragments of its page are put into."""


def of(language: str) -> Any:
    """Passes each block of a language to a test; reading texts in pictures takes seconds."""
    chosen = [block for block in BLOCKS if block.language == language and block not in LEFT]
    slow = [pytest.mark.slow]
    params = [pytest.param(b, id=str(b), marks=slow if "OCR" in b.code else ()) for b in chosen]
    return pytest.mark.parametrize("block", params)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with two pictures."""
    monkeypatch.chdir(tmp_path)
    for name, colour in (("a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (32, 32), colour).save(name)
    return tmp_path


def test_each_block_is_of_a_kind_that_is_checked() -> None:
    assert len(BLOCKS) >= 90
    left = {block.language for block in BLOCKS if block not in LEFT}
    assert left == {"python", "sh", "sql", "toml", "yaml"}


@pytest.mark.parametrize("block", LEFT, ids=str)
def test_the_test_that_a_block_is_left_to_is_there(block: Block) -> None:
    file, _, name = block.mark.removeprefix("checked by: ").partition("::")
    code = (ROOT / file).read_text("utf-8")
    (test,) = (n for n in ast.parse(code).body if isinstance(n, ast.FunctionDef) and n.name == name)
    assert "slow" not in "".join(map(ast.unparse, test.decorator_list))
    assert Path(block.page).stem in code


@of("sh")
def test_programs_take_the_commands_of_the_pages(
    block: Block, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    for words in commands(block.code):
        check_command(words, monkeypatch)


def test_each_program_without_a_check_is_in_a_page() -> None:
    shell = [block.code for block in BLOCKS if block.language == "sh"]
    shown = {Path(words[0]).name for code in shell for words in commands(code)}
    assert set(OTHER_PROGRAMS) <= shown


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_take_the_examples_of_their_help(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    shown = [*commands((COMMANDS[name].help or "").partition("Example:")[2])]
    assert shown
    for words in shown:
        assert words[0] == name
        check_command(words, monkeypatch)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_options_of_commands_inside_sentences_are_there(page: Path) -> None:
    for line in re.findall(r"`(tts-[^`]+)`", page.read_text("utf-8")):
        name, *words = line.split()
        if name in COMMANDS:
            known = {o for p in COMMANDS[name].params for o in (*p.opts, *p.secondary_opts)}
            given = {word.partition("=")[0].rstrip(",.]") for word in words if word[:2] == "--"}
            assert given <= {"--help", "--version", *known}, line


def context_of(block: Block) -> dict[str, Any]:
    """Returns what a block assumes its reader to have."""
    pictures = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue", "green", "white")]
    scores = dict.fromkeys(("semantic_alignment", "aesthetics", "plausibility", "overall"), 0.5)
    answer = "; ".join(
        ("Semantic Alignment score: 0.50", "Misalignment Locations: <|misalignment|>",
         "Aesthetic score: 0.60", "Plausibility score: 0.70", "Artifact Locations: <|artifact|>",
         "Overall Impression score: 0.80")
    )  # fmt: skip
    return {
        "BestOfN": BestOfN,
        "FAKE": FakeVerifier(),
        "clip_features": lambda images: np.eye(len(images)),
        "completions": [f"<answer>{answer}</answer>"] * 2,
        "generator": FakeGenerator(),
        "images": pictures,
        "maps": [np.zeros((64, 64), np.float32)] * 2,
        "prompts": ["a red circle"] * (2 if "REWARDS" in block.page else 4),
        "ranking": FakeVerifier().rerank(pictures, "a red fox"),
        "run": run,
        "score_functions": {},
        "scores": [scores] * 2,
        "verifier": FakeVerifier(),
    }


def write_lora(folder: Path) -> None:
    """Writes adapters of the bundled generator that change nothing."""
    transformer = load_pipeline("shapes").transformer
    transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    layers = get_peft_model_state_dict(transformer)
    StableDiffusion3Pipeline.save_lora_weights(folder, transformer_lora_layers=layers)


@of("python")
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
# Random weights write no scores.
@pytest.mark.filterwarnings("ignore:No image has a usable score")
def test_the_python_code_of_the_pages_runs(
    block: Block, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = block.code
    if "tts_verifier.demo" in code:
        if find_spec("gradio") is None:
            pytest.skip("needs gradio")
        # A process of its own: gradio leaves sockets and event loops to the garbage collector.
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, env=env)
        return
    if "lora=" in code:
        write_lora(place / "runs" / "flow-shapes" / "checkpoint")
    if "DiffusionPipeline" in code:
        pipe = tiny_families.sdxl(place).pipe
        monkeypatch.setattr(DiffusionPipeline, "from_pretrained", lambda name, dtype: pipe)
    # The bundled verifier knows shapes only: it has no verdict on what random weights draw.
    code = code.replace('pipe, "GYX97/ImageDoctor"', "pipe, FAKE").replace('"cuda"', '"cpu"')
    code = code.replace('"GYX97/ImageDoctor"', '"shapes"')
    address, names = "http://127.0.0.1:8000", context_of(block)
    with serving(FakeVerifier()) if address in code else nullcontext(address) as url:
        exec(compile(code.replace(address, url), str(block), "exec"), names)
    saved = re.findall(r'save\("(\w+\.png)"\)', code)
    assert all((place / name).exists() for name in saved)


@of("yaml")
def test_the_yaml_of_the_pages_is_a_recipe_or_a_config(block: Block, place: Path) -> None:
    values = yaml.safe_load(block.code)
    entry = Path(block.page).stem.lower()
    if entry in CONFIGS:
        # JSON is YAML too, on one line.
        given = [f"{key}={json.dumps(value)}" for key, value in values.items()]
        read_config(entry, CONFIGS[entry], given)
        return
    for other in blocks(ROOT / block.page):
        if other.mark.startswith("file: "):
            (place / other.mark.removeprefix("file: ")).write_text(other.code)
    if "my_package" in block.code:
        (place / "my_package").mkdir()
        (place / "my_verifier.py").rename(place / "my_package" / "judges.py")
    (place / "page.yaml").write_text(yaml.safe_dump({**FAKE_RECIPE, **values}))
    load_recipe(place / "page.yaml").check()


@of("toml")
def test_the_toml_of_the_pages_names_parts_of_known_roles(block: Block) -> None:
    points = tomllib.loads(block.code)["project"]["entry-points"]["tts_verifier.plugins"]
    for name, target in points.items():
        assert registry.names(name.partition(".")[0])
        assert re.fullmatch(r"[\w.]+:\w+", target)


@of("sql")
def test_the_sql_of_the_pages_reads_runs(block: Block, place: Path) -> None:
    for shard in ("00000", "00001"):
        folder = place / "runs/cores/shards" / shard
        run(["a red circle"], FakeGenerator(), FakeVerifier(), BestOfN(2), folder=folder)
    assert len(duckdb.sql(block.code).fetchall()) == 4
