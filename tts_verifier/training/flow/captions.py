"""The captions of each step; those that all pass are drawn less often."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from tts_verifier import shapes
from tts_verifier.errors import InputError, RunWarning
from tts_verifier.identity import seed_for
from tts_verifier.recipe.recipe import prompts_of_recipe
from tts_verifier.training.flow.settings import placed_at

LEAST_WEIGHT: Final = 0.05
"""Of a caption, however often all its pictures pass."""
_SHAPES: Final = "shapes"
_SHAPES_CAPTIONS: Final = 6000
_SHAPES_SEED: Final = 7001
"""The held-out captions have the next one."""


class CaptionPool:
    """Chooses the captions of steps, and remembers which of them are easy. Saved with a run.

    Args:
        captions: all that there are.
        count: of a step.
        seed: decides the choice.
        easy_weight: see `FlowSettings`.

    Raises:
        InputError: there are too few captions.
    """

    def __init__(self, captions: Sequence[str], count: int, seed: int, easy_weight: float) -> None:
        if len(captions) < count:
            raise InputError(
                f"A step needs {count} captions, and there are {len(captions)}. Give more, or "
                "lower prompts.",
                argument="captions",
            )
        self.captions, self._count, self._seed = captions, count, seed
        self._easy_weight = easy_weight
        self._passes = np.zeros(len(captions), np.int64)
        self.chosen: list[int] = []

    def choose(self, step: int) -> list[int]:
        """Chooses the captions of a step, by what is known of all of them by now."""
        weights = np.maximum(self._easy_weight ** self._passes.astype(float), LEAST_WEIGHT)
        rng = np.random.default_rng(seed_for(self._seed, "captions", step, "flow"))
        picked = rng.choice(
            len(self.captions), self._count, replace=False, p=weights / weights.sum()
        )
        self.chosen = [int(i) for i in picked]
        return self.chosen

    def note(self, numbers: Sequence[int], passed: Sequence[bool]) -> None:
        """Notes of captions whether all their pictures passed."""
        for number, all_passed in zip(numbers, passed, strict=True):
            self._passes[number] = self._passes[number] + 1 if all_passed else 0

    def state_dict(self) -> dict[str, int]:
        """Returns the counts, the captions that were chosen last, and a digest of all of them."""
        counts = {f"passes {i}": int(n) for i, n in enumerate(self._passes) if n}
        chosen = {f"chosen {place}": i for place, i in enumerate(self.chosen)}
        return counts | chosen | {"digest": self._digest()}

    def _digest(self) -> int:
        return seed_for(0, "\n".join(self.captions), 0, "digest")

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Sets what `state_dict` returned.

        Raises:
            InputError: it is of other captions.
        """
        state = dict(state)
        # Older states have none.
        if state.pop("digest", self._digest()) != self._digest():
            raise InputError(
                "captions must be those that the run was begun with, and they have changed. Give "
                "these again, or another output.",
                argument="captions",
            )
        self._passes[:] = 0
        self.chosen = [0] * sum(name.startswith("chosen") for name in state)
        for name, number in state.items():
            kind, _, place = name.partition(" ")
            if kind == "passes":
                self._passes[int(place)] = number
            else:
                self.chosen[int(place)] = number


def captions_of(value: Any, argument: str, *, held_out: bool = False) -> list[str]:
    """Returns the captions of a config.

    Args:
        value: "shapes", a list, a file, or a file with its columns; None = none.
        argument: the key, for errors.
        held_out: which captions of the miniature world.

    Raises:
        InputError: they cannot be read.
    """
    if value is None:
        return []
    if value == _SHAPES:
        # There are fewer captions that training never sees.
        split: Any = "held_out" if held_out else "train"
        count = _SHAPES_CAPTIONS // 6 if held_out else _SHAPES_CAPTIONS
        return shapes.captions(count, seed=_SHAPES_SEED + held_out, split=split)
    with placed_at(argument):
        return [prompt.text for prompt in prompts_of_recipe(value, Path())]


def warn_of_trained(held: Sequence[str], captions: Sequence[str]) -> None:
    """Warns of held-out captions that are trained too.

    Not to be asked of the miniature world, both of whose splits have single objects, colours and
    counts, as FLOW.md says.
    """
    if known := {*captions} & {*held}:
        warnings.warn(
            f"{len(known)} of {len(held)} held-out captions are trained too, such as "
            f"{min(known)!r:.80}, so evaluations do not say what other captions gain.",
            RunWarning,
            stacklevel=2,
        )
