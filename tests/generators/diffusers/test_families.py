"""What every family of pipelines can do, and whether FAMILIES.md says so.

    python tests/generators/diffusers/test_families.py

writes the table into the document.
"""

import copy
import functools
import re
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import tiny_checkpoints
import tiny_families
import torch
from cases import mostly_slow
from tiny_pipelines import as_parent, pixels

from tts_verifier.errors import InputError, UnsupportedError
from tts_verifier.generators.diffusers import DiffusersGenerator
from tts_verifier.generators.diffusers.inpainting import grown_to_cells
from tts_verifier.testing import check_generator
from tts_verifier.types import CachedDrafts, Continue, Draw, Job, Mask, Near, Prompt, Repaint

# With numpy 2, diffusers' EulerDiscreteScheduler causes the first of these warnings; its combined
# Kandinsky 2.2 causes the second by a call of its own.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`callback_steps` is deprecated:FutureWarning"),
]

DOCUMENT = Path(__file__).parents[3] / "tts_verifier" / "generators" / "diffusers" / "FAMILIES.md"
PROMPT = Prompt("0", "a red circle")
UNFIT = r"cannot be resumed|starts from an image|has no `prepare_latents`"
BUILDERS = {**tiny_families.FAMILIES, **tiny_checkpoints.CHECKPOINTS}


def generator_of(name, folder, batch_size=None):
    family = BUILDERS[name](folder)
    return DiffusersGenerator(family.pipe, call=family.call, batch_size=batch_size)


def draw(generator, proposal, parent=None):
    ancestors = (as_parent(parent),) if parent else ()
    return generator.generate([Job(PROMPT, proposal, ancestors)])[0]


@pytest.fixture
def recorded(monkeypatch):
    """Records what a pipeline returns from now on: float pixels in [0, 1]."""

    def record(pipe):
        images, call = [], type(pipe).__call__

        @functools.wraps(call)
        def recording(self, *args, **kwargs):
            output = call(self, *args, **kwargs)
            images.append(output[0].copy())
            return output

        monkeypatch.setattr(type(pipe), "__call__", recording)
        return images

    return record


def table(folder):
    """The rows of the document, from pipelines as they are."""
    lines = [
        "| family | pipeline | scheduler here | `Draw` | `Draw(until)`, `Continue` | `Repaint` |"
    ]
    lines.append("|---|---|---|---|---|---|")
    for name in BUILDERS:
        generator = generator_of(name, folder / name)
        able = ["yes" if k in generator.supports else "no" for k in (Draw, Continue, Repaint)]
        settings = generator.settings
        cells = [name, settings["pipeline"], settings["scheduler"], *able]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def test_the_document_has_the_table(tmp_path):
    found = re.search(r"<!-- table -->\n(.*?)\n<!-- end -->", DOCUMENT.read_text(), re.DOTALL)
    assert found[1] == table(tmp_path), "run: python tests/generators/diffusers/test_families.py"


@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
    "name", mostly_slow(BUILDERS, quick=("sd15", "sd3", "flux", "sana", "wan"))
)
def test_a_seeds_image_is_the_same_in_batches_of_1_4_and_8(name, dtype, tmp_path):
    generator, bound = generator_of(name, tmp_path), 1
    if dtype is torch.bfloat16:
        bound = 12 if name == "kandinsky22" else 2
    generator.pipe.to(dtype)
    jobs = [Job(PROMPT, Draw(seed)) for seed in range(8)]
    eight, four, one = (pixels(generator.generate(jobs[:n])[0]) for n in (8, 4, 1))
    assert len(np.unique(eight)) > 8
    assert np.abs(eight - four).max() <= bound
    assert np.abs(eight - one).max() <= bound


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("sd15", 7, "from 8 to 65536 pixels and a multiple of 8 for StableDiffusionPipeline, got"),
        ("sd3", 18, "from 4 to 32 pixels and a multiple of 4 .* got 18. The nearest is 16"),
        ("sd3", 40, "from 2 to 32 pixels for StableDiffusion3Pipeline, got 40. The nearest is 32"),
        ("z_image", 7, "a multiple of 4 for ZImagePipeline, got 7. The nearest is 8"),
        ("flux", 3, "from 4 to 65536 pixels for FluxPipeline, got 3. The nearest is 4"),
        ("wan", 24, "a multiple of 16 for WanPipeline, got 24. The nearest is 32"),
    ],
)
def test_a_size_that_a_pipeline_cannot_make_is_refused_before_it_is_called(
    name, size, message, tmp_path
):
    pipe = BUILDERS[name](tmp_path).pipe
    for side in ("height", "width"):
        with pytest.raises(InputError, match=f"^{side} must be .*{message}") as error:
            DiffusersGenerator(pipe, **{side: size})
        assert error.value.argument == side


def test_any_size_is_taken_where_the_image_is_resized(tmp_path):
    family = BUILDERS["pixart_sigma"](tmp_path)
    DiffusersGenerator(family.pipe, height=7, call={"use_resolution_binning": True})
    with pytest.raises(InputError, match="a multiple of 8 for PixArtSigmaPipeline"):
        DiffusersGenerator(family.pipe, height=7, call={"use_resolution_binning": False})


def test_any_size_is_taken_where_the_pipeline_rounds_it(tmp_path):
    family = BUILDERS["hunyuan_dit"](tmp_path)
    generator = DiffusersGenerator(family.pipe, call=family.call | {"height": 20})
    assert draw(generator, Draw(1)).image.size == (32, 16)


def wan22(folder):
    """Wan 2.2 has a denoiser for its early steps and one for its late ones."""
    family = BUILDERS["wan"](folder)
    family.pipe.register_modules(transformer_2=copy.deepcopy(family.pipe.transformer))
    family.pipe.register_to_config(boundary_ratio=0.6)
    for parameter in family.pipe.transformer_2.parameters():
        parameter.data *= 1.1
    return family


def test_both_denoisers_of_a_pipeline_are_counted_and_cached(tmp_path):
    one, two = BUILDERS["wan"](tmp_path / "one"), wan22(tmp_path / "two")
    samples = {}
    for family in (one, two):
        generator = DiffusersGenerator(family.pipe, call=family.call | {"num_inference_steps": 8})
        samples[family.pipe] = [
            draw(generator, proposal) for proposal in (Draw(5), Draw(5, pace=0.5, cached=True))
        ]
    assert [s.cost.network_evaluations for s in samples[one.pipe]] == [16, 8]
    assert [s.cost.network_evaluations for s in samples[two.pipe]] == [16, 8]
    assert not np.array_equal(pixels(samples[one.pipe][0]), pixels(samples[two.pipe][0]))
    two.pipe.transformer_2._compiled_call_impl = object()  # as `Module.compile` sets it
    assert "compiled in place" in generator.with_call(two.call).lacks[CachedDrafts]


def test_the_prior_of_a_combined_pipeline_is_counted(tmp_path):
    generator, calls = generator_of("kandinsky22", tmp_path), []
    generator.pipe.prior_prior.register_forward_hook(lambda *_: calls.append(1))
    evaluations = draw(generator, Draw(1)).cost.network_evaluations
    assert calls
    assert evaluations == 2 * len(calls) + 2 * generator.settings["num_inference_steps"]


@pytest.mark.parametrize("name", BUILDERS)
def test_a_seeds_image_is_the_one_that_the_pipeline_generates(name, tmp_path):
    family = BUILDERS[name](tmp_path)
    generator = DiffusersGenerator(family.pipe, call=family.call, batch_size=1)
    seeded = {"generator": torch.Generator().manual_seed(5)}
    output_type = "np" if name == "wan" else "pil"
    bare = family.pipe(PROMPT.text, output_type=output_type, **seeded, **family.call)
    expected = np.asarray(bare[0][0])
    if name == "wan":
        expected = np.rint(255 * expected[0])
    assert np.abs(pixels(draw(generator, Draw(5))) - expected.astype(int)).max() <= 1


@pytest.mark.parametrize("name", mostly_slow(BUILDERS, quick=BUILDERS.keys() - {"kandinsky3"}))
def test_it_passes_the_conformance_checks_and_resumes(name, tmp_path, recorded):
    generator = generator_of(name, tmp_path, batch_size=2)
    check_generator(generator)
    if Continue not in generator.supports:
        with pytest.raises(UnsupportedError, match=UNFIT):
            draw(generator, Draw(1, until=0.5))
        return
    images = recorded(generator.pipe)
    whole, half = draw(generator, Draw(1)), draw(generator, Draw(1, until=0.5))
    rest = draw(generator, Continue("parent", 1.0, 2), half)
    assert np.abs(images[2] - images[0]).max() <= 1e-4
    near = draw(generator, Draw(2, noise=Near("parent", 1e-7)), whole)
    assert np.abs(pixels(near) - pixels(whole)).max() <= 1
    spent = half.cost.network_evaluations + rest.cost.network_evaluations
    assert spent == whole.cost.network_evaluations
    assert whole.cost.vae_passes == 1


@pytest.mark.parametrize("name", mostly_slow(BUILDERS, quick={"sd15", "flux", "z_image"}))
def test_a_cached_draft_is_the_same_in_any_batch_and_costs_what_was_evaluated(name, tmp_path):
    family = BUILDERS[name](tmp_path)
    call = family.call | {"num_inference_steps": 6}
    generator = DiffusersGenerator(family.pipe, call=call, batch_size=2)
    drafts = [Draw(seed, pace=0.5, cached=True) for seed in (5, 6)]
    _, both = generator.generate([Job(PROMPT, d) for d in drafts])
    alone, whole = draw(generator, drafts[1]), draw(generator, Draw(6))
    assert np.array_equal(pixels(both), pixels(alone))
    assert not np.array_equal(pixels(alone), pixels(whole))
    # The refiner takes three of the six steps, and evaluates the first and the third.
    share = 2 / 3 if "refiner" in name else 1 / 2
    # Kandinsky's prior takes its two steps, of two rows each, in a draft too.
    prior = 4 if name == "kandinsky22" else 0
    of_draft, of_whole = (s.cost.network_evaluations - prior for s in (alone, whole))
    assert of_draft == share * of_whole
    assert np.array_equal(pixels(draw(generator, Draw(6))), pixels(whole))


@pytest.mark.parametrize("name", BUILDERS)
def test_it_repaints_or_says_by_name_why_not(name, tmp_path):
    generator = generator_of(name, tmp_path, batch_size=1)
    whole = draw(generator, Draw(1))
    left = np.zeros(pixels(whole).shape[:2], np.bool_)
    left[:, :6] = True
    repaint = Repaint("parent", Mask.of(left), 3, 0.7)
    if Repaint not in generator.supports:
        with pytest.raises(
            UnsupportedError, match=f"{type(generator.pipe).__name__} has (no|an) inpai"
        ):
            draw(generator, repaint, whole)
        return
    after = draw(generator, repaint, whole)
    cell = generator.pipe.image_processor.config.vae_scale_factor
    outside = ~grown_to_cells(Mask.of(left), cell).array()
    assert outside.any()
    assert np.array_equal(pixels(after)[outside], pixels(whole)[outside])
    assert not np.array_equal(pixels(after)[left], pixels(whole)[left])


def test_flux_fill_repaints_with_weights_of_its_own(tmp_path):
    family = tiny_families.FAMILIES["flux"](tmp_path)
    fill = tiny_checkpoints.flux_fill(family.pipe)
    generator = DiffusersGenerator(family.pipe, call=family.call, batch_size=2, inpaint=fill)
    whole = draw(generator, Draw(1))
    left = np.zeros((32, 32), np.bool_)
    left[:, :16] = True
    after = draw(generator, Repaint("parent", Mask.of(left), 3, 1.0), whole)
    assert np.array_equal(pixels(after)[~left], pixels(whole)[~left])
    assert not np.array_equal(pixels(after)[left], pixels(whole)[left])
    assert after.cost.network_evaluations == 4


def test_a_video_of_many_frames_is_refused(tmp_path):
    family = tiny_families.FAMILIES["wan"](tmp_path)
    generator = DiffusersGenerator(family.pipe, call={**family.call, "num_frames": 5})
    with pytest.raises(UnsupportedError, match="num_frames=1"):
        draw(generator, Draw(1))


if __name__ == "__main__":
    text, rows = DOCUMENT.read_text(), table(Path(tempfile.mkdtemp()))
    updated = re.sub(
        r"(<!-- table -->\n).*?(<!-- end -->)", rf"\1{rows}\n\2", text, flags=re.DOTALL
    )
    DOCUMENT.write_text(updated)
    sys.stdout.write(rows + "\n")
