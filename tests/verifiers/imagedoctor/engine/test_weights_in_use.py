"""Weights that are replaced under an engine, and models that are more than their weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tiny_engine import EOS, requests
from tiny_imagedoctor import example
from torch import nn

from tts_verifier.errors import CheckpointError, InputError
from tts_verifier.verifiers.imagedoctor.checkpoint.loading import load_model
from tts_verifier.verifiers.imagedoctor.checkpoint.replace import copy_weights
from tts_verifier.verifiers.imagedoctor.engine import Engine, generate
from tts_verifier.verifiers.imagedoctor.model.model import ImageDoctorModel
from tts_verifier.verifiers.imagedoctor.model.quantise import quantise_model
from tts_verifier.verifiers.imagedoctor.requests import GenerationLimits

LIMITS = GenerationLimits(12, (EOS,), log_probs=True)


@pytest.fixture
def own(model: ImageDoctorModel) -> ImageDoctorModel:
    """A copy that a test may change."""
    return copy.deepcopy(model)


def other_weights(model: ImageDoctorModel) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(5)
    return {
        name: tensor + 0.05 * torch.randn(tensor.shape, generator=g)
        for name, tensor in model.state_dict().items()
    }


def test_an_engine_uses_new_weights_without_new_buffers(own: ImageDoctorModel) -> None:
    engine = Engine(own, LIMITS, sequences=3)
    old = dict(engine.replies(requests(own)))
    step, addresses = engine.decode_step, [p.data_ptr() for p in own.parameters()]
    new = other_weights(own)
    fresh = copy.deepcopy(own)
    fresh.load_state_dict(new)
    copy_weights(own, {name: tensor.double() for name, tensor in new.items()})
    replies = dict(engine.replies(requests(own)))
    expected = generate(fresh, requests(own), LIMITS)
    for i, reply in enumerate(expected):
        assert replies[i].ids == reply.ids
        torch.testing.assert_close(replies[i].visual, reply.visual, atol=2e-5, rtol=1e-5)
    assert [replies[i].ids for i in range(5)] != [old[i].ids for i in range(5)]
    assert engine.decode_step is step
    assert [p.data_ptr() for p in own.parameters()] == addresses


def test_new_weights_count_from_the_next_request_on_while_others_run(
    own: ImageDoctorModel,
) -> None:
    new = other_weights(own)
    fresh = copy.deepcopy(own)
    fresh.load_state_dict(new)
    first, second = requests(own)[1], requests(own)[4]
    expected = generate(fresh, [second], LIMITS)[0]
    engine = Engine(own, LIMITS, sequences=1)
    running = engine.replies(iter([first, second]))
    next(running)
    copy_weights(own, new)
    _, reply = next(running)
    assert reply.ids == expected.ids
    # Vision too, whose padded biases are fused with the others.
    torch.testing.assert_close(reply.visual, expected.visual, atol=2e-5, rtol=1e-5)


def test_names_of_newer_checkpoints_and_some_of_the_weights_will_do(
    own: ImageDoctorModel,
) -> None:
    new = other_weights(own)
    name = "model.layers.0.self_attn.q_proj.weight"
    newer = "model.language_model.layers.0.self_attn.q_proj.weight"
    copy_weights(own, {newer: new[name]}, partial=True)
    assert torch.equal(own.state_dict()[name], new[name])
    copy_weights(own, new)
    assert all(torch.equal(tensor, new[n]) for n, tensor in own.state_dict().items())


def test_new_weights_are_rounded_for_a_model_in_fp8(own: ImageDoctorModel) -> None:
    new = other_weights(own)
    fresh = copy.deepcopy(own)
    fresh.load_state_dict(new)
    for quantised in (own, fresh):
        quantise_model(quantised)
    engine = Engine(own, LIMITS, sequences=3)
    list(engine.replies(requests(own)))
    step = engine.decode_step
    for state in (new, fresh.state_dict()):
        copy_weights(own, state)
        replies = dict(engine.replies(requests(own)))
        expected = generate(fresh, requests(own), LIMITS)
        assert [replies[i].ids for i in range(5)] == [reply.ids for reply in expected]
    assert engine.decode_step is step
    name = "model.layers.0.mlp.down_proj.weight"
    with pytest.raises(CheckpointError, match="hold no usable numbers: lm_head"):
        copy_weights(own, new | {"lm_head.weight": new["lm_head.weight"].to(torch.float8_e4m3fn)})
    with pytest.raises(CheckpointError, match=r"1 are missing: .*down_proj\.scale"):
        copy_weights(own, new | {name: new[name].to(torch.float8_e4m3fn)})


Change = Callable[[dict[str, torch.Tensor]], object]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("lm_head.weight"), "1 are missing: lm_head.weight. Give a whole"),
        (lambda s: s.update(extra=torch.ones(2)), "1 are not in the model: extra"),
        (
            lambda s: s.update({"model.norm.weight": torch.ones(3)}),
            r"1 have another shape: model.norm.weight \(3,\) instead of \(\d+,\)",
        ),
        (
            lambda s: s.update({"model.norm.weight": s["model.norm.weight"].int()}),
            "1 hold no usable numbers: model.norm.weight torch.int32",
        ),
        (
            lambda s: s.update({"model.norm.weight": s["model.norm.weight"].to("meta")}),
            "1 hold no usable numbers: model.norm.weight torch.float32 on meta",
        ),
        (
            lambda s: s.update({"model.language_model.norm.weight": s["model.norm.weight"]}),
            "The new weights hold model.norm.weight twice",
        ),
    ],
)
def test_weights_that_do_not_fit_change_nothing(
    own: ImageDoctorModel, change: Change, message: str
) -> None:
    before = {name: tensor.clone() for name, tensor in own.state_dict().items()}
    new = other_weights(own)
    change(new)
    with pytest.raises(CheckpointError, match=message):
        copy_weights(own, new)
    assert all(torch.equal(tensor, before[n]) for n, tensor in own.state_dict().items())


def test_a_tied_matrix_needs_one_of_its_two_names(tmp_path: Path) -> None:
    example().make(tmp_path)
    tied = load_model(tmp_path).requires_grad_(False)
    new = other_weights(tied)
    with pytest.raises(CheckpointError, match="the new weights give them different values"):
        copy_weights(tied, new)
    del new["lm_head.weight"]
    copy_weights(tied, new)
    assert torch.equal(tied.lm_head.weight, new["model.embed_tokens.weight"])


class LoraLinear(nn.Module):
    """An adapter as peft makes it: a module around the layer, whose weight it forwards."""

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.lora_A = nn.Linear(base_layer.in_features, 2, bias=False)
        self.merged, self.disable_adapters = False, False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x)

    @property
    def weight(self) -> torch.Tensor:
        return self.base_layer.weight

    @property
    def bias(self) -> torch.Tensor:
        return self.base_layer.bias


def refuses(model: nn.Module, message: str) -> None:
    with pytest.raises(InputError, match=message):
        generate(model, requests(model)[:1], LIMITS)


@pytest.mark.parametrize("where", ["language", "vision", "output", "head"])
def test_adapters_that_are_not_merged_are_refused(own: ImageDoctorModel, where: str) -> None:
    parent, name = {
        "language": (own.model.layers[0].self_attn, "q_proj"),
        "vision": (own.visual.blocks[0].attn, "proj"),
        "output": (own, "lm_head"),
        "head": (own.text_hidden_fcs[0], "0"),
    }[where]
    adapter = LoraLinear(getattr(parent, name))
    setattr(parent, name, adapter)
    refuses(own, f"{name} has an adapter that is not merged .LoraLinear.*merge_and_unload")
    adapter.merged = True
    generate(own, requests(own)[:1], LIMITS)
    adapter.merged, adapter.disable_adapters = False, True
    generate(own, requests(own)[:1], LIMITS)
    adapter.merged = True
    refuses(own, "has an adapter that is not merged")


def test_adapters_of_peft_are_refused_until_they_are_merged(own: ImageDoctorModel) -> None:
    peft = pytest.importorskip("peft")
    before = generate(own, requests(own)[:1], LIMITS)[0]
    config = peft.LoraConfig(
        r=2, target_modules=r"model\..*(q_proj|down_proj)", init_lora_weights=False
    )
    peft.inject_adapter_in_model(config, own)
    refuses(own, "has an adapter that is not merged")
    layers = [m for m in own.modules() if hasattr(m, "base_layer")]
    expected = own(*whole_input(own)).logits
    for layer in layers:
        layer.merge()
    merged = generate(own, requests(own)[:1], LIMITS)[0]
    torch.testing.assert_close(own(*whole_input(own)).logits, expected, atol=1e-4, rtol=1e-4)
    assert merged.log_probs[0] != before.log_probs[0]
    for layer in layers:
        layer.unmerge()
    refuses(own, "has an adapter that is not merged")


def test_a_forward_pass_refuses_an_adapter_of_vision_that_it_would_not_train(
    own: ImageDoctorModel,
) -> None:
    mlp = own.visual.blocks[1].mlp
    mlp.up_proj = LoraLinear(mlp.up_proj)
    with pytest.raises(InputError, match=r"visual\.blocks\.1\.mlp\.up_proj has an adapter"):
        own(*whole_input(own))


def test_a_wrapper_around_the_model_is_refused(own: ImageDoctorModel) -> None:
    class PeftModel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base_model = own

        def __getattr__(self, name: str) -> object:
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(self.base_model, name)

    refuses(PeftModel(), "got PeftModel. Merge adapters .* pass the module inside")


def whole_input(model: ImageDoctorModel) -> tuple[torch.Tensor, torch.Tensor, list[tuple]]:
    request = requests(model)[0]
    return torch.tensor([request.ids]), torch.from_numpy(request.patches), [(1, *request.grid)]


def hook(module: nn.Module, *_: object) -> None:
    """Does nothing."""


def parametrized(own: ImageDoctorModel) -> None:
    layer = own.model.layers[1].mlp.up_proj
    nn.utils.parametrize.register_parametrization(layer, "weight", nn.Identity())


def another_class(own: ImageDoctorModel) -> None:
    class Quantised(nn.Linear):
        pass

    own.model.layers[0].mlp.down_proj.__class__ = Quantised


def more_parameters(own: ImageDoctorModel) -> None:
    own.visual.blocks[0].mlp.up_proj.lora_B = nn.Parameter(torch.ones(2))


def trained_copy(own: ImageDoctorModel) -> None:
    own.lm_head.original_module, own.lm_head.modules_to_save = nn.Identity(), nn.ModuleDict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (parametrized, r"layers.1.mlp.up_proj is parametrized \(weight\)"),
        (another_class, "layers.0.mlp.down_proj is .*Quantised with weight"),
        (more_parameters, "blocks.0.mlp.up_proj is torch.nn.modules.linear.Linear with .*lora_B"),
        (trained_copy, "lm_head has a trained copy beside it"),
        (
            lambda own: own.model.layers[0].register_forward_hook(hook),
            "model.layers.0 has a forward hook",
        ),
        (
            lambda own: own.visual.blocks[0].norm1.register_forward_pre_hook(hook),
            "visual.blocks.0.norm1 has a forward hook",
        ),
        (lambda own: own.register_forward_hook(hook), "that the model has a forward hook"),
        (
            lambda own: setattr(own.model.norm, "forward", lambda x: x),
            "model.norm has another `forward` than its class",
        ),
    ],
)
def test_what_the_engine_would_ignore_is_refused(
    own: ImageDoctorModel, change: Callable[[ImageDoctorModel], object], message: str
) -> None:
    change(own)
    refuses(own, message)


@pytest.fixture(autouse=True)
def _leave_the_shared_model_alone(model: ImageDoctorModel) -> Iterator[None]:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    yield
    assert all(torch.equal(tensor, before[n]) for n, tensor in model.state_dict().items())
