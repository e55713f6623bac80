"""Verdicts -> what the endpoints answer. NaN is null; a missing map is absent and counted."""

from __future__ import annotations

import base64
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tts_verifier.errors import InputError
from tts_verifier.interfaces import Verifier, details_of
from tts_verifier.reward.reward import (
    LATENT_GRID,
    PooledMaps,
    checked_grid,
    count_missing,
    rewards_of,
)
from tts_verifier.serve.limits import RequestLimits
from tts_verifier.types import Detail, Heatmap, Verdict
from tts_verifier.verifiers.remote.protocol import (
    PROTOCOL,
    dump,
    encode_verdict,
    json_number,
    load,
)

Wanted = bool | tuple[int, int]
"""Which maps to send: False = none, True = on the verifier's own grid, or rows and columns."""


def wanted_maps(value: object) -> Wanted:
    """Returns which maps a request wants.

    Raises:
        InputError: it is neither a truth value nor a grid.
    """
    return value if isinstance(value, bool) else checked_grid(value)


@dataclass(frozen=True, slots=True)
class Description:
    """What the endpoints need to know of a verifier. It pickles if the objective does."""

    name: str
    """What the verifier is called where a text has to do."""
    settings: dict[str, Any]
    """Its settings, as values of JSON."""
    objective: Any
    """Its `Objective`."""
    score_names: tuple[str, ...] | None
    """Names of its scores; None = not known."""
    map_names: tuple[str, ...] | None
    """Names of its heatmaps; None = not known."""
    details: tuple[Detail, ...]
    """The details of its verdicts that differ."""


def description_of(verifier: Verifier) -> Description:
    """Returns the description of a verifier.

    Raises:
        InputError: its settings are no values of JSON.
    """
    kind = type(verifier).__name__
    try:
        settings = load(dump(dict(verifier.settings)))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"A verifier's settings must be values of JSON, those of {kind} are not: {error}. Make "
            "them texts, numbers, lists or None.",
            argument="settings",
        ) from None
    name = settings.get("model") or settings.get("verifier") or kind
    scores, maps = (
        None if names is None else tuple(names)
        for names in (verifier.score_names, verifier.map_names)
    )
    details = tuple(details_of(verifier))
    return Description(str(name), settings, verifier.objective, scores, maps, details)


class AnswerWriter:
    """Makes the answers of one verifier. Safe to share between threads.

    Args:
        description: of the verifier whose verdicts they are.
    """

    def __init__(self, description: Description) -> None:
        self._description = description
        self.name = description.name
        """What the verifier is called where a text has to do."""
        revision = description.settings.get("revision")
        self._head: dict[str, Any] = {
            "protocol": PROTOCOL,
            "version": version("tts-verifier"),
            "verifier": description.settings,
            "checkpoint": self.name if revision is None else f"{self.name}@{revision}",
        }

    @property
    def head(self) -> dict[str, Any]:
        """What every answer says: protocol, version, the verifier's settings, its checkpoint."""
        return dict(self._head)

    def about(self, limits: RequestLimits) -> dict[str, Any]:
        """Returns what a client needs to know before it asks."""
        about = self._description
        return self.head | {
            "objective": about.objective.weights,
            "score_names": about.score_names,
            "map_names": about.map_names,
            "details": about.details,
            "limits": {"images": limits.images, "body": limits.body, "pixels": limits.pixels},
        }

    def scored(
        self, verdicts: Sequence[Verdict], wanted: Wanted
    ) -> tuple[dict[str, Any], dict[str, NDArray[np.float32]]]:
        """Returns the message of an answer, and its arrays, see `remote.protocol`."""
        results: list[dict[str, Any]] = []
        arrays: dict[str, NDArray[np.float32]] = {}
        scores = [self._description.objective(verdict.scores) for verdict in verdicts]
        maps = [{} if wanted is False else _sent(verdict, wanted) for verdict in verdicts]
        for place, given in enumerate(zip(verdicts, scores, maps, strict=True)):
            result, grids = encode_verdict(*given)
            results.append(result)
            arrays |= {f"{place}.{name}": grid for name, grid in grids.items()}
        missing = count_missing(scores, maps, self._expected(verdicts, wanted))
        return self.head | {"missing": missing, "results": results}, arrays

    def rewarded(self, verdicts: Sequence[Verdict], wanted: Wanted) -> dict[str, Any]:
        """Returns the answer to Flow-Factory: rewards, with details and maps beside them."""
        expected = self._expected(verdicts, wanted)
        found = rewards_of(verdicts, self._description.objective, _grid(wanted), expected)
        details = {
            n: [json_number(value) for value in values] for n, values in found.details.items()
        }
        answer = {"rewards": [json_number(score) for score in found.scores], "details": details}
        maps = {} if wanted is False else {"maps": [as_texts(maps) for maps in found.maps]}
        return self.head | answer | maps | {"missing": dict(found.missing)}

    def _expected(self, verdicts: Sequence[Verdict], wanted: Wanted) -> Collection[str]:
        """Returns the names of the maps that every picture should have."""
        diagnosed = any(verdict.detail == "diagnose" for verdict in verdicts)
        return self._description.map_names or () if diagnosed and wanted is not False else ()


def with_texts(
    message: dict[str, Any], arrays: Mapping[str, NDArray[np.float32]]
) -> dict[str, Any]:
    """Returns an answer's message with its maps in it, for JSON."""
    for place, result in enumerate(message["results"]):
        texts = as_texts({name: arrays[f"{place}.{name}"] for name in result["maps"]})
        for name, about in result["maps"].items():
            about |= texts[name]
    return message


def as_texts(maps: PooledMaps) -> dict[str, dict[str, Any]]:
    """Returns maps as JSON values: the shape, and little-endian float32 in base64."""
    return {
        name: {
            "shape": list(grid.shape),
            "dtype": "float32",
            "data": base64.b64encode(grid.astype("<f4").tobytes()).decode(),
        }
        for name, grid in maps.items()
    }


def _sent(verdict: Verdict, wanted: Wanted) -> dict[str, Heatmap]:
    maps = {name: verdict.heatmaps.on_grid(name) for name in verdict.heatmaps}
    if wanted is True or wanted is False:
        return maps
    # A pooled map covers the picture, whatever the verifier's square looks like.
    return {name: Heatmap(heatmap.pooled(*wanted), heatmap.size) for name, heatmap in maps.items()}


def _grid(wanted: Wanted) -> tuple[int, int] | None:
    if wanted is True:
        return LATENT_GRID
    return None if wanted is False else wanted
