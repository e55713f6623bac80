"""Everything that users do to pipelines works with a wrapped one."""

import accelerate
import numpy as np
import pytest
import tiny_families
import torch
import transformers
from diffusers import (
    ControlNetModel,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionXLImg2ImgPipeline,
)
from diffusers.models.embeddings import ImageProjection
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from tiny_pipelines import as_parent, pixels

from tts_verifier import BestOfN, wrap
from tts_verifier.generators.diffusers import DiffusersGenerator
from tts_verifier.testing import FakeVerifier
from tts_verifier.types import Continue, Draw, Job, Mask, Prompt, Repaint

PROMPT = Prompt("0", "a red circle")

# With numpy 2, diffusers' EulerDiscreteScheduler causes this warning.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def family(tmp_path):
    return tiny_families.FAMILIES["sd15"](tmp_path, steps=2)


def best(family, pipe=None, **arguments):
    """Returns the best of two images, and checks that both are the bare pipeline's."""
    pipe, call = pipe or family.pipe, {**family.call, **arguments}
    out = wrap(pipe, FakeVerifier(), strategy=BestOfN(2))("a red circle", seed=1, **call)
    assert [t.error for t in out.trials] == ["", ""]
    for trial in out.trials:
        generator = torch.Generator().manual_seed(trial.proposal.seed)
        bare = pipe("a red circle", generator=generator, **call)
        near = np.asarray(trial.image.load(), int) - np.asarray(bare.images[0], int)
        assert np.abs(near).max() <= 1
    return np.asarray(out.images[0], int)


def resumed(family):
    """Returns an image that was stopped halfway and resumed."""
    generator = DiffusersGenerator(family.pipe, call=family.call, batch_size=1)
    half = generator.generate([Job(PROMPT, Draw(1, until=0.5))])[0]
    rest = Job(PROMPT, Continue("parent", 1.0, 2), (as_parent(half),))
    return pixels(generator.generate([rest])[0])


def test_schedulers_are_swapped(family):
    before = best(family)
    for kind in (EulerDiscreteScheduler, DPMSolverMultistepScheduler):
        wrap(family.pipe, FakeVerifier()).scheduler = kind.from_config(family.pipe.scheduler.config)
        assert type(family.pipe.scheduler) is kind
        assert not np.array_equal(best(family), before)


def test_the_vae_is_sliced_and_tiled(family):
    before = best(family)
    verified = wrap(family.pipe, FakeVerifier())
    verified.vae.enable_slicing()
    assert np.abs(best(family) - before).max() <= 1
    verified.vae.enable_tiling()
    best(family, height=32, width=32)


HERE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def by_model(pipe):
    pipe.enable_model_cpu_offload(device=HERE)


def by_layer(pipe):
    pipe.enable_sequential_cpu_offload(device=HERE)


def by_group(pipe):
    pipe.unet.enable_group_offload(HERE, torch.device("cpu"), offload_type="leaf_level")


# With a CPU to compute on, accelerate cannot bring single layers, whoever calls the pipeline.
ONE_BY_ONE = pytest.param(by_layer, marks=pytest.mark.skipif(HERE.type == "cpu", reason="no GPU"))


@pytest.mark.parametrize("offload", [by_model, ONE_BY_ONE, by_group])
def test_offloading_hooks_stay(family, offload):
    before = best(family)
    offload(wrap(family.pipe, FakeVerifier()))
    assert np.abs(best(family) - before).max() <= 1
    # It also resumes, after a rehearsal that stops inside the pipeline.
    assert np.abs(resumed(family) - resumed(family)).max() == 0
    first = next(iter(family.pipe.unet.children()))
    assert any(hasattr(m, "_hf_hook") or hasattr(m, "_diffusers_hook") for m in (
        family.pipe.unet, first))  # fmt: skip


def test_an_offloaded_pipeline_without_a_sibling_repaints(tmp_path):
    family = tiny_families.FAMILIES["sd3"](tmp_path, steps=2)
    left = Mask.of(np.broadcast_to(np.arange(16) < 8, (16, 16)))

    def repainted():
        generator = DiffusersGenerator(family.pipe, call=family.call, batch_size=1)
        whole = generator.generate([Job(PROMPT, Draw(1))])[0]
        job = Job(PROMPT, Repaint("parent", left, 2, 1.0), (as_parent(whole),))
        return pixels(generator.generate([job])[0])

    before = repainted()
    accelerate.cpu_offload(family.pipe.vae, torch.device("cpu"), offload_buffers=True)
    assert family.pipe.vae.device.type == "meta"
    assert np.abs(repainted() - before).max() <= 1


def test_attention_slicing_and_processors_stay(family):
    before = best(family)
    verified = wrap(family.pipe, FakeVerifier())
    verified.enable_attention_slicing()
    assert np.abs(best(family) - before).max() <= 1
    verified.unet.set_default_attn_processor()
    assert np.abs(best(family) - before).max() <= 1


def test_an_attention_backend_is_set(tmp_path):
    family = tiny_families.FAMILIES["flux"](tmp_path, steps=2)
    before = best(family)
    family.pipe.transformer.set_attention_backend("native")
    assert np.abs(best(family) - before).max() <= 1


def wrapped(pipe, backend):
    pipe.unet = torch.compile(pipe.unet, backend=backend)


def in_place(pipe, backend):
    pipe.unet.compile(backend=backend)


def of_the_vae(pipe, backend):
    pipe.vae.decode = torch.compile(pipe.vae.decode, backend=backend)


@pytest.mark.slow
@pytest.mark.parametrize("way", [wrapped, in_place, of_the_vae])
def test_what_is_compiled_is_compiled_once(family, way):
    before, compiled = best(family), []

    def backend(graph, _):
        compiled.append(graph)
        return graph.forward

    torch._dynamo.reset()
    way(family.pipe, backend)
    verified = wrap(family.pipe, FakeVerifier(), strategy=BestOfN(2), batch_size=1)
    out = [verified("a red circle", seed=1, **family.call) for _ in range(2)]
    assert len(compiled) == 1
    assert out[1].trials[-1].cost.network_evaluations == 4
    assert np.abs(np.asarray(out[1].images[0], int) - before).max() <= 1
    assert np.abs(resumed(family) - resumed(family)).max() == 0


def test_progress_bars_are_as_configured(family, capsys):
    verified = wrap(family.pipe, FakeVerifier(), strategy=BestOfN(1))
    verified("a", **family.call)
    assert capsys.readouterr().err == ""
    verified.set_progress_bar_config(disable=False, desc="drawing")
    verified("a", **family.call)
    assert "drawing" in capsys.readouterr().err


def with_controlnet(pipe):
    """Adds a ControlNet that has an effect; a new one has none, for its last layers are zero."""
    parts = dict(pipe.components)
    net = ControlNetModel.from_unet(parts["unet"], conditioning_embedding_out_channels=(4, 8))
    for end in (*net.controlnet_down_blocks, net.controlnet_cond_embedding.conv_out):
        torch.nn.init.normal_(end.weight, std=1.0)
    controlled = StableDiffusionControlNetPipeline(
        **parts, controlnet=net, requires_safety_checker=False
    )
    controlled.set_progress_bar_config(disable=True)
    return controlled


def test_a_controlnets_arguments_pass_through(family):
    pipe = with_controlnet(family.pipe)
    grey = Image.new("RGB", (16, 16), (90, 90, 90))
    arguments = {"image": grey, "height": 16, "width": 16}
    on = best(family, pipe, controlnet_conditioning_scale=1.0, **arguments)
    off = best(family, pipe, controlnet_conditioning_scale=0.0, **arguments)
    assert not np.array_equal(on, off)


def test_a_controlnet_sees_its_picture_while_another_is_repainted(family):
    pipe, after = with_controlnet(family.pipe), []
    whole = DiffusersGenerator(family.pipe, call=family.call).generate([Job(PROMPT, Draw(1))])[0]
    left = Mask.of(np.broadcast_to(np.arange(16) < 8, (16, 16)))
    job = Job(PROMPT, Repaint("parent", left, 2, 1.0), (as_parent(whole),))
    for grey in (0, 255):
        control = {"image": Image.new("RGB", (16, 16), (grey,) * 3), "height": 16, "width": 16}
        generator = DiffusersGenerator(pipe, call=family.call | control, batch_size=1)
        after.append(pixels(generator.generate([job])[0]))
    assert np.array_equal(after[0][:, 8:], after[1][:, 8:])
    assert not np.array_equal(after[0][:, :8], after[1][:, :8])


def test_a_refiner_searches_over_refinements_of_a_picture(tmp_path):
    family = tiny_families.FAMILIES["sdxl"](tmp_path)
    parts = {k: v for k, v in family.pipe.components.items() if k not in (
        "image_encoder", "feature_extractor")}  # fmt: skip
    refiner = StableDiffusionXLImg2ImgPipeline(**parts)
    refiner.set_progress_bar_config(disable=True)
    picture = wrap(family.pipe, FakeVerifier(), strategy=BestOfN(2))(
        "a red circle", seed=1, **family.call
    ).images[0]
    best(family, refiner, image=picture, strength=0.5)


def lora(module, names):
    """Returns the weights of a LoRA of rank 2 that has an effect."""
    module.add_adapter(LoraConfig(r=2, target_modules=names, init_lora_weights=False), "new")
    weights = get_peft_model_state_dict(module, adapter_name="new")
    copies = {name: weight.clone() for name, weight in weights.items()}
    module.delete_adapters("new")
    return copies


def test_a_lora_is_loaded_scaled_and_unloaded(family, tmp_path):
    before = best(family)
    layers = lora(family.pipe.unet, ["to_q", "to_v"])
    family.pipe.save_lora_weights(tmp_path, unet_lora_layers=layers)
    verified = wrap(family.pipe, FakeVerifier())
    verified.load_lora_weights(tmp_path, adapter_name="style")
    assert not np.array_equal(full := best(family), before)
    assert not np.array_equal(best(family, cross_attention_kwargs={"scale": 0.3}), full)
    verified.set_adapters("style", 0.0)
    assert np.abs(best(family) - before).max() <= 1
    verified.set_adapters("style", 1.0)
    verified.fuse_lora()
    assert np.abs(best(family) - full).max() <= 1
    verified.unfuse_lora()
    verified.unload_lora_weights()
    assert np.abs(best(family) - before).max() <= 1


def adapter(unet, width):
    """Returns random weights of an IP-Adapter, named as in its file: layers have odd numbers."""
    inner, layers = unet.config.cross_attention_dim, {}
    across = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    for i, name in enumerate(across):
        size = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
        for part in ("to_k_ip", "to_v_ip"):
            layers[f"{2 * i + 1}.{part}.weight"] = torch.randn(size, inner)
    image_projection = ImageProjection(width, inner, num_image_text_embeds=4).state_dict()
    projection = {
        name.replace("image_embeds", "proj"): value for name, value in image_projection.items()
    }
    return {"image_proj": projection, "ip_adapter": layers}


def test_an_ip_adapters_picture_passes_through(family):
    config = transformers.CLIPVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        image_size=16, patch_size=8, projection_dim=8,
    )  # fmt: skip
    pipe = family.pipe
    size = {"shortest_edge": 16}
    parts = {
        "image_encoder": transformers.CLIPVisionModelWithProjection(config).eval(),
        "feature_extractor": transformers.CLIPImageProcessorPil(size=size, crop_size=16),
    }
    pipe.register_modules(**parts)
    pipe.unet._load_ip_adapter_weights([adapter(pipe.unet, 8)])
    one, other = (Image.effect_noise((16, 16), 90).convert("RGB") for _ in range(2))
    first = best(family, ip_adapter_image=one)
    assert not np.array_equal(best(family, ip_adapter_image=other), first)
    wrap(pipe, FakeVerifier()).set_ip_adapter_scale(0.0)
    assert np.array_equal(best(family, ip_adapter_image=other), best(family, ip_adapter_image=one))


def test_weights_kept_in_eight_bits_draw(family):
    """The weights are float8, and cast when a layer runs."""
    before = best(family)
    family.pipe.unet.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    after = best(family)
    assert not np.array_equal(after, before)
    assert np.abs(after - before).mean() < 40


class Int8Linear(torch.nn.Module):
    """A layer after quantisation: int8 weights and their scale, no parameters."""

    def __init__(self, layer):
        super().__init__()
        scale = layer.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("rounded", (layer.weight.detach() / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.bias = layer.bias

    def forward(self, x, *_):
        return torch.nn.functional.linear(x, self.rounded * self.scale, self.bias)


def test_a_quantised_denoiser_draws(family):
    before = best(family)
    for module in list(family.pipe.unet.modules()):
        for name, child in module.named_children():
            if type(child) is torch.nn.Linear:
                setattr(module, name, Int8Linear(child))
    after = best(family)
    assert not np.array_equal(after, before)
    assert np.abs(after - before).mean() < 4
