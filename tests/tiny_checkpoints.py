"""Other checkpoints of the families, which their pipelines handle in another way."""

import diffusers as d
import tiny_pipelines
import transformers as t
from PIL import Image
from tiny_families import Family, family_tokenizer, flow, flux, quiet, sdxl, unet


def sd21(folder):
    """Like 1.5, but predicts v and has attention heads of one size; really of 768 pixels."""
    parts = dict(tiny_pipelines.sd15(folder).components)
    parts["unet"] = unet(16, use_linear_projection=True)
    parts["scheduler"] = d.DDIMScheduler(
        steps_offset=1, clip_sample=False, prediction_type="v_prediction", set_alpha_to_one=False
    )
    pipe = d.StableDiffusionPipeline(**parts, requires_safety_checker=False)
    return Family(pipe, {"guidance_scale": 3.0})


def sdxl_refiner(folder):
    """Refines an image given in the call; it has the second text encoder only."""
    parts = dict(sdxl(folder).pipe.components)
    for name in ("image_encoder", "feature_extractor"):
        del parts[name]
    parts |= {"text_encoder": None, "tokenizer": None}
    parts["unet"] = unet(
        16, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=56, use_linear_projection=True,
    )  # fmt: skip
    pipe = d.StableDiffusionXLImg2ImgPipeline(**parts, requires_aesthetics_score=True)
    picture = Image.effect_mandelbrot((16, 16), (-2, -1, 1, 1), 50).convert("RGB")
    return Family(pipe, {"guidance_scale": 3.0, "image": picture, "strength": 0.5})


def sd35(folder):
    """As 3, with a second attention in its first layers and normed queries and keys."""
    parts = dict(tiny_pipelines.sd3(folder).components)
    config = {k: v for k, v in parts["transformer"].config.items() if not k.startswith("_")}
    more = {"dual_attention_layers": (0,), "qk_norm": "rms_norm"}
    parts["transformer"] = d.SD3Transformer2DModel(**config | more)
    pipe = d.StableDiffusion3Pipeline(**parts)
    return Family(pipe, {"guidance_scale": 3.0, "max_sequence_length": 16})


def flux_schnell(folder):
    family = flux(folder)
    parts = dict(family.pipe.components)
    config = {**parts["transformer"].config, "guidance_embeds": False}
    parts["transformer"] = d.FluxTransformer2DModel.from_config(config)
    parts["scheduler"] = flow(shift=1.0)
    return Family(d.FluxPipeline(**parts), {**family.call, "guidance_scale": 0.0})


def flux_fill(pipe):
    """FLUX Fill for a FLUX: weights of its own, which also get the mask and the masked image."""
    parts = {k: v for k, v in pipe.components.items() if "image" not in k and "feature" not in k}
    config = {k: v for k, v in parts["transformer"].config.items() if not k.startswith("_")}
    config |= {"in_channels": 48, "out_channels": 16}
    parts["transformer"] = d.FluxTransformer2DModel(**config)
    fill = d.FluxFillPipeline(**parts)
    fill.set_progress_bar_config(disable=True)
    return fill


def kandinsky22(folder):
    """Prior and decoder in one pipeline; its inpainting class takes no strength."""
    tokenizer, blocks = family_tokenizer(folder, 77), (32, 64)
    texts = t.CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=77, projection_dim=32, bos_token_id=0,
        eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    pictures = t.CLIPVisionConfig(
        hidden_size=32, image_size=16, projection_dim=32, intermediate_size=32,
        num_attention_heads=2, num_hidden_layers=1, patch_size=8,
    )  # fmt: skip
    prior = d.PriorTransformer(
        num_attention_heads=2, attention_head_dim=12, embedding_dim=32, num_layers=1
    )
    prior.clip_std.data.fill_(1.0)
    pipe = d.KandinskyV22CombinedPipeline(
        unet=d.UNet2DConditionModel(
            in_channels=4, out_channels=8, addition_embed_type="image", block_out_channels=blocks,
            down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn", layers_per_block=1, encoder_hid_dim=32,
            encoder_hid_dim_type="image_proj", cross_attention_dim=32, attention_head_dim=4,
            resnet_time_scale_shift="scale_shift",
        ),
        scheduler=d.DDIMScheduler(steps_offset=1, clip_sample=False),
        movq=d.VQModel(
            block_out_channels=blocks, norm_type="spatial", latent_channels=4, vq_embed_dim=4,
            down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
            up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"), norm_num_groups=8,
            num_vq_embeddings=12,
        ),
        prior_prior=prior,
        prior_image_encoder=t.CLIPVisionModelWithProjection(pictures).eval(),
        prior_text_encoder=t.CLIPTextModelWithProjection(texts).eval(),
        prior_tokenizer=tokenizer,
        prior_scheduler=d.UnCLIPScheduler(prediction_type="sample", clip_sample_range=5.0),
        prior_image_processor=t.CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=16),
    )  # fmt: skip
    for weight in pipe.movq.decoder.parameters():
        weight.data *= 0.5  # so that pictures are not all black or white
    call = {"height": 64, "width": 64, "prior_num_inference_steps": 2}
    return Family(pipe, {**call, "guidance_scale": 3.0})


BUILDERS = {
    "sd21": sd21, "sdxl (refiner)": sdxl_refiner, "sd35": sd35, "flux (schnell)": flux_schnell,
    "kandinsky22": kandinsky22,
}  # fmt: skip
CHECKPOINTS = {name: quiet(build) for name, build in BUILDERS.items()}
