from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_imagedoctor import all_equal, outputs_of

from tts_verifier.errors import InputError
from tts_verifier.verifiers.imagedoctor.checkpoint.device_map import LayerDevices
from tts_verifier.verifiers.imagedoctor.checkpoint.loading import load_model


def test_layers_spread_over_devices_compute_the_same(original: Path) -> None:
    cpu = torch.device("cpu")
    spread = LayerDevices(cpu, 2, {"model.layers.1": "cpu"})
    assert all_equal(
        outputs_of(load_model(original, devices=spread)), outputs_of(load_model(original))
    )


def test_what_enters_a_layer_is_moved_to_its_device(original: Path) -> None:
    model = load_model(
        original, devices=LayerDevices(torch.device("cpu"), 2, {"model.layers.1": "meta"})
    )
    assert model.model.layers[0].mlp.up_proj.weight.device.type == "cpu"
    layer = model.model.layers[1]
    assert layer.mlp.up_proj.weight.device.type == "meta"
    angles = torch.ones(1, 3, 16)
    out = layer(torch.ones(1, 3, 64), attention_mask=None, position_embeddings=(angles, angles))
    assert out.device.type == "meta"


@pytest.mark.parametrize(
    ("device_map", "message"),
    [
        ("balanced", r"device_map must be 'auto'.* got 'balanced'"),
        ({"visual": "cpu"}, r"places language layers only, model.layers.0 to model.layers.1"),
        ({"model.layers.2": "cpu"}, r"got 'model.layers.2'"),
    ],
)
def test_a_device_map_that_cannot_be_used_is_an_error(device_map: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        LayerDevices(torch.device("cpu"), 2, device_map)
