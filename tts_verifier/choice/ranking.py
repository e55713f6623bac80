"""A ranking of images, as `rerank` returns it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

from PIL import Image

from tts_verifier.choice.subset import (
    DIVERSITY,
    Embed,
    check_choice,
    choose_subset,
    layout_and_colour,
    places,
)
from tts_verifier.images.display import card
from tts_verifier.types import Verdict
from tts_verifier.types.score_names import written_scores


@dataclass(frozen=True, slots=True, eq=False)
class Ranked:
    """One image of a ranking."""

    index: int
    """Its place in the input, from 0."""
    image: Image.Image
    """RGB."""
    objective: float
    """The number that it is ranked by; NaN if the verdict has no usable score."""
    verdict: Verdict
    """What the verifier says of it."""

    def _repr_html_(self) -> str:
        """Shows the image in a notebook, beside its heatmaps."""
        return _card_of_image(self)


class Ranking(Sequence[Ranked]):
    """Images in order, best first; an objective of NaN ranks last.

    Safe to share between threads: it is immutable.
    """

    def __init__(self, items: Sequence[Ranked]) -> None:
        self._items = tuple(items)

    @overload
    def __getitem__(self, index: int) -> Ranked: ...
    @overload
    def __getitem__(self, index: slice) -> Ranking: ...
    def __getitem__(self, index: int | slice) -> Ranked | Ranking:
        if isinstance(index, slice):
            return Ranking(self._items[index])
        return self._items[index]

    def __len__(self) -> int:
        return len(self._items)

    @property
    def best(self) -> Ranked:
        """The first item; IndexError if the ranking is empty."""
        return self._items[0]

    def subset(
        self, k: int, *, diversity: float = DIVERSITY, embed: Embed = layout_and_colour
    ) -> Ranking:
        """Returns k images that are good and differ from one another, the best one first.

        Args:
            k: how many; where fewer have a usable score, these are returned.
            diversity: in [0, 1]; 0 = the k best, 1 = the best one and what differs most from it.
            embed: RGB images -> (n, d) features by whose distances they differ, such as an
                embedding of CLIP or DINO; by default layout and colour.

        Raises:
            InputError: a number is out of range, or the features are not usable.
        """
        check_choice(k, diversity, embed)
        values = places([(item.verdict.detail, item.objective) for item in self])
        features = embed([item.image for item in self])
        return Ranking([self[i] for i in choose_subset(values, features, k, diversity=diversity)])

    def __repr__(self) -> str:
        rows = ", ".join(f"{item.index}: {item.objective:.3f}" for item in self._items)
        return f"Ranking({rows})"

    def _repr_html_(self) -> str:
        """Shows the ranking in a notebook: every image beside its heatmaps, best first."""
        return "".join(_card_of_image(item, f"{place}. ") for place, item in enumerate(self, 1))


def _card_of_image(item: Ranked, place: str = "") -> str:
    return card(
        f"{place}image {item.index} · {item.objective:.3f}",
        [item.image, item.verdict.overlay(item.image)],
        written_scores(item.verdict.scores),
        item.verdict.text,
    )
