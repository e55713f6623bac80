"""The nodes. ComfyUI's images are float32 (B, H, W, C) in [0, 1], its masks float32 (B, H, W).

Interface: https://docs.comfy.org/custom-nodes/backend/server_overview
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from tts_verifier import Objective, Ranking
from tts_verifier.errors import InputError
from tts_verifier.images import as_image
from tts_verifier.strategies.common.masks import MaskRule, flaw_mask
from tts_verifier.verifiers.load import load_verifier

CATEGORY = "tts-verifier"
VERIFIER, RANKING = "TTS_VERIFIER", "TTS_RANKING"
NOTHING, ALL = "repaint nothing", "repaint all"


class LoadVerifier:
    """Loads a verifier once; ComfyUI keeps it for the next run."""

    CATEGORY = CATEGORY
    FUNCTION = "load"
    RETURN_TYPES = (VERIFIER,)
    RETURN_NAMES = ("verifier",)
    DESCRIPTION = "A folder or hub id of an ImageDoctor, or the name of another verifier."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Returns the node's inputs."""
        return {
            "required": {"name": ("STRING", {"default": "GYX97/ImageDoctor"})},
            "optional": {"device": ("STRING", {"default": "", "tooltip": "cpu, cuda:1, …"})},
        }

    def load(self, name: str, device: str = "") -> tuple[Any]:
        """Returns the verifier."""
        return (load_verifier(name.strip(), device=device.strip() or None),)


class Score:
    """Scores every image of a batch against one prompt."""

    CATEGORY = CATEGORY
    FUNCTION = "score"
    RETURN_TYPES = (RANKING, "STRING")
    RETURN_NAMES = ("ranking", "scores")
    DESCRIPTION = "Verifies each image once; the other nodes read the ranking."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Returns the node's inputs."""
        weights = 'Weights by score, as {"overall": 1}; empty = the verifier\'s own objective.'
        return {
            "required": {
                "verifier": (VERIFIER,),
                "images": ("IMAGE",),
                "prompt": ("STRING", {"multiline": True}),
            },
            "optional": {"objective": ("STRING", {"default": "", "tooltip": weights})},
        }

    def score(
        self, verifier: Any, images: torch.Tensor, prompt: str, objective: str = ""
    ) -> tuple[Ranking, str]:
        """Returns the images, best first, and their scores as JSON lines in that order."""
        pictures = [as_image(image.movedim(-1, 0).clamp(0, 1)) for image in images]
        ranking = verifier.rerank(pictures, prompt, objective=_objective(objective))
        rows = [
            {"image": item.index, "objective": item.objective, **item.verdict.scores}
            for item in ranking
        ]
        # JSON has no NaN.
        clean = [{k: v if math.isfinite(v) else None for k, v in row.items()} for row in rows]
        return ranking, "\n".join(json.dumps(row) for row in clean)


class PickBest:
    """Keeps the best images of a batch."""

    CATEGORY = CATEGORY
    FUNCTION = "pick"
    RETURN_TYPES = ("IMAGE", RANKING, "INT", "FLOAT")
    RETURN_NAMES = ("images", "ranking", "index", "objective")
    DESCRIPTION = "The best images, best first, with their ranking, and the best one's index."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Returns the node's inputs."""
        return {
            "required": {
                "images": ("IMAGE",),
                "ranking": (RANKING,),
                "count": ("INT", {"default": 1, "min": 1, "max": 4096}),
            }
        }

    def pick(
        self, images: torch.Tensor, ranking: Ranking, count: int
    ) -> tuple[torch.Tensor, Ranking, int, float]:
        """Returns the `count` best images; fewer where fewer have a usable verdict."""
        _check_same(images, ranking)
        best = [item for item in ranking if not math.isnan(item.objective)][:count]
        if not best:
            raise InputError(
                f"None of {len(ranking)} images has a usable verdict. The scores of the node that "
                "ranked them show why; another verifier or objective may help."
            )
        kept = Ranking([replace(item, index=place) for place, item in enumerate(best)])
        chosen = images[[item.index for item in best]]
        return chosen, kept, best[0].index, best[0].objective


class FlawMask:
    """Masks what the verifier finds flawed, to be repainted by an inpainting sampler."""

    CATEGORY = CATEGORY
    FUNCTION = "mask"
    RETURN_TYPES = ("MASK", "IMAGE")
    RETURN_NAMES = ("mask", "overlay")
    DESCRIPTION = "A mask for each image, 1 = flawed, and the images with their heatmaps."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Returns the node's inputs."""
        share = {"min": 0.01, "max": 0.99, "step": 0.01}
        heat = "mass: the hottest pixels that hold this share of the heat"
        return {
            "required": {
                "images": ("IMAGE",),
                "ranking": (RANKING,),
                "threshold": (["mass", "quantile", "otsu"],),
                "level": ("FLOAT", {"default": 0.5, **share, "tooltip": heat}),
                "grow": ("FLOAT", {"default": 0.08, "min": 0.0, "max": 0.5, "step": 0.01}),
                "without_a_place": ([NOTHING, ALL],),
            }
        }

    def mask(
        self,
        images: torch.Tensor,
        ranking: Ranking,
        threshold: Any,
        level: float,
        grow: float,
        without_a_place: str,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns masks (B, H, W) and overlays (B, H, W, 3), both float32 in [0, 1]."""
        _check_same(images, ranking)
        rule = MaskRule(threshold, level, dilate=grow)
        size = (images.shape[2], images.shape[1])
        masks = torch.full(images.shape[:3], float(without_a_place == ALL))
        overlays = torch.empty(*images.shape[:3], 3)
        for item in ranking:
            verdict = item.verdict
            found = flaw_mask(list(verdict.heatmaps.values()), verdict.boxes, size=size, rule=rule)
            if found is not None:
                masks[item.index] = torch.from_numpy(found.array().astype(np.float32))
            marked = np.asarray(verdict.overlay(item.image), np.float32) / 255
            overlays[item.index] = torch.from_numpy(marked)
        return masks, overlays


def _objective(text: str) -> Objective | None:
    if not text.strip():
        return None
    try:
        weights = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f'objective must be weights by score as JSON, such as {{"overall": 1}}, got {text!r}.'
        ) from error
    return Objective(weights)


def _check_same(images: torch.Tensor, ranking: Ranking) -> None:
    sizes = {item.image.size for item in ranking}
    if len(images) != len(ranking) or sizes != {(images.shape[2], images.shape[1])}:
        raise InputError(
            f"images must be those that were ranked: {len(ranking)} of size {sorted(sizes)}, got "
            f"{len(images)} of {images.shape[2]} x {images.shape[1]}. Connect both outputs of Pick "
            "best, or both inputs of Score."
        )


NODE_CLASS_MAPPINGS: dict[str, type] = {
    "TTSLoadVerifier": LoadVerifier,
    "TTSScore": Score,
    "TTSPickBest": PickBest,
    "TTSFlawMask": FlawMask,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "TTSLoadVerifier": "Load verifier",
    "TTSScore": "Score images",
    "TTSPickBest": "Pick best",
    "TTSFlawMask": "Flaw mask",
}
