"""One trial as the page shows it, and the trials of one prompt together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tts_verifier.analysis.report.pictures import Picture, Source, picture
from tts_verifier.choice.objective import choose
from tts_verifier.identity import mask_digest
from tts_verifier.log.storage.files import mask_path
from tts_verifier.types import Continue, Look, LowBand, Near, Prompt, Repaint, Trial
from tts_verifier.types.score_names import written_scores


@dataclass(frozen=True, slots=True)
class Line:
    """A score of the first draw beside that of the chosen picture, as text and as shares."""

    name: str
    first: float
    chosen: float

    @property
    def change(self) -> float:
        """Chosen minus first."""
        return self.chosen - self.first


@dataclass(frozen=True, slots=True)
class Card:
    """One trial.

    `number`: its place in the prompt, from 1. `anchor`: its id in the page. `origin`: how it
    was made, `parent` from which card. `mask`: the address of what was repainted.
    `seen_again`: a later, fuller look at the same picture counts in its place.
    """

    anchor: str
    number: int
    trial: Trial
    picture: Picture | None
    origin: str
    parent: Card | None = None
    mask: str = ""
    chosen: bool = False
    first: bool = False
    seen_again: bool = False

    @property
    def usable(self) -> bool:
        """True when it may be chosen."""
        return self.trial.finished and not math.isnan(self.trial.objective)


@dataclass(frozen=True, slots=True)
class PromptView:
    """All trials of one prompt, best first; `first` and `chosen` as in the summary."""

    anchor: str
    prompt: Prompt
    first: Card | None
    chosen: Card | None
    cards: tuple[Card, ...]
    lines: tuple[Line, ...]

    @property
    def gain(self) -> float:
        """What the chosen picture's objective has over the first draw's, NaN if unknown."""
        return self.lines[0].change if self.lines else math.nan


def prompt_view(
    anchor: str,
    trials: Sequence[Trial],
    *,
    source: Source,
    maps: Mapping[str, int],
) -> PromptView:
    """Returns the cards of one prompt's trials, at least one, in the order of the log."""
    choice = choose(trials)
    drawn = [t for t in trials if not isinstance(t.proposal, Look)]
    looked = {t.parent_id for t in trials if isinstance(t.proposal, Look)}
    first = next((t for t in drawn if t.progress >= 1 and t.image), None)
    cards: dict[str, Card] = {}
    for number, trial in enumerate(trials, 1):
        parent = cards.get(trial.parent_id or "")
        cards[trial.id] = Card(
            anchor=f"{anchor}c{number}",
            number=number,
            trial=trial,
            picture=picture(trial, source, maps),
            origin=_origin(trial, parent),
            parent=parent,
            mask=_mask_address(trial, source),
            chosen=trial is choice.trial,
            first=trial is first,
            seen_again=trial.id in looked,
        )
    ranked = {t.id: place for place, t in enumerate(choice.order)}
    ordered = sorted(cards.values(), key=lambda c: (ranked.get(c.trial.id, math.inf), c.number))
    begun = cards[first.id] if first else None
    ended = cards[choice.trial.id] if choice.trial else None
    return PromptView(anchor, trials[0].prompt, begun, ended, tuple(ordered), _lines(begun, ended))


def _mask_address(trial: Trial, source: Source) -> str:
    if not isinstance(trial.proposal, Repaint):
        return ""
    return source.mask(mask_path(mask_digest(trial.proposal.mask)))


def _origin(trial: Trial, parent: Card | None) -> str:
    p, name = trial.proposal, f"#{parent.number}" if parent else trial.parent_id or ""
    if isinstance(p, Repaint):
        return f"{name} repainted, strength {p.strength:g}"
    if isinstance(p, Look):
        return f"{name} looked at in full"
    if isinstance(p, Continue):
        return f"{name} carried on to {p.until:.0%}"
    if isinstance(p.noise, Near):
        return f"noise near {name}, radius {p.noise.radius:g}"
    given = "low frequencies given" if isinstance(p.noise, LowBand) else "drawn"
    return given if p.until >= 1 else f"{given} to {p.until:.0%}"


def _lines(first: Card | None, chosen: Card | None) -> tuple[Line, ...]:
    if first is None or chosen is None:
        return ()
    old, new = first.trial, chosen.trial
    lines = [Line("objective", old.objective, new.objective)]
    lines += [
        Line(n, old.scores.get(n, math.nan), v) for n, v in written_scores(new.scores).items()
    ]
    lines += [Line(f"judge: {n}", old.judge.get(n, math.nan), v) for n, v in new.judge.items()]
    return tuple(lines)
