"""Loads a random checkpoint of the released size and layout, and says what that takes.

    python examples/benchmarks/released_size.py FOLDER             # 3 B, 7.6 GB, one GPU
    python examples/benchmarks/released_size.py FOLDER --size tiny # a dry run on a CPU

Writes the checkpoint if the folder is empty. A process of its own loads it and tells the
largest resident memory it had (torch, the driver and mapped files count), before anything is
judged. Then eight pictures of different sizes are judged in one batch and one by one, in the
checkpoint's precision: by how much do scores and heatmaps differ? As random weights never
answer, the text of an official answer is fed through the engine in place of their own choice.
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
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
from make_checkpoint import make

from tts_verifier import Verifier
from tts_verifier.verifiers.imagedoctor.checkpoint.loading import Checkpoint, load_checkpoint
from tts_verifier.verifiers.imagedoctor.checkpoint.save import stored_state
from tts_verifier.verifiers.imagedoctor.config import ImageDoctorConfig
from tts_verifier.verifiers.imagedoctor.engine.decode_step import Step
from tts_verifier.verifiers.imagedoctor.engine.engine import Engine
from tts_verifier.verifiers.imagedoctor.engine.heatmaps import decode_maps
from tts_verifier.verifiers.imagedoctor.generation import (
    ForcedStep,
    GenerationLimits,
    GenerationRequest,
)
from tts_verifier.verifiers.imagedoctor.model.model import ImageDoctorModel

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
"""Width and height of the pictures."""
GB = 1e9


def load(folder: Path, device: str) -> dict[str, Any]:
    """Loads as users do; a missing, unexpected or mis-shaped tensor would be an error."""
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
    """Compares the files' names with the model's, told apart from loading."""
    config = ImageDoctorConfig.from_folder(folder)
    with torch.device("meta"):
        wanted = set(stored_state(ImageDoctorModel(config)))
    found = set()
    for path in folder.glob("*.safetensors"):
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            found |= set(file.keys())
    return {"missing": len(wanted - found), "unexpected": len(found - wanted)}


def batched(folder: Path, device: str) -> dict[str, Any]:
    """Judges all pictures at once and one by one; says how far apart maps and scores are.

    A score is the expectation over the two digits' probabilities where the reply has them.
    """
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8)) for w, h in SIZES]
    kept = load_checkpoint(folder, device=device)
    asked = []
    for i, picture in enumerate(pictures):
        made = kept.processor(picture, fit="squash")
        cells = len(made.values) // kept.processor.merge_size**2
        prompt = kept.tokenizer.encode_conversation(
            f"{'very ' * i}small things", image_tokens=cells, reasoning=False
        )
        asked.append(GenerationRequest(prompt, made.values, made.grid))
    reply, digits = told(kept)
    together = read(kept, asked, reply, digits)
    alone = [read(kept, [request], reply, digits) for request in asked]
    maps, scores = (np.concatenate([one[k] for one in alone]) for k in range(2))
    moved = np.abs(together[1] - scores)
    return {
        "pictures": len(asked),
        "reply_tokens": len(reply),
        "map_differs_at_most": float(np.abs(together[0] - maps).max()),
        "map_differs_mean": float(np.abs(together[0] - maps).mean()),
        "score_spread_of_pictures": float(scores.std(0).mean()),
        "score_differs_at_most": float(moved.max()),
        "score_differs_mean": float(moved.mean()),
    }


def told(kept: Checkpoint) -> tuple[list[int], list[int]]:
    """Returns the ids of an official answer, and where its scores' first decimals stand."""
    config, words = kept.model.config, kept.tokenizer
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


def read(
    kept: Checkpoint, asked: list[GenerationRequest], reply: list[int], digits: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Feeds the reply, id by id, through the engine to all rows: maps (rows, 2, H, W), scores
    (rows, scores)."""
    hidden: list[torch.Tensor] = []

    def choose(step: Step, rows: int, _: ForcedStep) -> torch.Tensor:
        at = len(hidden)
        hidden.append(step.slots.hidden[:rows].clone())
        return torch.full((rows,), reply[min(at, len(reply) - 1)], device=hidden[0].device)

    engine = Engine(kept.model, GenerationLimits(len(reply), ()), slots=len(asked))
    with mock.patch.object(Step, "_choose", choose), mock.patch.object(Step, "_capture", called):
        found = dict(engine.replies(asked))
    ids = torch.tensor([kept.tokenizer.encode(str(digit))[0] for digit in range(10)])
    config, maps, scores = kept.model.config, [], []
    with torch.inference_mode():
        for token in (config.misalignment_token_id, config.artifact_token_id):
            state = hidden[reply.index(token)]
            visual = torch.stack([found[i].visual for i in range(len(asked))])
            cells = tuple(side // kept.processor.merge_size for side in asked[0].grid)
            maps.append(decode_maps(kept.model, state, visual, cells).cpu().numpy())
        for at in digits:
            logits = kept.model.lm_head(torch.stack(hidden[at : at + 2])).float()
            odds = logits[..., ids.to(logits.device)].softmax(-1).cpu()
            value = odds @ torch.arange(10.0)
            scores.append((value[0] / 10 + value[1] / 100).numpy())
    return np.stack(maps, 1), np.stack(scores, 1)


def called(step: Step, rows: int, bucket: int, _: ForcedStep) -> Any:
    """Does what is captured anew each time, as what is told comes from the host."""
    return SimpleNamespace(replay=lambda: step._step(rows, bucket))


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
    told = subprocess.run([*command, "--part", "load"], capture_output=True, text=True, check=True)
    figures = {"checkpoint_gb": size / GB, **keys(options.folder), **json.loads(told.stdout)}
    figures["peak_over_checkpoint"] = figures["peak_host_gb"] / figures["checkpoint_gb"]
    name = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    print(json.dumps({"on": name, **figures}, indent=2), flush=True)
    print(json.dumps(batched(options.folder, options.device), indent=2))


if __name__ == "__main__":
    main()
