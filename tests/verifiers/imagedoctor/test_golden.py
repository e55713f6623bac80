"""The network equals the official one: every number of tests/golden, in float32.

Fast: all quantities of both samples through one padded batch, maps of two of the four
prompts. Slow (`-m slow`): all four maps, and the loss with its gradients; a map of the
official width takes 0.4 TFLOP.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tts_verifier.verifiers.imagedoctor.config import ImageDoctorConfig
from tts_verifier.verifiers.imagedoctor.decode import Request, generate
from tts_verifier.verifiers.imagedoctor.loss import loss
from tts_verifier.verifiers.imagedoctor.model import ImageDoctorModel, Outputs
from tts_verifier.verifiers.imagedoctor.positions import predicting
from tts_verifier.verifiers.imagedoctor.slots import Limits, Turn
from tts_verifier.verifiers.imagedoctor.step import Step

GOLDEN = Path(__file__).parent / "golden"
TOLERANCES = json.loads((GOLDEN / "tolerances.json").read_text())
EXPECTED = np.load(GOLDEN / "expected.npz")
KEYS = json.loads((GOLDEN / "keys.json").read_text())
GRID, CELLS = (18, 18), 324
PAD = 0


def check(sample: int, name: str, got: Any) -> None:
    expected = EXPECTED[f"s{sample}.{name}"]
    got = np.asarray(got.detach() if isinstance(got, torch.Tensor) else got, dtype=np.float64)
    assert got.shape == expected.shape, f"s{sample}.{name}: {got.shape} {expected.shape}"
    largest = np.abs(got - expected).max()
    assert largest <= TOLERANCES[name], f"s{sample}.{name} differs by {largest}"


@pytest.fixture(scope="module")
def recipes() -> Iterator[SimpleNamespace]:
    """The golden folder's own weights.py and inputs.py."""
    sys.path.insert(0, str(GOLDEN))
    import inputs
    import weights

    yield SimpleNamespace(
        fill=weights.fill, config=inputs.CONFIG, samples=[inputs.sample(0), inputs.sample(1)]
    )
    sys.path.remove(str(GOLDEN))
    del sys.modules["inputs"], sys.modules["weights"]


@pytest.fixture(scope="module")
def model(recipes: SimpleNamespace) -> ImageDoctorModel:
    built = ImageDoctorModel(ImageDoctorConfig.from_dict(recipes.config)).eval()
    recipes.fill(built.state_dict())
    return built


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


def run(model: ImageDoctorModel, recipes: SimpleNamespace, side: str) -> Outputs:
    ids, mask, _ = rows(recipes, side)
    pixels = torch.cat([torch.tensor(s["pixel_values"]) for s in recipes.samples])
    with torch.no_grad():
        return model(ids, pixels, [(1, 36, 36)] * 2, mask)


@pytest.fixture(scope="module")
def left(model: ImageDoctorModel, recipes: SimpleNamespace) -> Outputs:
    return run(model, recipes, "left")


def test_names_and_shapes_of_the_state_dict_are_the_official_ones(model: ImageDoctorModel) -> None:
    assert {n: list(t.shape) for n, t in model.state_dict().items()} == KEYS["shapes"]


def test_weights_are_those_of_the_recipe(model: ImageDoctorModel) -> None:
    for name, tensor in model.state_dict().items():
        assert float(tensor.flatten()[0]) == KEYS["first_value"][name], name


@pytest.mark.parametrize("side", ["left", "right"])
def test_positions_and_predicting_positions_are_exact_in_a_padded_batch(
    model: ImageDoctorModel, recipes: SimpleNamespace, side: str
) -> None:
    ids, mask, offsets = rows(recipes, side)
    positions, shift = model.positions(ids, [(36, 36)] * 2, mask)
    found = predicting(ids, (2010, 2011), mask=mask)
    for i, start in enumerate(offsets):
        length = int(mask[i].sum())
        check(i, "position_ids", positions[:, i : i + 1, start : start + length])
        check(i, "rope_delta", shift[i : i + 1])
        check(i, "predicting_positions", found[i] - start)


@pytest.mark.parametrize("side", ["left", "right"])
def test_states_logits_and_features_hold_in_one_padded_batch(
    model: ImageDoctorModel, recipes: SimpleNamespace, left: Outputs, side: str
) -> None:
    out = left if side == "left" else run(model, recipes, side)
    ids, mask, offsets = rows(recipes, side)
    for i, start in enumerate(offsets):
        end = start + int(mask[i].sum())
        visual = out.visual.view(2, CELLS, -1)[i]
        check(i, "visual_first4", visual[:4])
        check(i, "visual_last4", visual[-4:])
        check(i, "visual_row_mean", visual.mean(1))
        check(i, "visual_row_std", visual.std(1, correction=0))
        check(i, "logits_last8", out.logits[i, end - 8 : end])
        check(i, "hidden", out.hidden[i, predicting(ids[i : i + 1], (2010, 2011))[0]])


def test_greedy_ids_hold_in_a_padded_batch(
    model: ImageDoctorModel, recipes: SimpleNamespace
) -> None:
    """Row 1 continues row 0's prompt after its first three greedy ids, so it is longer."""
    sample = recipes.samples[0]
    ids, greedy = sample["prompt_ids"].tolist(), EXPECTED["s0.greedy_ids"].tolist()
    asked = [Request(row, sample["pixel_values"], (36, 36)) for row in (ids, ids + greedy[:3])]
    first, second = generate(model, asked, Limits(12, ()))
    assert first.ids == greedy == EXPECTED["s1.greedy_ids"].tolist()
    assert second.ids[:9] == greedy[3:]
    forced = torch.tensor([ids + greedy])
    with torch.no_grad():
        out = model(forced, torch.tensor(sample["pixel_values"]), [(1, 36, 36)])
    best = out.logits[0, len(ids) - 1 : -1].topk(2).values
    for i in range(2):
        check(i, "greedy_top1_logit", best[:, 0])
        check(i, "greedy_margin", best[:, 0] - best[:, 1])


def test_states_hold_when_the_completion_is_fed_id_by_id_through_the_engine(
    model: ImageDoctorModel, recipes: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = [len(s["prompt_ids"]) for s in recipes.samples]
    forced = [
        torch.tensor(s["input_ids"][n:]) for s, n in zip(recipes.samples, starts, strict=True)
    ]
    hidden: list[torch.Tensor] = []

    def told(step: Step, _rows: int, _turn: Turn) -> torch.Tensor:
        at = len(hidden)
        hidden.append(step.slots.hidden.clone())
        return torch.stack([row[min(at, len(row) - 1)] for row in forced])

    monkeypatch.setattr(Step, "_choose", told)
    asked = [
        Request(s["prompt_ids"].tolist(), s["pixel_values"], (36, 36)) for s in recipes.samples
    ]
    longest = max(map(len, forced))
    generate(model, asked, Limits(longest + 1, ()))
    whole = torch.stack(hidden, dim=1)
    for i, row in enumerate(forced):
        first = [row.tolist().index(token) for token in (2010, 2011)]
        check(i, "hidden", whole[i, first])
        last = whole[i, len(row) - 7 : len(row) + 1]
        check(i, "logits_last8", model.lm_head(last))


def states(recipes: SimpleNamespace, out: Outputs) -> torch.Tensor:
    ids, _, _ = rows(recipes, "left")
    at = predicting(ids, (2010, 2011))
    return torch.stack([out.hidden[i, at[i]] for i in range(2)])


def test_projections_hold(model: ImageDoctorModel, recipes: SimpleNamespace, left: Outputs) -> None:
    with torch.no_grad():
        text = model.text_hidden_fcs[0](states(recipes, left))
        image = model.image_hidden_fcs[0](left.visual.view(2, CELLS, -1))
    for i in range(2):
        check(i, "text_embeds", text[i])
        check(i, "image_embeds_corner", image[i, [0, 17, 306, 323]])
        check(i, "image_embeds_mean", image[i].mean(0))


def decode(
    model: ImageDoctorModel, recipes: SimpleNamespace, out: Outputs, which: list[tuple[int, int]]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Decodes the maps of (sample, kind) pairs; also what two inner modules gave."""
    inner: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            inner[name] = output

        return hook

    hooks = [
        model.heatmap.transformer.register_forward_hook(keep("transformer")),
        model.heatmap.output_upscaling.register_forward_hook(keep("upscaled")),
    ]
    prompts = states(recipes, out)
    features = out.visual.view(2, CELLS, -1)
    with torch.no_grad():
        logits = model.heatmap_logits(
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
        "upscaled_mean": inner["upscaled"].mean((2, 3)),
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


def test_maps_hold_for_one_prompt_of_each_sample_and_kind(
    model: ImageDoctorModel, recipes: SimpleNamespace, left: Outputs
) -> None:
    which = [(0, 0), (1, 1)]
    check_maps(which, *decode(model, recipes, left, which))


@pytest.mark.slow
def test_maps_hold_for_all_prompts(
    model: ImageDoctorModel, recipes: SimpleNamespace, left: Outputs
) -> None:
    which = [(0, 0), (0, 1), (1, 0), (1, 1)]
    check_maps(which, *decode(model, recipes, left, which))


def test_text_loss_holds_on_each_row_of_a_batch(recipes: SimpleNamespace, left: Outputs) -> None:
    for i, sample in enumerate(recipes.samples):
        labels = torch.tensor(sample["labels"])
        logits = left.logits[i, -len(labels) :]
        text = torch.nn.functional.cross_entropy(logits[:-1], labels[1:])
        assert abs(float(text) - EXPECTED[f"s{i}.loss"][1]) <= TOLERANCES["loss"]


@pytest.mark.slow
@pytest.mark.parametrize("i", [0, 1])
def test_loss_and_gradients_hold(model: ImageDoctorModel, recipes: SimpleNamespace, i: int) -> None:
    sample = recipes.samples[i]
    out = model(
        torch.tensor(sample["input_ids"])[None],
        torch.tensor(sample["pixel_values"]),
        sample["image_grid_thw"].tolist(),
    )
    targets = torch.tensor(
        np.stack([sample["target_misalignment"], sample["target_artifact"]], axis=1)
    )
    parts = loss(model, out, torch.tensor(sample["labels"])[None], targets, grid=GRID)
    got = [parts.total, parts.text, parts.artifact, parts.misalignment]
    check(i, "loss", [float(p.detach()) for p in got])
    parts.total.backward()
    state = model.state_dict(keep_vars=True)
    norms = [
        np.nan if state[name].grad is None else float(state[name].grad.norm())
        for name in sorted(KEYS["shapes"])
    ]
    model.zero_grad(set_to_none=True)
    np.testing.assert_allclose(norms, EXPECTED[f"s{i}.grad_norm"], **TOLERANCES["grad_norm"])
