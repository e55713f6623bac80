"""A loaded model with its processor: images and questions in, a batch of tensors through it."""

from __future__ import annotations

import copy
import gc
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from threading import RLock
from typing import Any, Final, NamedTuple, TypeVar

import torch
from PIL import Image
from torch import Tensor

from tts_verifier.errors import CheckpointError, InputError, RunWarning, is_out_of_memory
from tts_verifier.loading.devices import check_device
from tts_verifier.loading.memory import release, weight_bytes
from tts_verifier.verifiers.imagedoctor.image.prefetch import map_ahead
from tts_verifier.verifiers.imagedoctor.ops.transfer import to_device
from tts_verifier.verifiers.vision_language.inference.attention import use_attention_by_length
from tts_verifier.verifiers.vision_language.inference.processor import as_plain_text, special_names

GivenT = TypeVar("GivenT")

ON_GPU: Final = 32
ON_CPU: Final = 4
"""Questions at a time, unless the user says another number; halved when memory runs out."""
_AHEAD: Final = 16
"""Batches that are prepared for a GPU before it needs them."""
FIRST: Final = "Picture 1: "
SECOND: Final = "\nPicture 2: "
"""What stands before two images; the first as Qwen's chat template writes it."""
_UNDER_WAY: Final = 2
"""Batches that a GPU is given before the first of them is waited for."""


class Question(NamedTuple):
    """What is asked about an image."""

    image: Image.Image
    """RGB, of any size."""
    text: str
    """The user's turn; `QuestionEngine.plain` has made prompts in it harmless."""
    answers: tuple[int, ...] = ()
    """Ids of the first tokens of its right answers; see `replies.answer_probabilities`."""
    before: str = ""
    """What stands before the image."""
    second: Image.Image | None = None
    """A further image, which the text compares with the first."""

    @property
    def turn(self) -> list[dict[str, Any]]:
        """The user's turn, as chat templates take it."""
        before = [{"type": "text", "text": self.before}] if self.before else []
        content = [*before, {"type": "image"}]
        if self.second is not None:
            content += [{"type": "text", "text": SECOND}, {"type": "image"}]
        content.append({"type": "text", "text": self.text})
        return [{"role": "user", "content": content}]

    @property
    def images(self) -> list[Image.Image]:
        """The images, in the order of the turn."""
        return [self.image] if self.second is None else [self.image, self.second]


class QuestionEngine:
    """Sends questions through a model in batches, padded on the left.

    Safe to share between threads and verifiers: calls wait for each other. `tokenizer` encodes
    without padding and decodes, and may be used at any time.

    Args:
        model: an image-text-to-text model of transformers, in eval mode.
        processor: from `processor.load_processor`.
        batch_size: questions at a time; None = `ON_GPU` or `ON_CPU`, halved when memory runs out.
        home: the device that a run moves the weights to, if there was no room for them; see
            `interfaces.Movable`.
        probe: a text that the model takes, for the test image.

    Raises:
        CheckpointError: the processor does not fit the model: a test image fails.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        batch_size: int | None = None,
        home: str | None = None,
        probe: str = "?",
    ) -> None:
        self.model, self.processor, self.home = model, processor, home
        # A tokenizer changes while it encodes with padding, which several threads do here. This
        # one encodes without, and so never changes.
        self.tokenizer = copy.deepcopy(processor.tokenizer)
        use_attention_by_length(model)
        self._names = special_names(processor)
        self._lock = RLock()
        on_gpu = (home or self.device.type).startswith("cuda")
        self.limit = batch_size or (ON_GPU if on_gpu else ON_CPU)
        text_config = model.config.get_text_config()
        self._longest: int | None = getattr(text_config, "max_position_embeddings", None)
        self._check_fit(probe)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return weight_bytes([self.model])

    def to(self, device: torch.device | str) -> None:
        """Moves the weights, after the call that is under way.

        Raises:
            InputError: this machine has no such device.
        """
        check_device(device)
        with self._lock:
            before = str(self.device)
            self.model.to(device)
            if str(self.device) != before:
                release(before)

    def plain(self, prompt: str) -> str:
        """Returns a prompt in which names of special tokens are only text."""
        return as_plain_text(prompt, self._names)

    def each(
        self,
        questions: Sequence[Question],
        answer: Callable[[Any, Sequence[Question]], list[GivenT]],
    ) -> list[GivenT]:
        """Returns an answer to each question, in order.

        Args:
            questions: any number of them.
            answer: gets the tensors of some questions, on the host (see `upload`), and these. What
                it returns may still be under way on a GPU.

        Raises:
            InputError: a question with its image has more tokens than the model takes, or the
                processor refuses an image.
            RuntimeError: memory does not suffice for a single question.
        """
        with self._lock, torch.inference_mode():
            chunks = [questions[i : i + self.limit] for i in range(0, len(questions), self.limit)]
            inputs = map_ahead(self._inputs, chunks, self.device, ahead=_AHEAD)
            found: list[GivenT] = []
            ends: deque[torch.cuda.Event] = deque()
            for chunk, tensors in zip(chunks, inputs, strict=True):
                if len(ends) == _UNDER_WAY:
                    ends.popleft().synchronize()
                found += self._fitting(chunk, tensors, answer)
                if self.device.type == "cuda":
                    ends.append(torch.cuda.current_stream(self.device).record_event())
            return found

    def upload(self, tensors: Any) -> dict[str, Any]:
        """Returns what a processor made, tensors or lists of them, on the model's device.

        It does not wait for a GPU.
        """
        return {name: _on_device(values, self.device) for name, values in tensors.items()}

    def _fitting(
        self,
        chunk: Sequence[Question],
        tensors: Any,
        answer: Callable[[Any, Sequence[Question]], list[GivenT]],
    ) -> list[GivenT]:
        """Answers questions at once, or half of them at a time if memory runs out."""
        if len(chunk) <= self.limit:
            try:
                return answer(tensors, chunk)
            except RuntimeError as error:
                if len(chunk) == 1 or not is_out_of_memory(error):
                    raise
            # Not in the exception handler: its traceback keeps the batch's tensors alive.
            self._halve(len(chunk))
        middle = -(-len(chunk) // 2)
        halves = (chunk[:middle], chunk[middle:])
        return [a for half in halves for a in self._fitting(half, self._inputs(half), answer)]

    def _halve(self, size: int) -> None:
        self.limit = -(-size // 2)
        gc.collect()
        release(str(self.device))
        warnings.warn(
            f"Memory ran out; from now on {self.limit} questions are asked at a time.",
            RunWarning,
            stacklevel=6,
        )

    def _inputs(self, questions: Sequence[Question]) -> Any:
        """Returns the tensors of some questions; called in several threads at a time."""
        texts = [
            self.processor.apply_chat_template(
                question.turn, tokenize=False, add_generation_prompt=True
            )
            for question in questions
        ]
        # A list for each row: some families take a flat one for the images of a single row.
        images = [question.images for question in questions]
        try:
            inputs = self.processor(text=texts, images=images, padding=True, return_tensors="pt")
        except ValueError as error:
            sizes = ", ".join(f"{q.image.width} x {q.image.height}" for q in questions[:4])
            raise InputError(
                f"The model's processor must accept the images (of {sizes} … pixels), it says: "
                f"{' '.join(str(error).split())[:200]}"
            ) from error
        length = inputs["input_ids"].shape[1]
        if self._longest is not None and length > self._longest:
            raise InputError(
                f"A prompt with its image must have at most {self._longest} tokens for this model, "
                f"this one has {length}. Shorten it; nothing is cut in silence."
            )
        # As the model would do, but here it takes half the way to the GPU.
        return inputs.to(self.model.dtype)

    def _check_fit(self, probe: str) -> None:
        """Sends a small image through processor and model."""
        question = Question(Image.new("RGB", (56, 56), "gray"), probe)
        try:
            self.each([question], lambda tensors, _: [self.model(**self.upload(tensors))])
        except (ValueError, RuntimeError, TypeError, IndexError, KeyError) as error:
            if isinstance(error, RuntimeError) and is_out_of_memory(error):
                raise
            raise CheckpointError(
                f"The processor ({type(self.processor).__name__}) must fit its model "
                f"({type(self.model).__name__}), but a test image fails: "
                f"{' '.join(str(error).split())[:300]}. Take both from the same checkpoint."
            ) from error


def _on_device(values: Any, device: torch.device) -> Any:
    # Some families give a tensor for each image, where sizes differ.
    if isinstance(values, list):
        return [_on_device(value, device) for value in values]
    return to_device(values, device) if isinstance(values, Tensor) else values
