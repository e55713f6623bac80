"""What the contrastive judges share: pairs are checked, batched and become verdicts."""

from __future__ import annotations

import math
import os
import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import RLock
from typing import Any, Final

import torch
from PIL import Image
from torch import Tensor, nn

from tts_verifier.errors import RunWarning
from tts_verifier.images import ImageLike, as_images
from tts_verifier.interfaces import check_detail, check_pairs
from tts_verifier.loading.devices import check_device, check_dtype
from tts_verifier.loading.memory import release, weight_bytes
from tts_verifier.types import Cost, Detail, Setting, Verdict
from tts_verifier.verifiers.batches import HalvedBatches
from tts_verifier.verifiers.contrastive.texts import Tokens, encode_prompt
from tts_verifier.verifiers.judge_options import NamedCheckpoint

_NO_SCORE: Final = (
    "the network gave no finite score; float32 or bfloat16 as dtype does where float16 does not"
)
"""Why a score is NaN."""
_THREADS: Final = max(min(os.cpu_count() or 1, 16), 1)
"""In which pictures are resized."""


class ContrastiveJudge(NamedCheckpoint):
    """A small network that scores a picture and a prompt in one pass.

    Safe to share between threads: calls wait for each other. A run may move it between devices.

    Args:
        device: to compute on; None = the GPU if there is one.
        dtype: of the weights; None = float32, in which the figures of the official code hold.
        batch_size: pictures at a time; it is halved when memory runs out.

    Raises:
        InputError: an argument is not usable.
    """

    details: tuple[Detail, ...] = ("score",)
    home: str | None = None
    """None: it computes where its weights are."""

    def __init__(
        self,
        *,
        device: str | int | None = None,
        dtype: str | None = None,
        batch_size: int = 32,
    ) -> None:
        found = check_device(device)
        if found is None:
            found = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = check_dtype(dtype) or torch.float32
        self.batches = HalvedBatches(batch_size)
        self._device = found
        self._lock = RLock()
        self._warned = False
        self._modules: list[nn.Module] = []
        self._tokenizer: Any = None
        self._positions = 0

    def _set_parts(
        self,
        *modules: nn.Module,
        settings: Mapping[str, Setting],
        tokenizer: Any = None,
        positions: int = 0,
    ) -> None:
        """Takes over what a subclass has loaded: networks, and how prompts become tokens.

        Without a tokenizer the judge reads no prompts.
        """
        self._modules = [module.to(self._device) for module in modules]
        self._tokenizer, self._positions = tokenizer, positions
        self.settings = {
            **settings,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": self._device.type,
        }

    @property
    def device(self) -> str:
        """The device that the weights are on."""
        return str(self._device)

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return weight_bytes(self._modules)

    def to(self, device: str) -> ContrastiveJudge:
        """Moves the weights to a device, after the calls that are under way."""
        with self._lock:
            old, self._device = self.device, torch.device(device)
            self._modules = [module.to(self._device) for module in self._modules]
            release(old)
        return self

    def verify(
        self,
        images: Sequence[ImageLike],
        prompts: Sequence[str],
        *,
        detail: Detail = "diagnose",
    ) -> list[Verdict]:
        """Returns the verdict on image i for prompt i; `detail` makes no difference.

        The verdict's text says what of a prompt was cut, and is empty if nothing was.

        Raises:
            InputError: an image or a prompt is not usable, or the lengths differ.
            torch.OutOfMemoryError: memory does not suffice for a single picture.
        """
        check_detail(detail)
        pil_images = as_images(images)
        listed = check_pairs(pil_images, prompts)
        tokens = {prompt: self._encode(prompt) for prompt in dict.fromkeys(listed)}
        if notes := [t.note for t in tokens.values() if t.note]:
            self._warn_once(notes[0])
        rows = [(image, tokens[prompt]) for image, prompt in zip(pil_images, listed, strict=True)]
        with self._lock, torch.inference_mode():
            scores = self.batches.run(self._scores_of_batch, rows, self.device)
        return [
            Verdict(
                by_name,
                text=tokens[prompt].note,
                detail=detail,
                cost=Cost(verifier_calls=1),
                error="" if all(map(math.isfinite, by_name.values())) else _NO_SCORE,
            )
            for by_name, prompt in zip(self._finish(scores, listed), listed, strict=True)
        ]

    @abstractmethod
    def _prepare(self, image: Image.Image) -> Tensor:
        """Returns an RGB picture as its network reads it: float32 (3, side, side)."""

    @abstractmethod
    def _scores(self, pixels: Tensor, tokens: Sequence[Tokens]) -> dict[str, Tensor]:
        """Returns the scores of a batch by name, each (N,), from pixels (N, 3, side, side)."""

    def _scores_of_batch(
        self, rows: Sequence[tuple[Image.Image, Tokens]]
    ) -> list[dict[str, float]]:
        # Resizing takes longer than a GPU's forward pass, and its libraries release the lock.
        with ThreadPoolExecutor(min(len(rows), _THREADS)) as pool:
            pixels = torch.stack(list(pool.map(self._prepare, (image for image, _ in rows))))
        by_name = self._scores(pixels.to(self._device, self.dtype), [tokens for _, tokens in rows])
        columns = {name: values.float().tolist() for name, values in by_name.items()}
        return [{name: column[i] for name, column in columns.items()} for i in range(len(rows))]

    def _finish(
        self, scores: list[dict[str, float]], prompts: Sequence[str]
    ) -> list[dict[str, float]]:
        """Returns the scores of a call; a subclass may add some that compare its pictures."""
        return scores

    def _encode(self, prompt: str) -> Tokens:
        if self._tokenizer is None:
            return Tokens([], 0, "")
        return encode_prompt(self._tokenizer, prompt, self._positions)

    def _warn_once(self, note: str) -> None:
        if not self._warned:
            self._warned = True
            # At whoever called verify.
            warnings.warn(f"{note} Verdicts say so as their text.", RunWarning, stacklevel=3)
