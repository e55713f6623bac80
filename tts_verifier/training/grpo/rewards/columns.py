"""Checks the columns that the rewards compare completions with: true scores, true and read maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from tts_verifier.errors import InputError, suggestion
from tts_verifier.training.grpo.rewards.completions import Reals
from tts_verifier.training.grpo.rewards.enlarging import enlarged_sum
from tts_verifier.types.score_names import SCORE_NAMES

_NUMBERS: Final = (float, int, np.floating, np.integer)


@dataclass(frozen=True, slots=True, eq=False)
class TrueMap:
    """A checked map of the truth."""

    grid: Tensor
    """float32 (H, W) in [0, 1], on the CPU."""
    total: float
    """The sum over SIDE x SIDE pixels; 0 = nothing is marked."""


def column_of(columns: Mapping[str, Any], name: str, count: int) -> list[Any]:
    """Returns a column's entries, one for each completion.

    Raises:
        InputError: the column is missing, is no list, or has another length.
    """
    if name not in columns:
        raise InputError(f"A reward needs the column {name!r}. {suggestion(name, columns)}")
    entries = as_items(columns[name], name)
    if len(entries) != count:
        raise InputError(
            f"A column has one entry for each completion; {name!r} has {len(entries)} for {count} "
            "completions. Repeat it for the completions of one prompt."
        )
    return entries


def as_items(values: Any, name: str) -> list[Any]:
    """Returns the items of a list, a tuple, an array or a tensor.

    Raises:
        InputError: it is something else; a text would be one for each letter.
    """
    if isinstance(values, (list, tuple)) or getattr(values, "ndim", 0) > 0:
        return list(values)
    raise InputError(
        f"A list of {name} is needed, got {type(values).__name__}: {str(values)[:60]!r}. Put it "
        "into a list: [...]."
    )


def true_scores(entries: Sequence[Any]) -> Reals:
    """Returns the true scores as (N, 4), in the order of SCORE_NAMES.

    Args:
        entries: each a mapping with SCORE_NAMES, or four numbers in that order. An object that
            occurs several times is checked once.

    Raises:
        InputError: a score is missing, no number, NaN or outside [0, 1].
    """
    checked: dict[int, list[float]] = {}
    for at, entry in enumerate(entries):
        if id(entry) not in checked:
            checked[id(entry)] = _four_scores(entry, at)
    return np.array([checked[id(entry)] for entry in entries], np.float64).reshape(-1, 4)


def true_maps(entries: Sequence[Any], name: str) -> list[TrueMap]:
    """Checks the true maps; an object that occurs several times is checked once.

    Args:
        entries: each float or bool (H, W) in [0, 1]: an array, a tensor or nested lists.
        name: of the column, for messages.

    Raises:
        InputError: an entry is no such map.
    """
    checked: dict[int, TrueMap] = {}
    for at, entry in enumerate(entries):
        if id(entry) not in checked:
            grid = as_map(entry, f"{name}[{at}]").cpu()
            low, high = (float(value) for value in grid.aminmax())
            check_range(low, high, f"{name}[{at}]")
            checked[id(entry)] = TrueMap(grid, enlarged_sum(grid))
    return [checked[id(entry)] for entry in entries]


def as_map(value: Any, place: str) -> Tensor:
    """Returns a map as a float32 tensor (H, W) on its own device. Its range is not checked.

    Raises:
        InputError: it has another shape, or its numbers are neither float nor bool.
    """
    found = value.detach() if isinstance(value, Tensor) else _as_tensor(value, place)
    if not (found.is_floating_point() or found.dtype is torch.bool):
        kind = str(found.dtype).removeprefix("torch.")
        raise InputError(
            f"A map must hold floats in [0, 1]; {place} holds {kind}. Divide bytes by 255."
        )
    if found.ndim == 3 and len(found) == 1:
        found = found[0]
    if found.ndim != 2 or not found.numel():
        raise InputError(
            f"A map must have the shape (H, W), at least one pixel; {place} has "
            f"{tuple(found.shape)}. Pass one map for each completion."
        )
    return found.float()


def check_range(low: float, high: float, place: str) -> None:
    """Refuses a map whose smallest and largest value are not in [0, 1].

    Raises:
        InputError: they are not, or the map has a NaN.
    """
    # Written so that NaN, with which every comparison is false, is refused too.
    if not (low >= 0 and high <= 1):
        raise InputError(
            f"A map must stay in [0, 1], without NaN; {place} has values in [{low:g}, {high:g}]. "
            "Apply the sigmoid to logits, divide bytes by 255."
        )


def _as_tensor(value: Any, place: str) -> Tensor:
    try:
        array = np.asarray(value)
        # Copies only what torch cannot share: what is read-only, reversed or in other bytes.
        kind = np.float32 if array.dtype.kind == "f" else None
        return torch.from_numpy(np.require(array, kind, ["C", "W"]))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"A map must be an array, a tensor or nested lists of floats (H, W); {place} is "
            f"{type(value).__name__}: {error}."
        ) from error


def _four_scores(entry: Any, at: int) -> list[float]:
    if isinstance(entry, Mapping):
        missing = [name for name in SCORE_NAMES if name not in entry]
        if missing:
            raise InputError(
                f"True scores need {', '.join(SCORE_NAMES)}; scores[{at}] lacks "
                f"{', '.join(missing)}. {suggestion(missing[0], map(str, entry))}"
            )
        values = [entry[name] for name in SCORE_NAMES]
    else:
        values = as_items(entry.tolist() if hasattr(entry, "tolist") else entry, f"scores[{at}]")
    if len(values) != 4 or not all(_is_score(value) for value in values):
        raise InputError(
            f"True scores are four numbers in [0, 1] ({', '.join(SCORE_NAMES)}); scores[{at}] is "
            f"{str(values)[:80]}. Leave a picture without ratings out."
        )
    return [float(value) for value in values]


def _is_score(value: Any) -> bool:
    return isinstance(value, _NUMBERS) and not isinstance(value, bool) and bool(0 <= value <= 1)
