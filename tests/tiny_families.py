"""A pipeline of every tested family, with a few thousand random weights, built from configs."""

from dataclasses import dataclass, field
from typing import Any

import diffusers as d
import tiny_pipelines
import torch
import transformers as t
from tiny_pipelines import text_config, vae


@dataclass
class Family:
    """A pipeline, and the arguments of a quick call."""

    pipe: Any
    call: dict[str, Any] = field(default_factory=dict)


def family_tokenizer(folder, length=16):
    tokenizer = tiny_pipelines.tokenizer(folder)
    tokenizer.model_max_length = length
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    return tokenizer


def t5(size):
    config = t.T5Config(vocab_size=size, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return t.T5EncoderModel(config).eval()


def umt5(size):
    config = t.UMT5Config(vocab_size=size, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return t.UMT5EncoderModel(config).eval()


def gemma(size):
    config = t.Gemma2Config(
        vocab_size=size, hidden_size=16, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, pad_token_id=1, bos_token_id=0,
        eos_token_id=1,
    )  # fmt: skip
    return t.Gemma2Model(config).eval()


def unet(cross, **settings):
    return d.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1,
        block_out_channels=(8, 16), norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=2, cross_attention_dim=cross, **settings,
    )  # fmt: skip


def flow(**settings):
    return d.FlowMatchEulerDiscreteScheduler(**settings)


def sd15(folder):
    return Family(tiny_pipelines.sd15(folder), {"guidance_scale": 3.0})


def sdxl(folder):
    tokenizer = family_tokenizer(folder)
    config = text_config(len(tokenizer))
    pipe = d.StableDiffusionXLPipeline(
        vae=vae(4),
        text_encoder=t.CLIPTextModel(config),
        text_encoder_2=t.CLIPTextModelWithProjection(config),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet(
            32, addition_embed_type="text_time", addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=64, use_linear_projection=True,
        ),
        scheduler=d.EulerDiscreteScheduler(timestep_spacing="leading", steps_offset=1),
    )  # fmt: skip
    return Family(pipe, {"guidance_scale": 3.0})


def sd3(folder):
    return Family(tiny_pipelines.sd3(folder), {"guidance_scale": 3.0, "max_sequence_length": 16})


def flux(folder):
    tokenizer = family_tokenizer(folder)
    pipe = d.FluxPipeline(
        transformer=d.FluxTransformer2DModel(
            patch_size=1, in_channels=16, num_layers=1, num_single_layers=1,
            attention_head_dim=16, num_attention_heads=2, joint_attention_dim=16,
            pooled_projection_dim=16, axes_dims_rope=[4, 4, 8], guidance_embeds=True,
        ),
        scheduler=flow(use_dynamic_shifting=True),
        vae=vae(4, shift=0.5),
        text_encoder=t.CLIPTextModel(text_config(len(tokenizer))),
        tokenizer=tokenizer,
        text_encoder_2=t5(len(tokenizer)),
        tokenizer_2=tokenizer,
    )  # fmt: skip
    return Family(pipe, {"height": 32, "width": 32, "max_sequence_length": 16})


def sana(folder):
    tokenizer = family_tokenizer(folder, 64)
    autoencoder = d.AutoencoderDC(
        in_channels=3, latent_channels=4, attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)), decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1),
        downsample_block_type="conv", upsample_block_type="interpolate",
        decoder_norm_types="rms_norm", decoder_act_fns="silu", scaling_factor=0.41407,
    )  # fmt: skip
    pipe = d.SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=gemma(len(tokenizer)),
        vae=autoencoder,
        transformer=d.SanaTransformer2DModel(
            patch_size=1, in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2,
            attention_head_dim=4, num_cross_attention_heads=2, cross_attention_head_dim=4,
            cross_attention_dim=8, caption_channels=16, sample_size=8,
        ),
        scheduler=flow(shift=3.0),
    )  # fmt: skip
    call = {"height": 32, "width": 32, "max_sequence_length": 16, "clean_caption": False}
    plain = {"use_resolution_binning": False, "complex_human_instruction": None}
    return Family(pipe, {**call, **plain, "guidance_scale": 3.0})


def pixart_sigma(folder):
    tokenizer = family_tokenizer(folder)
    pipe = d.PixArtSigmaPipeline(
        tokenizer=tokenizer,
        text_encoder=t5(len(tokenizer)),
        vae=vae(4),
        transformer=d.PixArtTransformer2DModel(
            sample_size=8, num_layers=1, patch_size=2, attention_head_dim=8,
            num_attention_heads=2, caption_channels=16, in_channels=4, cross_attention_dim=16,
            out_channels=8, norm_type="ada_norm_single", use_additional_conditions=False,
        ),
        scheduler=d.DDIMScheduler(steps_offset=1, clip_sample=False),
    )  # fmt: skip
    call = {"max_sequence_length": 16, "use_resolution_binning": False, "clean_caption": False}
    return Family(pipe, {"height": 16, "width": 16, "guidance_scale": 3.0, **call})


def qwen_image(folder):
    tokenizer = family_tokenizer(folder, 1024)
    config = t.Qwen2_5_VLConfig(
        text_config={
            "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": len(tokenizer),
            "rope_parameters": {
                "rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6
            },
        },
        vision_config={
            "depth": 2, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2,
            "out_hidden_size": 16,
        },
    )  # fmt: skip
    pipe = d.QwenImagePipeline(
        scheduler=flow(use_dynamic_shifting=True),
        vae=d.AutoencoderKLQwenImage(
            base_dim=8, z_dim=4, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[False],
            latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
        ),
        text_encoder=t.Qwen2_5_VLForConditionalGeneration(config).eval(),
        tokenizer=tokenizer,
        transformer=d.QwenImageTransformer2DModel(
            patch_size=2, in_channels=16, out_channels=4, num_layers=1, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=16, axes_dims_rope=(8, 4, 4),
        ),
    )  # fmt: skip
    call = {"height": 32, "width": 32, "max_sequence_length": 16}
    return Family(pipe, {**call, "true_cfg_scale": 3.0, "negative_prompt": "dull"})


def z_image(folder):
    tokenizer = family_tokenizer(folder, 64)
    config = t.Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, head_dim=8,
    )  # fmt: skip
    pipe = d.ZImagePipeline(
        scheduler=flow(shift=3.0),
        vae=vae(16, shift=0.1),
        text_encoder=t.Qwen3Model(config).eval(),
        tokenizer=tokenizer,
        transformer=d.ZImageTransformer2DModel(
            all_patch_size=(2,), all_f_patch_size=(1,), in_channels=16, dim=32, n_layers=1,
            n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=16,
            axes_dims=[8, 4, 4], axes_lens=[256, 32, 32],
        ),
    )  # fmt: skip
    call = {"height": 32, "width": 32, "max_sequence_length": 16}
    return Family(pipe, {**call, "guidance_scale": 3.0})


def lumina2(folder):
    tokenizer = family_tokenizer(folder, 64)
    pipe = d.Lumina2Pipeline(
        transformer=d.Lumina2Transformer2DModel(
            sample_size=8, patch_size=2, in_channels=4, hidden_size=16, num_layers=1,
            num_refiner_layers=1, num_attention_heads=1, num_kv_heads=1, multiple_of=16,
            axes_dim_rope=(8, 4, 4), axes_lens=(64, 32, 32), cap_feat_dim=16,
        ),
        scheduler=flow(use_dynamic_shifting=True),
        vae=vae(4),
        text_encoder=gemma(len(tokenizer)),
        tokenizer=tokenizer,
    )  # fmt: skip
    call = {"height": 32, "width": 32, "max_sequence_length": 32, "system_prompt": "draw"}
    return Family(pipe, {**call, "guidance_scale": 3.0})


def auraflow(folder):
    tokenizer = family_tokenizer(folder)
    pipe = d.AuraFlowPipeline(
        tokenizer=tokenizer,
        text_encoder=umt5(len(tokenizer)),
        vae=vae(4),
        transformer=d.AuraFlowTransformer2DModel(
            sample_size=8, patch_size=2, in_channels=4, num_mmdit_layers=1,
            num_single_dit_layers=1, attention_head_dim=8, num_attention_heads=2,
            joint_attention_dim=16, caption_projection_dim=16, pos_embed_max_size=256,
        ),
        scheduler=flow(shift=1.73),
    )  # fmt: skip
    call = {"height": 16, "width": 16, "max_sequence_length": 16}
    return Family(pipe, {**call, "guidance_scale": 3.0})


def kandinsky3(folder):
    tokenizer = family_tokenizer(folder, 128)
    pipe = d.Kandinsky3Pipeline(
        tokenizer=tokenizer,
        text_encoder=t5(len(tokenizer)),
        unet=d.Kandinsky3UNet(
            in_channels=4, time_embedding_dim=4, groups=2, attention_head_dim=4,
            layers_per_block=3, block_out_channels=(32, 64), cross_attention_dim=4,
            encoder_hid_dim=16,
        ),
        scheduler=d.DDIMScheduler(steps_offset=1, clip_sample=False),
        movq=d.VQModel(
            block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=4,
            num_vq_embeddings=12, vq_embed_dim=4, layers_per_block=1,
        ),
    )  # fmt: skip
    return Family(pipe, {"height": 16, "width": 16, "guidance_scale": 3.0})


def hunyuan_dit(folder):
    tokenizer = family_tokenizer(folder, 256)
    bert = t.BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=128,
    )  # fmt: skip
    # The pipeline expects a VAE whose latent cells are 8 pixels wide.
    deep = d.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4,) * 4, layers_per_block=1, latent_channels=4, norm_num_groups=4,
    )  # fmt: skip
    pipe = d.HunyuanDiTPipeline(
        vae=deep,
        text_encoder=t.BertModel(bert).eval(),
        tokenizer=tokenizer,
        transformer=d.HunyuanDiT2DModel(
            sample_size=8, num_layers=2, patch_size=2, attention_head_dim=8,
            num_attention_heads=2, in_channels=4, cross_attention_dim=16,
            cross_attention_dim_t5=16, pooled_projection_dim=16, hidden_size=16,
            activation_fn="gelu-approximate",
        ),
        scheduler=d.DDPMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        text_encoder_2=t5(len(tokenizer)),
        tokenizer_2=tokenizer,
    )  # fmt: skip
    call = {"height": 32, "width": 32, "use_resolution_binning": False}
    return Family(pipe, {**call, "guidance_scale": 3.0})


def wan(folder):
    tokenizer = family_tokenizer(folder, 64)
    pipe = d.WanPipeline(
        tokenizer=tokenizer,
        text_encoder=umt5(len(tokenizer)),
        vae=d.AutoencoderKLWan(
            base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
            temperal_downsample=[False, True, True],
        ),
        scheduler=flow(shift=3.0),
        transformer=d.WanTransformer3DModel(
            patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=16,
            out_channels=16, text_dim=16, freq_dim=32, ffn_dim=32, num_layers=1,
            rope_max_seq_len=32,
        ),
    )  # fmt: skip
    call = {"height": 32, "width": 32, "num_frames": 1, "max_sequence_length": 16}
    return Family(pipe, {**call, "guidance_scale": 3.0})


BUILDERS = {
    "sd15": sd15, "sdxl": sdxl, "sd3": sd3, "flux": flux, "sana": sana,
    "pixart_sigma": pixart_sigma, "qwen_image": qwen_image, "z_image": z_image,
    "lumina2": lumina2, "auraflow": auraflow, "kandinsky3": kandinsky3,
    "hunyuan_dit": hunyuan_dit, "wan": wan,
}  # fmt: skip


def quiet(build):
    def build_quietly(folder, steps=4):
        torch.manual_seed(0)
        family = build(folder)
        family.pipe.set_progress_bar_config(disable=True)
        family.call["num_inference_steps"] = steps
        return family

    return build_quietly


FAMILIES = {name: quiet(build) for name, build in BUILDERS.items()}
