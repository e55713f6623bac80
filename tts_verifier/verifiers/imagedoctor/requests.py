"""The decoding engine's inputs and outputs as plain data: limits, requests and replies.

This module imports neither torch nor the engine. The text modules (prompts, answer templates) can
therefore describe a generation without loading a deep-learning library. All values are immutable
and may be shared between threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Final

from tts_verifier.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

MAX_SEED: Final = 2**64 - 1
"""The largest seed of a request."""
MIN_TEMPERATURE: Final = 1e-6
"""Below it float32 could not hold the logits that it divides."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn. The order is transformers': penalty, temperature, top-k, top-p.

    Raises:
        InputError: a value is out of its range.
    """

    temperature: float = 1.0
    """Divides the logits, at least `MIN_TEMPERATURE`; 0 = the most probable token, no draw."""
    top_k: int = 0
    """Draws among the k most probable tokens, and those that equal the last one; 0 = all."""
    top_p: float = 1.0
    """Draws among the fewest most probable tokens whose probabilities, after top-k, add up to
    this, and those that equal the last one; 1 = all (Holtzman et al. 2020, section 3.1)."""

    def __post_init__(self) -> None:
        rules: tuple[tuple[str, str, Callable[[Any], bool]], ...] = (
            (
                "temperature",
                f"0 or a finite number of at least {MIN_TEMPERATURE}",
                lambda t: t == 0 or MIN_TEMPERATURE <= t < math.inf,
            ),
            ("top_k", "a whole number of at least 0", lambda k: _is_whole(k) and k >= 0),
            ("top_p", "a number above 0 and at most 1", lambda p: 0 < p <= 1),
        )
        for name, rule, keeps in rules:
            value = getattr(self, name)
            if not isinstance(value, Real) or isinstance(value, bool) or not keeps(value):
                raise InputError(f"{name} must be {rule}, got {value!r}.", argument=name)


MAX_PROMPT_CHARACTERS: Final = 20_000
"""Longer prompts are refused; otherwise one of them could fill the memory."""


@dataclass(frozen=True, slots=True)
class ForcedStep:
    """A decode step that chooses one token and then appends tokens that are already known."""

    choices: tuple[int, ...] = ()
    """The token ids to choose among; empty = the whole vocabulary."""
    forced: tuple[int, ...] = ()
    """The token ids that follow the chosen one; the model reads them in the same step."""


@dataclass(frozen=True, slots=True)
class GenerationLimits:
    """How every reply of an engine is generated and when it stops."""

    max_new_tokens: int
    """The most tokens that a reply may have, its end token included."""
    eos: tuple[int, ...]
    """Token ids that end a reply."""
    penalty: float = 1.0
    """Repetition penalty, 1 = none (Keskar et al. 2019, CTRL, section 4.1)."""
    watched_groups: tuple[tuple[int, ...], ...] = ()
    """Groups of token ids, such as the ten digits. The engine records the probabilities within
    each group, normalised over that group alone, wherever it chooses a token."""
    forced_steps: tuple[ForcedStep, ...] = ()
    """The steps that make up every reply, if its form is known beforehand (see
    `text.answer_template`); a reply ends with the last one. Empty = free decoding."""
    sampling: Sampling | None = None
    """How tokens are drawn, with the seed of each request; None = greedy."""
    log_probs: bool = False
    """Whether the log-probability of each chosen token is recorded."""

    @property
    def temperature(self) -> float:
        """The temperature that tokens are drawn at; 0 = greedy."""
        return 0.0 if self.sampling is None else self.sampling.temperature


@dataclass(frozen=True, slots=True, eq=False)
class GenerationRequest:
    """One image and its conversation."""

    ids: Sequence[int]
    """Token ids of the prompt, with one image token for each merged token of the image."""
    patches: NDArray[np.float32] | NDArray[np.uint8]
    """The image as the processor gives it: float32 (patches, values a patch), or with
    `level_values` the levels of one frame, uint8 (patches, 3 * patch * patch)."""
    grid: tuple[int, int]
    """Rows and columns of patches."""
    seed: int = 0
    """Decides, with the limits' `sampling`, which tokens are drawn; the same seed gives the same
    reply in any batch. From 0 to `MAX_SEED`; greedy replies do not depend on it."""
    level_values: NDArray[np.float32] | None = None
    """(3, 256), the value of each level of a channel. An engine looks them up on its device, which
    spares the host most of its work for an image."""

    def __post_init__(self) -> None:
        if not _is_whole(self.seed) or not 0 <= self.seed <= MAX_SEED:
            raise InputError(
                f"A seed must be a whole number from 0 to {MAX_SEED}, got {self.seed!r}.",
                argument="seed",
            )

    @property
    def prompt_key(self) -> tuple[int, int, tuple[int, ...]]:
        """Equal for requests of one prompt and the same arrays, which are prefilled once."""
        return id(self.patches), id(self.level_values), tuple(self.ids)


@dataclass(frozen=True, slots=True, eq=False)
class GeneratedReply:
    """One reply, with what the heatmap head and the scores need of it."""

    ids: list[int]
    """Token ids, without the end token."""
    ended: bool
    """Whether an end token was generated; False = `max_new_tokens` cut the reply off."""
    map_states: Tensor
    """(2, H), the states after the final norm that predict the first misalignment token and the
    first artifact token; a row is valid where `has_map` is True. On the model's device."""
    has_map: tuple[bool, bool]
    """Whether the reply has a misalignment token and an artifact token."""
    visual: Tensor
    """(merged tokens, H), the image's merged visual features, on the model's device."""
    probs: NDArray[np.float32]
    """(tokens, W) in [0, 1], for each token the probabilities of the W watched tokens at the
    step that chose it."""
    end: int | None = None
    """The end token; None if none was generated."""
    log_probs: NDArray[np.float32] | None = None
    """(tokens,), and one more for an end token: the log-probability of each token that was chosen,
    NaN at forced ones. It is that of the model at the temperature (1 if greedy), over the whole
    vocabulary, **before** penalty, top-k and top-p: what a teacher-forced pass gives as
    `log_softmax(logits / temperature)`, and what policy gradients need. None without
    `GenerationLimits.log_probs`."""


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_prompt(index: int, prompt: object) -> str:
    """Returns the prompt, or raises InputError if it cannot be one."""
    if not isinstance(prompt, str):
        raise InputError(f"Prompt {index} must be a string, got {type(prompt).__name__}.")
    if not prompt.strip():
        raise InputError(f"Prompt {index} must say what the image should show; it is empty.")
    if len(prompt) > MAX_PROMPT_CHARACTERS:
        raise InputError(
            f"Prompt {index} must have at most {MAX_PROMPT_CHARACTERS} characters; "
            f"it has {len(prompt)}."
        )
    # A lone surrogate is possible in a str, but not in the UTF-8 that the tokenizer takes.
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"Prompt {index} must be valid Unicode: {error.reason}.") from None
    return prompt
