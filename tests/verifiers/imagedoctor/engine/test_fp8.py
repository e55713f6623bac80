"""A model in fp8: what is rounded, and that the engine computes what the model itself does."""

from __future__ import annotations

import pytest
import torch
from tiny_engine import EOS, requests
from torch import nn

from tts_verifier.errors import InputError
from tts_verifier.verifiers.imagedoctor.engine.engine import Engine, generate
from tts_verifier.verifiers.imagedoctor.engine.layers import fuse_model
from tts_verifier.verifiers.imagedoctor.model.model import ImageDoctorModel
from tts_verifier.verifiers.imagedoctor.model.quantise import check_supports_fp8, quantise_model
from tts_verifier.verifiers.imagedoctor.ops.fp8 import (
    Fp8Linear,
    Fp8Matrix,
    multiply,
    quantise_rows,
)
from tts_verifier.verifiers.imagedoctor.requests import GenerationLimits


def test_a_product_in_fp8_is_the_product_of_the_rounded_factors() -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(5, 48), torch.randn(32, 48), torch.randn(32)
    got = multiply(quantise_rows(x), quantise_rows(weight), bias)
    rounded = quantise_rows(x).dequantise() @ quantise_rows(weight).dequantise().T + bias
    torch.testing.assert_close(got, rounded)
    assert ((got - (x @ weight.T + bias)).norm() / got.norm()) < 0.05


def test_rows_of_zeros_and_of_large_values_stay_finite() -> None:
    x = torch.tensor([[0.0, 0.0], [1e30, -1e30], [1e-30, 1e-31]])
    rounded = quantise_rows(x).dequantise()
    torch.testing.assert_close(rounded[:2], x[:2])
    assert rounded.isfinite().all()


def test_a_linear_layer_in_fp8_keeps_its_weight_whatever_the_model_is_cast_to() -> None:
    torch.manual_seed(0)
    layer = Fp8Linear(nn.Linear(32, 16).bfloat16())
    before = layer.weight.float()
    layer.double().to("cpu", torch.bfloat16)
    assert layer.weight.dtype == torch.float8_e4m3fn
    assert layer.scale.dtype == torch.float32
    assert torch.equal(layer.weight.float(), before)


def test_the_engine_writes_what_the_model_in_fp8_finds_likely(model: ImageDoctorModel) -> None:
    quantise_model(model)
    fused = fuse_model(model)
    assert all(isinstance(layer.down, Fp8Matrix) for layer in fused.layers)
    assert not any(p.dtype == torch.float8_e4m3fn for p in (model.lm_head.weight,))
    for request in requests(model):
        (reply,) = generate(model, [request], GenerationLimits(12, (EOS,)))
        ids = torch.tensor([[*request.ids, *reply.ids]])
        with torch.no_grad():
            pixels = torch.tensor(request.patches)
            out = model(ids, pixels, [[1, *request.grid]])
        logits = out.logits[0, len(request.ids) - 1 : -1]
        chosen = logits.gather(1, torch.tensor(reply.ids)[:, None])[:, 0]
        # The engine rounds keys and values too, so of two likely tokens it may choose the second.
        assert (logits.amax(1) - chosen < 0.5).all()


def test_in_fp8_a_reply_does_not_depend_on_its_companions(model: ImageDoctorModel) -> None:
    quantise_model(model)
    prompts, limits = requests(model), GenerationLimits(12, (EOS,), 1.05)
    alone = [generate(model, [request], limits)[0].ids for request in prompts]
    replies = dict(Engine(model, limits, sequences=3).replies(prompts))
    assert [replies[i].ids for i in range(len(prompts))] == alone


@pytest.mark.parametrize("missing", ["q_proj", "down_proj"])
def test_every_product_of_a_layer_is_rounded(model: ImageDoctorModel, missing: str) -> None:
    quantise_model(model)
    names = [name for name, module in model.model.named_modules() if isinstance(module, Fp8Linear)]
    assert len([name for name in names if name.endswith(missing)]) == len(model.model.layers)


def test_a_model_in_fp8_is_not_rounded_again(model: ImageDoctorModel) -> None:
    quantise_model(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    quantise_model(model)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name].float(), before[name].float()) for name in before)


def test_a_gpu_older_than_ada_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    capabilities = {"cuda:0": (8, 6), "cuda:1": (8, 9), "cuda:2": (9, 0)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda gpu: capabilities[str(gpu)])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "RTX 3090")
    for device in ("cpu", "cuda:1", "cuda:2"):
        check_supports_fp8(torch.device(device))
    with pytest.raises(InputError, match=r"8\.9 or more .*; RTX 3090 has 8\.6\. Leave") as refused:
        check_supports_fp8(torch.device("cuda:0"))
    assert refused.value.argument == "precision"
