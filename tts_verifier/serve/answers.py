"""Verdicts -> what the doors answer. NaN is null; a map that is missing is absent and counted."""

from __future__ import annotations

import base64
from collections.abc import Collection, Mapping, Sequence
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
from tts_verifier.types import Heatmap, Verdict
from tts_verifier.verifiers.remote.protocol import PROTOCOL, dump, encode_verdict, json_number

Wanted = bool | tuple[int, int]
"""Which maps to send: False = none, True = on the verifier's own grid, or rows and columns."""


def wanted_maps(value: object) -> Wanted:
    """Returns which maps a request wants.

    Raises:
        InputError: it is neither a truth value nor a grid.
    """
    return value if isinstance(value, bool) else checked_grid(value)


class AnswerWriter:
    """Makes the answers of one verifier. Safe to share between threads.

    Args:
        verifier: whose verdicts they are.

    Raises:
        InputError: its settings are no values of JSON.
    """

    def __init__(self, verifier: Verifier) -> None:
        self._verifier = verifier
        settings = dict(verifier.settings)
        found = [settings.get(name) for name in ("model", "verifier", "revision")]
        self.name = next((str(name) for name in found[:2] if name), type(verifier).__name__)
        """What the verifier is called where a text has to do."""
        self._head: dict[str, Any] = {
            "protocol": PROTOCOL,
            "version": version("tts-verifier"),
            "verifier": settings,
            "checkpoint": self.name if found[2] is None else f"{self.name}@{found[2]}",
        }
        try:
            dump(self._head)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"A verifier's settings must be values of JSON, those of {type(verifier).__name__} "
                f"are not: {error}. Make them texts, numbers, lists or None.",
                argument="settings",
            ) from None

    @property
    def head(self) -> dict[str, Any]:
        """What every answer says: protocol, version, the verifier's settings, its checkpoint."""
        return dict(self._head)

    def about(self, limits: RequestLimits) -> dict[str, Any]:
        """Returns what a client needs to know before it asks."""
        verifier = self._verifier
        names = [verifier.score_names, verifier.map_names]
        scores, maps = (None if known is None else list(known) for known in names)
        return self.head | {
            "objective": verifier.objective.weights,
            "score_names": scores,
            "map_names": maps,
            "details": list(details_of(verifier)),
            "limits": {"images": limits.images, "body": limits.body, "pixels": limits.pixels},
        }

    def scored(
        self, verdicts: Sequence[Verdict], wanted: Wanted
    ) -> tuple[dict[str, Any], dict[str, NDArray[np.float32]]]:
        """Returns the message of an answer, and its arrays, see `remote.protocol`."""
        results: list[dict[str, Any]] = []
        arrays: dict[str, NDArray[np.float32]] = {}
        scores = [self._verifier.objective(verdict.scores) for verdict in verdicts]
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
        found = rewards_of(verdicts, self._verifier.objective, _grid(wanted), expected)
        details = {
            n: [json_number(value) for value in values] for n, values in found.details.items()
        }
        answer = {"rewards": [json_number(score) for score in found.scores], "details": details}
        maps = {} if wanted is False else {"maps": [as_texts(maps) for maps in found.maps]}
        return self.head | answer | maps | {"missing": dict(found.missing)}

    def _expected(self, verdicts: Sequence[Verdict], wanted: Wanted) -> Collection[str]:
        """Returns the names of the maps that every picture should have."""
        diagnosed = any(verdict.detail == "diagnose" for verdict in verdicts)
        return self._verifier.map_names or () if diagnosed and wanted is not False else ()


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
