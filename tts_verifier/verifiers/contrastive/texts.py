"""Prompts as tokens of a fixed number, and what of a prompt is cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

_LONGEST_NOTE: Final = 200
"""Characters that a note quotes of what is cut; every picture of the prompt has the note."""


class Tokens(NamedTuple):
    """A prompt as a text tower reads it."""

    ids: list[int]
    """Token ids, one for each position of the tower; padded at the end."""
    length: int
    """Positions that are no padding."""
    note: str
    """What is cut; empty if nothing is."""


def encode_prompt(tokenizer: Any, prompt: str, positions: int) -> Tokens:
    """Encodes a prompt into so many tokens; a longer one loses its end, as in the official code.

    Args:
        tokenizer: a tokenizer of transformers that adds one token at each end of a text.
        prompt: the text.
        positions: of the text tower, such as 77.
    """
    # Names of special tokens in a prompt are only text: one would end what the judge reads.
    encoded = tokenizer(
        prompt, return_offsets_mapping=True, verbose=False, split_special_tokens=True
    )
    ids, note = list(encoded["input_ids"]), ""
    if len(ids) > positions:
        # The last position is for the token that ends a text.
        cut = prompt[encoded["offset_mapping"][positions - 2][1] :].strip()
        shown = repr(cut) if len(cut) <= _LONGEST_NOTE else f"{cut[:_LONGEST_NOTE].rstrip()!r} …"
        note = (
            f"The prompt has {len(ids)} tokens and the judge reads {positions}; it does not see "
            f"{shown}."
        )
        ids = [*ids[: positions - 1], ids[-1]]
    padding = [tokenizer.pad_token_id] * (positions - len(ids))
    return Tokens(ids + padding, len(ids), note)


def ids_and_mask(tokens: Sequence[Tokens], device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns the ids of several prompts, int64 (N, L), and 1 where they are no padding."""
    ids = torch.tensor([t.ids for t in tokens], device=device)
    lengths = torch.tensor([[t.length] for t in tokens], device=device)
    return ids, (torch.arange(ids.shape[1], device=device) < lengths).long()
