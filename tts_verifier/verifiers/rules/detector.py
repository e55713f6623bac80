"""The detector judge: are the objects of the prompt there, in number, colour and place?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from threading import RLock
from typing import Any, Final

import torch
from PIL import Image

from tts_verifier.choice.objective import Objective
from tts_verifier.errors import CheckpointError, InputError
from tts_verifier.images import MAX_PIXELS, ImageLike, as_images
from tts_verifier.interfaces import check_detail, check_pairs
from tts_verifier.loading.devices import check_device, check_dtype
from tts_verifier.loading.hub import HUB_ID, download
from tts_verifier.loading.memory import release, weight_bytes
from tts_verifier.loading.regular_files import user_path
from tts_verifier.types import Box, Cost, Detail, Verdict
from tts_verifier.verifiers.batches import HalvedBatches
from tts_verifier.verifiers.judge_options import NamedCheckpoint, check_flags
from tts_verifier.verifiers.rules.object_rules import Detected, conditions_of
from tts_verifier.verifiers.rules.object_specs import (
    WantedObject,
    names_of_classes,
    parse_objects,
    read_object_specs,
)

_GREY: Final = (114, 114, 114)
_NOT_FINITE: Final = (
    "the network gave no finite confidence; float32 or bfloat16 as dtype does where float16 does "
    "not"
)


class DetectorVerifier(NamedCheckpoint):
    """Scores `objects` and `objects_passed`: whether the objects of a prompt are in the picture.

    `objects` is the mean over what the prompt asks for (counts, colours, relations), in [0, 1];
    `objects_passed` is 1 if all of it holds, else 0. A prompt is one of GenEval's templates, or it
    is in `specs`; any other cannot be judged: its scores are NaN, and its `error` says why.
    The boxes are those of objects at fault (surplus, of another colour, elsewhere), so that
    `inpaint_reroll` repaints them; the text names all conditions and all objects found.

    Safe to share between threads: calls wait for each other. A run may move it between devices.

    Args:
        model: a folder or a hub id of a detector that `AutoModelForObjectDetection` loads (D-FINE,
            RT-DETR, DETR, YOLOS, ...), with safetensors and its image processor.
        specs: a file like GenEval's evaluation_metadata.jsonl; its prompts need no template.
        threshold: the least confidence of an object, in [0, 1]. GenEval takes 0.3.
        counting_threshold: the same where a number is asked for. GenEval takes 0.9, which suits
            its Mask2Former; detectors with sigmoid scores are seldom so sure.
        letterbox: pad pictures to a square first. The processors of RT-DETR and D-FINE stretch
            pictures, as in their training, and that of DETR keeps their shape: leave it off for
            these. Switch it on for a detector that was trained on padded squares.
        device: to compute on; None = the GPU if there is one.
        dtype: of the weights; None = float32.
        batch_size: pictures at a time; it is halved when memory runs out.
        revision: branch, tag or commit on the hub.

    Raises:
        CheckpointError: the checkpoint cannot be found, or is no detector.
        InputError: an argument is not usable.
    """

    objective = Objective({"objects": 1.0})
    score_names = ("objects", "objects_passed")
    details: tuple[Detail, ...] = ("diagnose",)
    home: str | None = None
    """None: it computes where its weights are."""

    def __init__(
        self,
        model: str | Path = "PekingU/rtdetr_r50vd",
        *,
        specs: str | Path | None = None,
        threshold: float = 0.3,
        counting_threshold: float = 0.5,
        letterbox: bool = False,
        device: str | int | None = None,
        dtype: str | None = None,
        batch_size: int = 16,
        revision: str | None = None,
    ) -> None:
        _check_share("threshold", threshold)
        _check_share("counting_threshold", counting_threshold)
        check_flags(letterbox=letterbox)
        found = check_device(device)
        if found is None:
            found = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = check_dtype(dtype) or torch.float32
        self.batches = HalvedBatches(batch_size)
        self.threshold, self.counting_threshold = threshold, counting_threshold
        self.letterbox = letterbox
        self.model, self.processor = _load(model, revision, self.dtype)
        self.model.to(found)
        self._device, self._lock = found, RLock()
        labels = self.model.config.id2label
        self.names = names_of_classes(labels.values())
        self._classes = {i: self.names[label.lower()] for i, label in labels.items()}
        self.specs = {} if specs is None else read_object_specs(user_path(specs), self.names)
        self.settings = {
            "verifier": "detector",
            "model": str(model),
            "revision": revision,
            "specs": None if specs is None else str(specs),
            "threshold": threshold,
            "counting_threshold": counting_threshold,
            "letterbox": letterbox,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": found.type,
        }

    @property
    def device(self) -> str:
        """The device that the weights are on."""
        return str(self._device)

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return weight_bytes([self.model])

    def to(self, device: str) -> DetectorVerifier:
        """Moves the weights to a device, after the calls that are under way."""
        with self._lock:
            old, self._device = self.device, torch.device(device)
            self.model.to(self._device)
            release(old)
        return self

    def detect(self, images: Sequence[Image.Image]) -> list[list[Detected] | None]:
        """Returns the objects of each RGB picture whose confidence reaches the lower threshold.

        None stands for a picture of which the network says nothing finite.
        """
        with self._lock, torch.inference_mode():
            return self.batches.run(self._detect_batch, images, self.device)

    def verify(
        self,
        images: Sequence[ImageLike],
        prompts: Sequence[str],
        *,
        detail: Detail = "diagnose",
    ) -> list[Verdict]:
        """Looks for the objects of prompt i in image i; both details give the same verdict.

        Raises:
            InputError: an image cannot be used (letterboxed ones have a largest side), or the
                lengths differ.
            torch.OutOfMemoryError: memory does not suffice for a single picture.
        """
        check_detail(detail)
        pil_images = as_images(images)
        wanted = [self._wanted(prompt) for prompt in check_pairs(pil_images, prompts)]
        looked_at = [i for i, w in enumerate(wanted) if not isinstance(w, str)]
        found = dict(zip(looked_at, self.detect([pil_images[i] for i in looked_at]), strict=True))
        return [
            self._verdict(image, w, found.get(i), detail)
            for i, (image, w) in enumerate(zip(pil_images, wanted, strict=True))
        ]

    def _wanted(self, prompt: str) -> tuple[WantedObject, ...] | str:
        """Returns what a prompt asks for, or why that is not known."""
        if prompt in self.specs:
            return self.specs[prompt]
        try:
            return parse_objects(prompt, self.names)
        except InputError as error:
            return f"Not judged. {error}"

    def _verdict(
        self,
        image: Image.Image,
        wanted: tuple[WantedObject, ...] | str,
        found: Sequence[Detected] | None,
        detail: Detail,
    ) -> Verdict:
        cost = Cost(verifier_calls=1)
        if isinstance(wanted, str) or found is None:
            nothing = dict.fromkeys(self.score_names, math.nan)
            why = wanted if isinstance(wanted, str) else _NOT_FINITE
            return Verdict(nothing, detail=detail, cost=cost, error=why)
        counts = any(w.most is not None for w in wanted)
        least = self.counting_threshold if counts else self.threshold
        sure = [d for d in found if d.confidence >= least]
        conditions = conditions_of(wanted, sure, image)
        values = [c.value for c in conditions]
        scores = {
            "objects": sum(values) / len(values),
            "objects_passed": float(all(value == 1 for value in values)),
        }
        boxes = tuple(dict.fromkeys(box for c in conditions for box in c.faults))
        text = "\n".join([*(c.text for c in conditions), *map(_line, sure)])
        return Verdict(scores, boxes=boxes, text=text, detail=detail, cost=cost)

    def _detect_batch(self, images: Sequence[Image.Image]) -> list[list[Detected] | None]:
        shown = [_letterboxed(image) if self.letterbox else image for image in images]
        inputs = self.processor(images=shown, return_tensors="pt").to(self._device)
        inputs["pixel_values"] = inputs["pixel_values"].to(self.dtype)
        outputs = self.model(**inputs)
        least = min(self.threshold, self.counting_threshold)
        sizes = [(image.height, image.width) for image in shown]
        results = self.processor.post_process_object_detection(
            outputs, threshold=least, target_sizes=sizes
        )
        # NaN is above no threshold: without this it would be a picture without objects.
        said = torch.cat([outputs.logits.flatten(1), outputs.pred_boxes.flatten(1)], 1)
        finite = said.isfinite().all(1).tolist()
        return [
            self._objects(result, image, padded) if usable else None
            for result, image, padded, usable in zip(results, images, shown, finite, strict=True)
        ]

    def _objects(
        self, result: dict[str, Any], image: Image.Image, shown: Image.Image
    ) -> list[Detected]:
        left, top = (shown.width - image.width) // 2, (shown.height - image.height) // 2
        columns = (result[name].float().tolist() for name in ("scores", "labels", "boxes"))
        return [
            Detected(self._classes[int(label)], score, _inside(box, left, top, image.size))
            for score, label, box in zip(*columns, strict=True)
            if int(label) in self._classes
        ]


def _load(model: str | Path, revision: str | None, dtype: torch.dtype) -> tuple[Any, Any]:
    from transformers import AutoImageProcessor, AutoModelForObjectDetection

    folder = user_path(model)
    if not folder.is_dir():
        if not HUB_ID.fullmatch(str(model)):
            raise CheckpointError(
                "A detector is a folder or a hub id like 'PekingU/rtdetr_r50vd'; "
                f"{str(model)!r} is none of them."
            )
        folder = download(str(model), ("*.json", "*.safetensors"), revision=revision)
    try:
        # Pickles are not read, since they can run code.
        loaded, report = AutoModelForObjectDetection.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, local_files_only=True,
            output_loading_info=True,
        )  # fmt: skip
        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers raises what its parts raise
        raise CheckpointError(
            f"{model} must be a detector that transformers loads, with safetensors and an image "
            f"processor: {str(error)[:300]}"
        ) from error
    if missing := sorted(report["missing_keys"]) or sorted(report["mismatched_keys"]):
        raise CheckpointError(
            f"{model} must hold all weights of its detector; {len(missing)} are missing or "
            f"mis-shaped, such as {missing[0]}."
        )
    if not hasattr(processor, "post_process_object_detection"):
        raise CheckpointError(
            f"The processor does not fit the model: {type(processor).__name__} of {model} finds no "
            "boxes. Take both from the same checkpoint."
        )
    return loaded.requires_grad_(False).eval(), processor


def _letterboxed(image: Image.Image) -> Image.Image:
    """Returns a picture in the middle of a grey square."""
    side = max(image.size)
    if side**2 > MAX_PIXELS:
        raise InputError(
            f"A letterboxed picture must have at most {math.isqrt(MAX_PIXELS)} pixels a side, this "
            f"one is {image.width} x {image.height}. Make it smaller, or leave letterbox off."
        )
    square = Image.new("RGB", (side, side), _GREY)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def _inside(box: Sequence[float], left: int, top: int, size: tuple[int, int]) -> Box:
    x1, x2 = (min(max(x - left, 0.0), float(size[0])) for x in (box[0], box[2]))
    y1, y2 = (min(max(y - top, 0.0), float(size[1])) for y in (box[1], box[3]))
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def _line(detected: Detected) -> str:
    corners = ", ".join(f"{value:.0f}" for value in detected.box)
    return f"Found: {detected.name} {detected.confidence:.2f} at ({corners})"


def _check_share(name: str, value: float) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 <= value <= 1:
        raise InputError(f"{name} must be a number in [0, 1], got {value!r}.", argument=name)
