"""The network equals the official one: every number of the folder `golden`, in float32.

Fast: all quantities of both samples through one padded batch, the map of one of the four
prompts. Slow (`-m slow`): all four maps, and the loss with its gradients; a map of the
official width takes 0.4 TFLOP.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from golden_numbers import EXPECTED, GOLDEN, TOLERANCES, check
from tiny_engine import ForcedTokens

from tts_verifier.training.verifier.sft_loss import loss
from tts_verifier.verifiers.imagedoctor.engine.engine import generate
from tts_verifier.verifiers.imagedoctor.model.model import ImageDoctorModel, Outputs
from tts_verifier.verifiers.imagedoctor.model.mrope import predicting_positions
from tts_verifier.verifiers.imagedoctor.requests import (
    GenerationLimits,
    GenerationRequest,
)

KEYS = json.loads((GOLDEN / "keys.json").read_text())
GRID, CELLS = (18, 18), 324
PAD = 0


def rows(recipes: SimpleNamespace, side: str) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Both samples' ids as one batch padded on a side, its mask, and each row's offset."""
    ids = [torch.tensor(s["input_ids"]) for s in recipes.samples]
    longest = max(map(len, ids))
    batch = torch.full((2, longest), PAD)
    mask = torch.zeros(2, longest, dtype=torch.long)
    offsets = [longest - len(row) if side == "left" else 0 for row in ids]
    for i, (row, start) in enumerate(zip(ids, offsets, strict=True)):
        batch[i, start : start + len(row)] = row
        mask[i, start : start + len(row)] = 1
    return batch, mask, offsets


def run(official: ImageDoctorModel, recipes: SimpleNamespace, side: str) -> Outputs:
    ids, mask, _ = rows(recipes, side)
    pixels = torch.cat([torch.tensor(s["pixel_values"]) for s in recipes.samples])
    with torch.no_grad():
        return official(ids, pixels, [(1, 36, 36)] * 2, mask)


@pytest.fixture(scope="module")
def left(official: ImageDoctorModel, recipes: SimpleNamespace) -> Outputs:
    return run(official, recipes, "left")


def test_names_and_shapes_of_the_state_dict_are_the_official_ones(
    official: ImageDoctorModel,
) -> None:
    assert {n: list(t.shape) for n, t in official.state_dict().items()} == KEYS["shapes"]


def test_weights_are_those_of_the_recipe(official: ImageDoctorModel) -> None:
    for name, tensor in official.state_dict().items():
        assert float(tensor.flatten()[0]) == KEYS["first_value"][name], name


@pytest.mark.parametrize("side", ["left", "right"])
def test_positions_and_predicting_positions_are_exact_in_a_padded_batch(
    official: ImageDoctorModel, recipes: SimpleNamespace, side: str
) -> None:
    ids, mask, offsets = rows(recipes, side)
    positions, shift = official.positions(ids, [(36, 36)] * 2, mask)
    found = predicting_positions(ids, (2010, 2011), mask=mask)
    for i, start in enumerate(offsets):
        length = int(mask[i].sum())
        check(i, "position_ids", positions[:, i : i + 1, start : start + length])
        check(i, "rope_delta", shift[i : i + 1])
        check(i, "predicting_positions", found[i] - start)


@pytest.mark.parametrize("side", ["left", "right"])
def test_states_logits_and_features_hold_in_one_padded_batch(
    official: ImageDoctorModel, recipes: SimpleNamespace, left: Outputs, side: str
) -> None:
    out = left if side == "left" else run(official, recipes, side)
    ids, mask, offsets = rows(recipes, side)
    for i, start in enumerate(offsets):
        end = start + int(mask[i].sum())
        visual = out.visual.view(2, CELLS, -1)[i]
        check(i, "visual_first4", visual[:4])
        check(i, "visual_last4", visual[-4:])
        check(i, "visual_row_mean", visual.mean(1))
        check(i, "visual_row_std", visual.std(1, correction=0))
        check(i, "logits_last8", out.logits[i, end - 8 : end])
        check(i, "hidden", out.hidden[i, predicting_positions(ids[i : i + 1], (2010, 2011))[0]])


def test_greedy_ids_hold_in_a_padded_batch(
    official: ImageDoctorModel, recipes: SimpleNamespace
) -> None:
    """Row 1 continues row 0's prompt after its first three greedy ids, so it is longer."""
    sample = recipes.samples[0]
    ids, greedy = sample["prompt_ids"].tolist(), EXPECTED["s0.greedy_ids"].tolist()
    asked = [
        GenerationRequest(row, sample["pixel_values"], (36, 36)) for row in (ids, ids + greedy[:3])
    ]
    first, second = generate(official, asked, GenerationLimits(12, ()))
    assert first.ids == greedy == EXPECTED["s1.greedy_ids"].tolist()
    assert second.ids[:9] == greedy[3:]
    forced = torch.tensor([ids + greedy])
    with torch.no_grad():
        out = official(forced, torch.tensor(sample["pixel_values"]), [(1, 36, 36)])
    best = out.logits[0, len(ids) - 1 : -1].topk(2).values
    for i in range(2):
        check(i, "greedy_top1_logit", best[:, 0])
        check(i, "greedy_margin", best[:, 0] - best[:, 1])


def test_states_hold_when_the_completion_is_fed_id_by_id_through_the_engine(
    official: ImageDoctorModel, recipes: SimpleNamespace
) -> None:
    completions = [torch.tensor(s["input_ids"][len(s["prompt_ids"]) :]) for s in recipes.samples]
    prompts = [
        GenerationRequest(s["prompt_ids"].tolist(), s["pixel_values"], (36, 36))
        for s in recipes.samples
    ]
    forced = ForcedTokens(completions)
    limits = GenerationLimits(max(map(len, completions)) + 1, ())
    replies = generate(official, prompts, limits, choose=forced)
    logits = forced.logits()
    for i, ids in enumerate(completions):
        check(i, "hidden", replies[i].map_states)
        check(i, "logits_last8", logits[i, len(ids) - 7 : len(ids) + 1])


def states(recipes: SimpleNamespace, out: Outputs) -> torch.Tensor:
    ids, _, _ = rows(recipes, "left")
    at = predicting_positions(ids, (2010, 2011))
    return torch.stack([out.hidden[i, at[i]] for i in range(2)])


def test_projections_hold(
    official: ImageDoctorModel, recipes: SimpleNamespace, left: Outputs
) -> None:
    with torch.no_grad():
        text = official.text_hidden_fcs[0](states(recipes, left))
        image = official.image_hidden_fcs[0](left.visual.view(2, CELLS, -1))
    for i in range(2):
        check(i, "text_embeds", text[i])
        check(i, "image_embeds_corner", image[i, [0, 17, 306, 323]])
        check(i, "image_embeds_mean", image[i].mean(0))


def decode(
    official: ImageDoctorModel, recipes: SimpleNamespace, out: Outputs, which: list[tuple[int, int]]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Decodes the maps of (sample, kind) pairs; also what two inner modules gave."""
    inner: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            inner[name] = output

        return hook

    hooks = [
        official.heatmap.transformer.register_forward_hook(keep("transformer")),
        official.heatmap.output_upscaling.last_conv1.register_forward_hook(keep("last_conv")),
    ]
    prompts = states(recipes, out)
    features = out.visual.view(2, CELLS, -1)
    with torch.no_grad():
        logits = official.heatmap_logits(
            torch.stack([prompts[s, k] for s, k in which]),
            torch.stack([features[s] for s, _ in which]),
            GRID,
        )
    for handle in hooks:
        handle.remove()
    return logits, inner


def check_maps(
    which: list[tuple[int, int]], logits: torch.Tensor, inner: dict[str, torch.Tensor]
) -> None:
    index = EXPECTED["sample_index"]
    tokens, cells = inner["transformer"]
    maps = torch.sigmoid(logits)
    got = {
        "decoder_tokens": tokens,
        "decoder_image_mean": cells.mean(1),
        "upscaled_mean": inner["last_conv"].relu().mean((2, 3)),
        "heatmap_logits_sample": logits[:, index][:, :, index],
        "heatmaps_sample": maps[:, index][:, :, index],
        "heatmaps_f16": maps,
        "heatmaps_mean_std": torch.stack([maps.mean((1, 2)), maps.std((1, 2), correction=0)], 1),
    }
    for name, values in got.items():
        for (sample, kind), value in zip(which, values, strict=True):
            expected = EXPECTED[f"s{sample}.{name}"][kind]
            largest = np.abs(np.asarray(value, dtype=np.float64) - expected).max()
            assert largest <= TOLERANCES[name], f"s{sample}.{name}[{kind}] differs by {largest}"


def test_a_map_holds(official: ImageDoctorModel, recipes: SimpleNamespace, left: Outputs) -> None:
    which = [(1, 1)]
    check_maps(which, *decode(official, recipes, left, which))


@pytest.mark.slow
def test_maps_hold_for_all_prompts(
    official: ImageDoctorModel, recipes: SimpleNamespace, left: Outputs
) -> None:
    which = [(0, 0), (0, 1), (1, 0), (1, 1)]
    check_maps(which, *decode(official, recipes, left, which))


def test_text_loss_holds_on_each_row_of_a_batch(recipes: SimpleNamespace, left: Outputs) -> None:
    for i, sample in enumerate(recipes.samples):
        labels = torch.tensor(sample["labels"])
        logits = left.logits[i, -len(labels) :]
        text = torch.nn.functional.cross_entropy(logits[:-1], labels[1:])
        assert abs(float(text) - EXPECTED[f"s{i}.loss"][1]) <= TOLERANCES["loss"]


@pytest.mark.slow
@pytest.mark.parametrize("i", [0, 1])
def test_loss_and_gradients_hold(
    official: ImageDoctorModel, recipes: SimpleNamespace, i: int
) -> None:
    sample = recipes.samples[i]
    out = official(
        torch.tensor(sample["input_ids"])[None],
        torch.tensor(sample["pixel_values"]),
        sample["image_grid_thw"].tolist(),
    )
    targets = torch.tensor(
        np.stack([sample["target_misalignment"], sample["target_artifact"]], axis=1)
    )
    parts = loss(official, out, torch.tensor(sample["labels"])[None], targets, grid=GRID)
    got = [parts.total, parts.text, parts.artifact, parts.misalignment]
    check(i, "loss", [float(p.detach()) for p in got])
    parts.total.backward()
    state = official.state_dict(keep_vars=True)
    norms = [
        np.nan if state[name].grad is None else float(state[name].grad.norm())
        for name in sorted(KEYS["shapes"])
    ]
    official.zero_grad(set_to_none=True)
    np.testing.assert_allclose(norms, EXPECTED[f"s{i}.grad_norm"], **TOLERANCES["grad_norm"])
