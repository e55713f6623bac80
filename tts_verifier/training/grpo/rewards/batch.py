"""Completions with their columns, and the rewards of their scores, maps and boxes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, cast, get_args

import numpy as np
from torch import Tensor

from tts_verifier.errors import InputError
from tts_verifier.training.grpo.rewards.columns import (
    TrueMap,
    as_items,
    as_map,
    column_of,
    true_maps,
    true_scores,
)
from tts_verifier.training.grpo.rewards.completions import (
    Answers,
    Boxes,
    Reals,
    read_answers,
    read_boxes,
    texts_of,
)
from tts_verifier.training.grpo.rewards.terms import (
    MAP_FACTORS,
    Flags,
    Scaling,
    inside_boxes,
    map_errors,
    map_rewards,
    mean_overlaps,
    score_rewards,
    with_edge_rules,
)
from tts_verifier.types.score_names import SCORE_NAMES


class RewardBatch:
    """N completions; each part is read and checked once, when a reward first needs it.

    Args:
        prompts: not read; one for each completion, or None.
        completions: texts or lists of messages.
        columns: see `official`; those that no reward asks for are ignored.
        scaling: "code" or "paper".

    Raises:
        InputError: an argument, or later a column that is needed, cannot be used.
    """

    def __init__(
        self, prompts: Any, completions: Any, columns: Mapping[str, Any], scaling: str
    ) -> None:
        if scaling not in get_args(Scaling):
            raise InputError(f"The scaling is 'code' or 'paper', got {scaling!r}.")
        self.scaling = cast(Scaling, scaling)
        self.texts = texts_of(as_items(completions, "completions"))
        self.columns = columns
        if prompts is not None:
            column_of({"prompts": prompts}, "prompts", len(self.texts))
        self._truths: dict[str, list[TrueMap]] = {}
        self._inside: dict[str, tuple[Reals, Reals]] = {}

    @cached_property
    def answers(self) -> Answers:
        """What the answers say."""
        return read_answers(self.texts)

    def score(self, name: str) -> Reals:
        """Returns the rewards of one of SCORE_NAMES, (N,)."""
        return score_rewards(self.answers, self._scores, SCORE_NAMES.index(name), self.scaling)

    def heatmap(self, kind: str) -> Reals:
        """Returns the rewards of the predicted maps of a kind of MAP_FACTORS, (N,)."""
        errors = map_errors(self._predicted[kind], self._true_maps(kind), f"predicted_{kind}")
        return map_rewards(errors, kind, self.scaling)

    def uniqueness(self, kind: str) -> Reals:
        """Returns the rewards for boxes that do not overlap, (N,)."""
        return self._with_edge_rules(1 - self._overlaps, kind)

    def compactness(self, kind: str) -> Reals:
        """Returns the rewards for boxes on marked places, (N,)."""
        return self._with_edge_rules(self._inside_boxes(kind)[0], kind)

    def coverage(self, kind: str) -> Reals:
        """Returns the rewards for marked places in boxes, (N,)."""
        return self._with_edge_rules(self._inside_boxes(kind)[1], kind)

    @cached_property
    def _scores(self) -> Reals:
        return true_scores(self._column("scores"))

    @cached_property
    def _boxes(self) -> Boxes:
        return read_boxes(self.texts)

    @cached_property
    def _overlaps(self) -> Reals:
        return mean_overlaps(self._boxes)

    @cached_property
    def _predicted(self) -> dict[str, list[Tensor | None]]:
        """The rollout's maps by kind; None in both where either is absent."""
        columns = {kind: self._column(f"predicted_{kind}") for kind in MAP_FACTORS}
        absent = [
            any(entry is None for entry in pair) for pair in zip(*columns.values(), strict=True)
        ]
        return {
            kind: [
                None if absent[row] else as_map(entry, f"predicted_{kind}[{row}]")
                for row, entry in enumerate(column)
            ]
            for kind, column in columns.items()
        }

    def _true_maps(self, kind: str) -> list[TrueMap]:
        if kind not in self._truths:
            name = f"{kind}_map"
            self._truths[kind] = true_maps(self._column(name), name)
        return self._truths[kind]

    def _inside_boxes(self, kind: str) -> tuple[Reals, Reals]:
        if kind not in self._inside:
            self._inside[kind] = inside_boxes(self._boxes, self._true_maps(kind))
        return self._inside[kind]

    def _with_edge_rules(self, values: Reals, kind: str) -> Reals:
        marked: Flags = np.array([truth.total > 0 for truth in self._true_maps(kind)], bool)
        return with_edge_rules(values, marked, self._boxes.counts > 0)

    def _column(self, name: str) -> list[Any]:
        return column_of(self.columns, name, len(self.texts))
