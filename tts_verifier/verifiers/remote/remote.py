"""The verifier: it sends pictures to a `tts-serve` and gives what comes back as its verdicts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tts_verifier.choice.objective import Objective
from tts_verifier.errors import InputError, ServerError
from tts_verifier.images import ImageLike, as_images
from tts_verifier.interfaces import Verifier, check_detail, check_pairs
from tts_verifier.types import Detail, Setting, Verdict
from tts_verifier.verifiers.remote.connection import Connection
from tts_verifier.verifiers.remote.protocol import (
    PROTOCOL,
    arrays_of,
    decode_verdict,
    request_of,
    unpack_message,
)

_PICTURES_TOGETHER: Final = 32
"""Pictures of one request."""


class Remote(Verifier):
    """Verifies by a `tts-serve`: a recipe, `wrap`, `tts-score` or a trainer needs no change.

    Settings, objective and names of scores are those of the server's verifier, so a log that one
    began in its own process may be continued here, and a server that has another verifier may not
    continue it. Each answer is checked against what the server said at first.

    Safe to share between threads: calls do not wait for each other. A process that is forked, or
    that gets a pickled copy, makes connections of its own.

    Args:
        url: such as "http://host:8000".
        timeout: seconds for a request, from its first byte to the answer's last.
        patience: seconds for which a server that is gone, full, or out of memory is asked again.
        connections: requests of one call that are under way at a time, of 32 pictures each.
        expect: settings that the server's verifier must have, such as {"revision": "2026-11-26"}.
        token: the server's token; None = that of the environment, TTS_SERVE_TOKEN. A recipe is
            stored in its run's log, so the token does not belong there.

    Raises:
        InputError: the URL, the token or a number cannot be used.
        ServerError: the server does not answer, speaks another version of the protocol, has
            another verifier than expected, or refuses the token.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float = 600.0,
        patience: float = 300.0,
        connections: int = 8,
        expect: Mapping[str, Any] | None = None,
        token: str | None = None,
    ) -> None:
        if type(connections) is not int or not 1 <= connections <= 256:
            raise InputError(
                f"connections must be from 1 to 256, got {connections!r}.", argument="connections"
            )
        if expect is not None and not isinstance(expect, Mapping):
            raise InputError(
                f"expect must be settings with their values, got {expect!r:.80}.",
                argument="expect",
            )
        self._connection = Connection(url, timeout=timeout, patience=patience, token=token)
        self._connections = connections
        about = self._connection.get("/v1/verifier")
        _check_protocol(about, url)
        _check_about(about, url)
        self.settings: Mapping[str, Setting] = about["verifier"]
        self.objective = Objective(about["objective"])
        self.score_names: Collection[str] | None = about["score_names"]
        self.map_names: Collection[str] | None = about["map_names"]
        self.details: Collection[Detail] = about["details"]
        self._most_pairs = min(about["limits"]["images"], _PICTURES_TOGETHER)
        self.batch_size = connections * self._most_pairs
        """Pictures that `tts-score` gives to a call: those that can be under way."""
        # The rest is for prompts.
        self._most_bytes = about["limits"]["body"] * 9 // 10
        for name, value in (expect or {}).items():
            if self.settings.get(name) != value:
                raise ServerError(
                    f"The server at {url} must have a verifier whose {name} is {value!r}; its "
                    f"settings are {dict(self.settings)}. Start it with that one, or change expect."
                )

    def verify(
        self,
        images: Sequence[ImageLike],
        prompts: Sequence[str],
        *,
        detail: Detail = "diagnose",
    ) -> list[Verdict]:
        """Verifies image i against prompt i.

        Raises:
            InputError: an image or a prompt cannot be used, or the lengths differ.
            ServerError: the server does not answer, or has another verifier than at first.
            RuntimeError: the server's verifier failed.
        """
        check_detail(detail)
        rgb = as_images(images)
        texts = check_pairs(rgb, prompts)
        pairs = [(np.asarray(image), text) for image, text in zip(rgb, texts, strict=True)]
        parts = self._parts(pairs)
        if len(parts) <= 1:
            answers = [self._answer(part, detail) for part in parts]
        else:
            with ThreadPoolExecutor(min(self._connections, len(parts))) as threads:
                try:
                    answers = list(threads.map(lambda part: self._answer(part, detail), parts))
                except BaseException:
                    threads.shutdown(wait=False, cancel_futures=True)
                    raise
        return [verdict for answer in answers for verdict in answer]

    def _parts(
        self, pairs: Sequence[tuple[NDArray[np.uint8], str]]
    ) -> list[list[tuple[NDArray[np.uint8], str]]]:
        """Divides pairs into requests that the server takes."""
        parts: list[list[tuple[NDArray[np.uint8], str]]] = []
        size = 0
        for pair in pairs:
            size += pair[0].nbytes
            if not parts or size > self._most_bytes or len(parts[-1]) == self._most_pairs:
                parts.append([])
                size = pair[0].nbytes
            parts[-1].append(pair)
        return parts

    def _answer(self, part: Sequence[tuple[NDArray[np.uint8], str]], detail: Detail) -> Any:
        images, prompts = zip(*part, strict=True)
        body = self._connection.post("/v1/score", request_of(images, prompts, detail, True))
        try:
            message, arrays = unpack_message(body)
            _check_protocol(message, self._connection.url)
            if message["verifier"] != self.settings:
                raise ServerError(
                    f"The server at {self._connection.url} has another verifier than at first: "
                    f"{message['verifier']} instead of {dict(self.settings)}. Start it with the "
                    "first one, or begin anew."
                )
            results = message["results"]
            if len(results) != len(part):
                raise ServerError(
                    f"The server at {self._connection.url} must answer {len(part)} pictures, and "
                    f"answered {len(results)}."
                )
            return [
                decode_verdict(result, arrays_of(i, arrays), (image.shape[1], image.shape[0]))
                for i, (result, image) in enumerate(zip(results, images, strict=True))
            ]
        except (InputError, KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise ServerError(
                f"The server at {self._connection.url} must answer as tts-serve does: {error!r}"
            ) from error


def _check_about(about: Mapping[str, Any], url: str) -> None:
    """Checks what a server says of itself."""
    try:
        Objective(about["objective"])
        names, limits = [about["score_names"], about["map_names"]], about["limits"]
        usable = (
            isinstance(about["verifier"], dict)
            and all(found is None or _are_texts(found) for found in names)
            and bool(about["details"])
            and {*about["details"]} <= {"score", "diagnose"}
            and all(type(limits[name]) is int and limits[name] > 0 for name in ("images", "body"))
        )
        problem = "a value cannot be used"
    except (InputError, KeyError, TypeError, ValueError, AttributeError) as error:
        usable, problem = False, repr(error)
    if not usable:
        raise ServerError(
            f"The server at {url} must say what it serves as tts-serve does: {problem:.200}. "
            "Install the same tts-verifier on both sides."
        )


def _are_texts(found: object) -> bool:
    return isinstance(found, list) and all(isinstance(name, str) for name in found)


def _check_protocol(message: Mapping[str, Any], url: str) -> None:
    if (found := message.get("protocol")) != PROTOCOL:
        raise ServerError(
            f"The server at {url} must speak version {PROTOCOL} of the protocol, it says "
            f"{found!r:.80}. Install the same tts-verifier on both sides."
        )
