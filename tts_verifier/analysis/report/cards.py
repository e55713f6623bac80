"""One trial as the page shows it, and all trials of one prompt."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tts_verifier.analysis.report.sources import ShownImage, Source, shown_image
from tts_verifier.choice.objective import before_look, choose
from tts_verifier.choice.summary import first_draw
from tts_verifier.log.storage.files import path_of_mask
from tts_verifier.types import (
    Compare,
    Continue,
    Draw,
    Look,
    LowBand,
    Near,
    Pick,
    Prompt,
    Repaint,
    Rewrite,
    Trial,
)
from tts_verifier.types.score_names import written_scores


@dataclass(frozen=True, slots=True)
class ScoreLine:
    """One score of the first draw beside that of the chosen image."""

    name: str
    first: float
    """NaN if it is not known."""
    chosen: float
    """NaN if it is not known."""

    @property
    def change(self) -> float:
        """Chosen minus first."""
        return self.chosen - self.first


@dataclass(frozen=True, slots=True)
class Card:
    """One trial as the page shows it."""

    anchor: str
    """Its id in the page."""
    number: int
    """Its place among the trials of the prompt, from 1."""
    trial: Trial
    image: ShownImage | None
    origin: str
    """How it was made, in words."""
    parent: Card | None = None
    """The card of the trial that it was made from."""
    mask: str = ""
    """The address of the mask of a repaint; else empty."""
    chosen: bool = False
    first: bool = False
    """True for the first finished draw."""
    looked_at: bool = False
    """True if a later, fuller look at the same image counts in its place."""

    @property
    def usable(self) -> bool:
        """True if it may be chosen."""
        return self.trial.finished and not math.isnan(self.trial.objective)


@dataclass(frozen=True, slots=True)
class PromptView:
    """One prompt as the page shows it."""

    anchor: str
    """Its id in the page."""
    prompt: Prompt
    first: Card | None
    """As in `PromptSummary`."""
    chosen: Card | None
    """As in `PromptSummary`."""
    cards: tuple[Card, ...]
    """Best first; trials that may not be chosen follow in the order of the log."""
    lines: tuple[ScoreLine, ...]
    """Empty without a first draw or a choice; the objective comes first. The numbers of an image
    that was looked at later are its quick ones, as those of the first draw are."""

    @property
    def gain(self) -> float:
        """The chosen image's objective minus the first draw's; NaN if one is not known."""
        return self.lines[0].change if self.lines else math.nan


@dataclass(frozen=True, slots=True)
class PromptRow:
    """One prompt as tables and comparisons show it; unlike its view, it takes little memory."""

    anchor: str
    """As in `PromptView`."""
    page: int
    """The number of the page that has the prompt."""
    prompt: Prompt
    first: Pick | None
    """As in `PromptSummary`."""
    chosen: Pick | None
    """`comparable` of `PromptSummary`."""
    gain: float
    """As in `PromptView`."""
    shown: Trial | None = None
    """The chosen trial without its reply, if runs are compared."""


def prompt_view(
    anchor: str,
    trials: Sequence[Trial],
    *,
    source: Source,
    kinds: Mapping[str, int],
    read: bool = False,
) -> PromptView:
    """Returns the view of one prompt.

    Args:
        anchor: the prompt's id in the page.
        trials: all trials of the prompt, at least one, in the order of the log.
        source: finds the addresses of images.
        kinds: kind of heatmap -> its number on the page.
        read: read the heatmaps of the first draw and the chosen image, as `shown_image` does.
    """
    choice, first = choose(trials), first_draw(trials)
    large = (choice.trial, first)
    looked_at = {t.parent_id for t in trials if isinstance(t.proposal, Look)}
    cards: dict[str, Card] = {}
    for number, trial in enumerate(trials, 1):
        parent = cards.get(trial.parent_id or "")
        cards[trial.id] = Card(
            anchor=f"{anchor}c{number}",
            number=number,
            trial=trial,
            image=shown_image(trial, source, kinds, read=read and trial in large),
            origin=_origin(trial, cards),
            parent=parent,
            mask=_mask_address(trial, source),
            chosen=trial is choice.trial,
            first=trial is first,
            looked_at=trial.id in looked_at,
        )
    ranked = {t.id: place for place, t in enumerate(choice.order)}
    ordered = sorted(cards.values(), key=lambda c: (ranked.get(c.trial.id, math.inf), c.number))
    first_card = cards[first.id] if first else None
    chosen_card = cards[choice.trial.id] if choice.trial else None
    lines = _score_lines(first, choice.trial and before_look(choice.trial, trials))
    return PromptView(anchor, trials[0].prompt, first_card, chosen_card, tuple(ordered), lines)


def _mask_address(trial: Trial, source: Source) -> str:
    if not isinstance(trial.proposal, Repaint):
        return ""
    return source.mask(path_of_mask(trial.proposal.mask))


def _origin(trial: Trial, cards: Mapping[str, Card]) -> str:
    """Returns how a trial was made, in words."""

    def number(trial_id: str) -> str:
        return f"#{cards[trial_id].number}" if trial_id in cards else trial_id

    p, name = trial.proposal, number(trial.parent_id or "")
    if isinstance(p, Repaint):
        return f"{name} repainted, strength {p.strength:g}"
    if isinstance(p, Look):
        return f"{name} looked at in full"
    if isinstance(p, Compare):
        return f"{name} compared with {number(p.rival)}"
    if isinstance(p, Rewrite):
        return f"the prompt rewritten after {name}"
    if isinstance(p, Draw) and p.rewrite:
        return f"drawn from the text of {name}"
    if isinstance(p, Draw) and p.pace < 1:
        return f"a draft in {p.pace:.0%} of the {'evaluations' if p.cached else 'steps'}"
    if isinstance(p, Continue):
        return f"{name} continued to {p.until:.0%}"
    if isinstance(p.noise, Near):
        return f"noise near {name}, radius {p.noise.radius:g}"
    draw = "drawn with given low frequencies" if isinstance(p.noise, LowBand) else "drawn"
    return draw if p.until >= 1 else f"{draw} to {p.until:.0%}"


def _score_lines(old: Trial | None, new: Trial | None) -> tuple[ScoreLine, ...]:
    if old is None or new is None:
        return ()
    lines = [ScoreLine("objective", old.objective, new.objective)]
    lines += [
        ScoreLine(n, old.scores.get(n, math.nan), v) for n, v in written_scores(new.scores).items()
    ]
    lines += [ScoreLine(f"judge: {n}", old.judge.get(n, math.nan), v) for n, v in new.judge.items()]
    return tuple(lines)
