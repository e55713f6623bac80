"""Loads a random checkpoint of the released size and layout, and measures time and memory.

    python examples/benchmarks/released_size.py FOLDER             # 3 B, 7.6 GB, one GPU
    python examples/benchmarks/released_size.py FOLDER --size tiny # a dry run on a CPU

Writes the checkpoint if the folder is empty. A process of its own loads it and reports its peak
resident memory (torch, the driver and mapped files count). Then eight images of different sizes
are verified in one batch and one by one, in the checkpoint's precision, to see by how much scores
and heatmaps differ. Random weights never answer, so the engine is made to choose the tokens of an
official answer.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
from make_checkpoint import make

from tts_verifier import Verifier
from tts_verifier.verifiers.imagedoctor.checkpoint.loading import Checkpoint, load_checkpoint
from tts_verifier.verifiers.imagedoctor.checkpoint.save import stored_state
from tts_verifier.verifiers.imagedoctor.config import ImageDoctorConfig
from tts_verifier.verifiers.imagedoctor.engine.engine import generate
from tts_verifier.verifiers.imagedoctor.engine.heatmaps import decode_maps
from tts_verifier.verifiers.imagedoctor.model.model import ImageDoctorModel
from tts_verifier.verifiers.imagedoctor.requests import GenerationLimits, GenerationRequest

SIZES = (
    (512, 512),
    (1024, 768),
    (640, 480),
    (333, 777),
    (1024, 1024),
    (64, 48),
    (900, 200),
    (7, 9),
)
"""Width and height of the images."""
GB = 1e9


def load(folder: Path, device: str) -> dict[str, Any]:
    """Loads as users do; a missing, unexpected or mis-shaped tensor raises an error."""
    began = time.perf_counter()
    verifier = Verifier.from_pretrained(str(folder), device=device)
    if device == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    parameter = next(verifier.checkpoint.model.parameters())
    return {
        "load_seconds": seconds,
        "peak_host_gb": peak / GB,
        "dtype": str(parameter.dtype),
        "device": str(parameter.device),
        "device_gb": torch.cuda.memory_allocated() / GB if device == "cuda" else None,
    }


def keys(folder: Path) -> dict[str, int]:
    """Compares the tensor names in the files with the model's."""
    config = ImageDoctorConfig.from_folder(folder)
    with torch.device("meta"):
        wanted = set(stored_state(ImageDoctorModel(config)))
    saved = set()
    for path in folder.glob("*.safetensors"):
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            saved |= set(file.keys())
    return {"missing": len(wanted - saved), "unexpected": len(saved - wanted)}


def batched(folder: Path, device: str) -> dict[str, Any]:
    """Verifies all images at once and one by one, and measures how far maps and scores differ.

    A score is the expectation over the probabilities of its two digits.
    """
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8)) for w, h in SIZES]
    checkpoint = load_checkpoint(folder, device=device)
    requests = []
    for i, image in enumerate(images):
        patches = checkpoint.processor(image, fit="squash")
        prompt = f"{'very ' * i}small things"
        ids = checkpoint.tokenizer.encode_conversation(
            prompt, image_tokens=checkpoint.processor.merged_tokens, reasoning=False
        )
        requests.append(GenerationRequest(ids, patches.values, patches.grid))
    reply, digits = official_answer(checkpoint)
    together = verify_forced(checkpoint, requests, reply, digits)
    alone = [verify_forced(checkpoint, [request], reply, digits) for request in requests]
    maps, scores = (np.concatenate([one[k] for one in alone]) for k in range(2))
    moved = np.abs(together[1] - scores)
    return {
        "pictures": len(requests),
        "reply_tokens": len(reply),
        "map_differs_at_most": float(np.abs(together[0] - maps).max()),
        "map_differs_mean": float(np.abs(together[0] - maps).mean()),
        "score_spread_of_pictures": float(scores.std(0).mean()),
        "score_differs_at_most": float(moved.max()),
        "score_differs_mean": float(moved.mean()),
    }


def official_answer(checkpoint: Checkpoint) -> tuple[list[int], list[int]]:
    """Returns the ids of an official answer, and the places of its scores' first decimals."""
    config, words = checkpoint.model.config, checkpoint.tokenizer
    parts = [
        "Semantic Alignment score: 0.42; Misalignment Locations: ",
        config.misalignment_token_id,
        " \nAesthetic score: 0.58; Plausibility score: 0.71; Artifact Locations: ",
        config.artifact_token_id,
        " \nOverall Impression score: 0.66</answer>",
    ]
    ids: list[int] = []
    digits = []
    for part in parts:
        if isinstance(part, int):
            ids.append(part)
            continue
        for piece in re.split(r"(?<=0\.)", part):
            ids += words.encode(piece)
            digits.append(len(ids))
        digits.pop()
    return ids, digits


def verify_forced(
    checkpoint: Checkpoint, requests: list[GenerationRequest], reply: list[int], digits: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Forces the reply on every request; returns maps (requests, 2, H, W) and scores (requests,
    scores)."""
    model, steps = checkpoint.model, []

    def choose(logits: torch.Tensor) -> torch.Tensor:
        token = reply[min(len(steps), len(reply) - 1)]
        steps.append(logits.clone())
        return torch.full((len(logits),), token, device=logits.device)

    # Not captured, because `choose` counts its calls on the host.
    limits = GenerationLimits(len(reply), ())
    replies = generate(model, requests, limits, choose=choose, capture=False)
    digit_ids = torch.tensor([checkpoint.tokenizer.encode(str(digit))[0] for digit in range(10)])
    maps, scores = [], []
    with torch.inference_mode():
        visual = torch.stack([one.visual for one in replies])
        cells = tuple(side // checkpoint.processor.merge_size for side in requests[0].grid)
        for k in range(2):
            states = torch.stack([one.map_states[k] for one in replies])
            maps.append(decode_maps(model, states, visual, cells).cpu().numpy())
        for at in digits:
            logits = torch.stack(steps[at : at + 2])
            probs = logits[..., digit_ids.to(logits.device)].softmax(-1).cpu()
            value = probs @ torch.arange(10.0)
            scores.append((value[0] / 10 + value[1] / 100).numpy())
    return np.stack(maps, 1), np.stack(scores, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", default="3b")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--part", choices=("load",), help="only that, in this process")
    options = parser.parse_args()
    if options.part == "load":
        print(json.dumps(load(options.folder, options.device)))
        return
    if not any(options.folder.glob("*.safetensors")):
        make(options.folder, size=options.size, device=options.device)
    size = sum(path.stat().st_size for path in options.folder.glob("*.safetensors"))
    command = [sys.executable, __file__, str(options.folder), "--device", options.device]
    loaded = subprocess.run(
        [*command, "--part", "load"], capture_output=True, text=True, check=True
    )
    figures = {"checkpoint_gb": size / GB, **keys(options.folder), **json.loads(loaded.stdout)}
    figures["peak_over_checkpoint"] = figures["peak_host_gb"] / figures["checkpoint_gb"]
    name = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    print(json.dumps({"on": name, **figures}, indent=2), flush=True)
    print(json.dumps(batched(options.folder, options.device), indent=2))


if __name__ == "__main__":
    main()
