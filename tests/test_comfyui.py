"""The nodes for ComfyUI: against its documented interface, and inside ComfyUI if it is there.

    COMFYUI=/path/to/ComfyUI pytest tests/test_comfyui.py

With `COMFYUI`, the folder of a checkout, its own loader reads the nodes and its own executor runs a
graph of them; this was passed with ComfyUI 0.10.0. What they need must be installed beside this
package.
"""

import json
import math
import os
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch

from tts_verifier.errors import InputError
from tts_verifier.testing import FakeVerifier

FOLDER = Path(__file__).parents[1] / "examples" / "comfyui"


@pytest.fixture(scope="module")
def nodes() -> Any:
    # As ComfyUI loads a folder of nodes: as a package, by the path of its __init__.
    spec = spec_from_file_location("comfyui_nodes", FOLDER / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules["comfyui_nodes"] = module
    spec.loader.exec_module(module)
    yield module.NODE_CLASS_MAPPINGS
    del sys.modules["comfyui_nodes"], sys.modules["comfyui_nodes.nodes"]


@pytest.fixture
def images() -> torch.Tensor:
    # Four fakes of different colours; the fake verifier prefers some of them.
    colours = torch.tensor([[0.1, 0.2, 0.3], [0.9, 0.8, 0.7], [0.5, 0.5, 0.5], [0.2, 0.9, 0.4]])
    return colours[:, None, None].expand(4, 24, 32, 3).clone()


def run(nodes: Any, node_name: str, /, **inputs: Any) -> Any:
    """Runs a node with the defaults of what is not given."""
    node = nodes[node_name]
    kinds = {k: v for group in node.INPUT_TYPES().values() for k, v in group.items()}
    assert set(inputs) <= set(kinds)
    defaults = {
        key: kind[0][0] if isinstance(kind[0], list) else kind[1]["default"]
        for key, kind in kinds.items()
        if isinstance(kind[0], list) or "default" in (kind[1] if len(kind) > 1 else {})
    }
    result = getattr(node(), node.FUNCTION)(**{**defaults, **inputs})
    assert len(result) == len(node.RETURN_TYPES) == len(node.RETURN_NAMES)
    return result


def test_the_nodes_have_what_comfyui_asks_for(nodes: Any) -> None:
    assert len(nodes) == 4
    for node in nodes.values():
        assert callable(getattr(node, node.FUNCTION))
        assert node.CATEGORY == "tts-verifier"
        assert set(node.INPUT_TYPES()) <= {"required", "optional"}


def test_the_best_images_come_first_with_their_ranking(nodes: Any, images: torch.Tensor) -> None:
    ranking, text = run(nodes, "TTSScore", verifier=FakeVerifier(), images=images, prompt="x")
    rows = [json.loads(line) for line in text.splitlines()]
    objectives = [row["objective"] for row in rows]
    assert objectives == sorted(objectives, reverse=True)
    best, kept, index, objective = run(
        nodes, "TTSPickBest", images=images, ranking=ranking, count=2
    )
    assert best.shape == (2, 24, 32, 3)
    assert (index, objective) == (rows[0]["image"], rows[0]["objective"])
    assert torch.equal(best[0], images[index])
    assert torch.equal(best[1], images[rows[1]["image"]])
    assert [item.index for item in kept] == [0, 1]


def test_masks_and_overlays_have_the_sizes_of_the_images(nodes: Any, images: torch.Tensor) -> None:
    ranking, _ = run(nodes, "TTSScore", verifier=FakeVerifier(), images=images, prompt="x")
    masks, overlays = run(nodes, "TTSFlawMask", images=images, ranking=ranking)
    assert (masks.shape, masks.dtype) == ((4, 24, 32), torch.float32)
    assert (overlays.shape, overlays.dtype) == ((4, 24, 32, 3), torch.float32)
    assert set(masks.unique().tolist()) <= {0.0, 1.0}
    assert 0 <= overlays.min() <= overlays.max() <= 1


def test_an_image_without_a_place_is_masked_as_the_node_says(
    nodes: Any, images: torch.Tensor
) -> None:
    class Places(FakeVerifier):
        def verify(self, images: Any, prompts: Any, **options: Any) -> Any:
            from dataclasses import replace

            from tts_verifier.types import Heatmaps

            found = super().verify(images, prompts, **options)
            return [replace(verdict, heatmaps=Heatmaps(), boxes=()) for verdict in found]

    ranking, _ = run(nodes, "TTSScore", verifier=Places(), images=images, prompt="x")
    for choice, value in (("repaint nothing", 0.0), ("repaint all", 1.0)):
        masks, _ = run(nodes, "TTSFlawMask", images=images, ranking=ranking, without_a_place=choice)
        assert masks.unique().tolist() == [value]


def test_a_mask_covers_the_hot_place_of_its_own_image(nodes: Any, images: torch.Tensor) -> None:
    import numpy as np

    class Corner(FakeVerifier):
        def verify(self, images: Any, prompts: Any, **options: Any) -> Any:
            from dataclasses import replace

            from tts_verifier.types import Heatmap, Heatmaps

            heat = np.zeros((24, 32), np.float32)
            heat[2:6, 3:9] = 0.9
            found = super().verify(images, prompts, **options)
            maps = [
                Heatmaps({"artifact": Heatmap(np.roll(heat, 12 * i, 0), (32, 24))}) for i in (0, 1)
            ]
            return [replace(v, heatmaps=m) for v, m in zip(found, maps, strict=True)]

    ranking, _ = run(nodes, "TTSScore", verifier=Corner(), images=images[:2], prompt="x")
    masks, _ = run(nodes, "TTSFlawMask", images=images[:2], ranking=ranking, grow=0.0)
    assert masks[0].nonzero().min(0).values.tolist() == [2, 3]
    assert masks[1].nonzero().min(0).values.tolist() == [14, 3]


def test_an_objective_may_be_given_as_weights(nodes: Any, images: torch.Tensor) -> None:
    parts = {"verifier": FakeVerifier(), "images": images, "prompt": "x"}
    _, text = run(nodes, "TTSScore", **parts, objective='{"aesthetics": 1}')
    first = json.loads(text.splitlines()[0])
    assert first["objective"] == first["aesthetics"]
    for wrong, message in (("aesthetics", "weights by score as JSON"), ('{"x": 1}', "Available")):
        with pytest.raises(InputError, match=message):
            run(nodes, "TTSScore", **parts, objective=wrong)


def test_values_that_samplers_overshoot_are_clipped_and_nan_is_refused(
    nodes: Any, images: torch.Tensor
) -> None:
    parts = {"verifier": FakeVerifier(), "prompt": "x"}
    run(nodes, "TTSScore", **parts, images=images * 1.5 - 0.2)
    images[1, 0, 0] = math.nan
    with pytest.raises(InputError):
        run(nodes, "TTSScore", **parts, images=images)


def test_other_images_than_the_ranked_ones_are_refused(nodes: Any, images: torch.Tensor) -> None:
    ranking, _ = run(nodes, "TTSScore", verifier=FakeVerifier(), images=images, prompt="x")
    for other in (images[:2], images[:, :12]):
        for name in ("TTSPickBest", "TTSFlawMask"):
            with pytest.raises(InputError, match="must be those that were ranked"):
                run(nodes, name, images=other, ranking=ranking)


@pytest.mark.filterwarnings("ignore:No image has a usable score")
def test_without_a_usable_verdict_there_is_no_best(nodes: Any, images: torch.Tensor) -> None:
    verifier = FakeVerifier(unparsable=lambda image, prompt: True)
    ranking, text = run(nodes, "TTSScore", verifier=verifier, images=images, prompt="x")
    assert json.loads(text.splitlines()[0])["objective"] is None
    with pytest.raises(InputError, match="None of 4 images has a usable verdict"):
        run(nodes, "TTSPickBest", images=images, ranking=ranking)


def test_a_verifier_is_loaded_by_name(nodes: Any) -> None:
    (verifier,) = run(nodes, "TTSLoadVerifier", name="fake")
    assert isinstance(verifier, FakeVerifier)


@pytest.mark.skipif("COMFYUI" not in os.environ, reason="needs COMFYUI, a checkout of ComfyUI")
def test_comfyuis_own_loader_and_executor_run_a_graph(tmp_path: Path) -> None:
    script = Path(__file__).parent / "comfyui_graph.py"
    command = [sys.executable, str(script), str(FOLDER), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.environ["COMFYUI"], *sys.path])}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "ran"
