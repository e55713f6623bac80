"""The decoding engine's inputs and outputs as plain data: limits, requests and replies.

This module imports neither torch nor the engine. The text modules (prompts, answer templates) can
therefore describe a generation without loading a deep-learning library. All values are immutable
and may be shared between threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tts_verifier.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor


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


@dataclass(frozen=True, slots=True, eq=False)
class GenerationRequest:
    """One image and its conversation."""

    ids: Sequence[int]
    """Token ids of the prompt, with one image token for each merged token of the image."""
    patches: NDArray[np.float32]
    """The image as the processor gives it, (patches, values a patch)."""
    grid: tuple[int, int]
    """Rows and columns of patches."""


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
