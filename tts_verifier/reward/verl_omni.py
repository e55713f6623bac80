"""A reward in the shape that verl-omni calls (verl_omni/utils/reward_score/http_scorer_client.py).

verl-omni's own client sends pickles; this one has its signature and sends raw pixels. Its config
names this module as `path=pkg://tts_verifier.reward.verl_omni` and `name=compute_score`.
"""

from __future__ import annotations

import asyncio
import math
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Any, Final

from tts_verifier.errors import InputError
from tts_verifier.reward.reward import VerifierReward, checked_fill
from tts_verifier.types import Detail
from tts_verifier.verifiers.remote import Remote

_WAITING: Final = ThreadPoolExecutor(128, "reward")
"""Threads that only wait: verl-omni asks for each picture of a batch at once, and the verifier
makes one batch of them again. They start as they are needed."""

_Key = tuple[str | None, str | None, Detail | None]
_LOADED: Final[dict[_Key, Future[VerifierReward]]] = {}
_LOADING: Final = Lock()
"""Guards `_LOADED`."""


async def compute_score(
    solution_image: Any,
    ground_truth: str,
    server_url: str | None = None,
    *,
    verifier: str | None = None,
    detail: Detail | None = None,
    fill: float | None = None,
    **more: Any,
) -> dict[str, float]:
    """Rewards one picture.

    Args:
        solution_image: (C, H, W) tensor, uint8 or floats in [0, 1]; or (1, C, H, W).
        ground_truth: the prompt.
        server_url: of a `tts-serve`.
        verifier: instead of a server: what `VerifierReward` takes, loaded once in this process.
        detail: see `VerifierReward`; "score" is quicker.
        fill: the reward of a picture that has none; None = NaN.
        **more: what else verl-omni passes; nothing is read.

    Returns:
        `score`, the reward, and each score by its name.

    Raises:
        InputError: neither or both of `server_url` and `verifier`; the picture is several.
        ServerError: the server does not answer.
    """
    if (server_url is None) == (verifier is None):
        raise InputError(
            "compute_score needs a server_url or a verifier, and not both, got "
            f"{server_url!r} and {verifier!r}."
        )
    if not isinstance(verifier or server_url, str):
        raise InputError(
            f"server_url and verifier must be texts, got {verifier or server_url!r:.80}."
        )
    fill = checked_fill(fill)
    shape = tuple(getattr(solution_image, "shape", ()))
    if len(shape) == 4 and shape[0] != 1:
        raise InputError(f"compute_score takes one picture, got a batch of shape {shape}.")
    image = solution_image[0] if len(shape) == 4 else solution_image
    rewards = await asyncio.get_running_loop().run_in_executor(
        _WAITING, lambda: _reward(server_url, verifier, detail)([image], [ground_truth])
    )
    score = float(rewards.scores[0])
    details = {name: float(values[0]) for name, values in rewards.details.items()}
    return details | {"score": fill if fill is not None and math.isnan(score) else score}


def _reward(url: str | None, verifier: str | None, detail: Detail | None) -> VerifierReward:
    """Returns the reward, which one thread loads while others wait for it.

    They get its error too: if each asked a server that is gone, for minutes and one after the
    other, a trainer that fails would not end for hours. A later call tries again.
    """
    key = (url, verifier, detail)
    with _LOADING:
        loads = key not in _LOADED
        loading = _LOADED.setdefault(key, Future())
    if loads:
        try:
            loading.set_result(VerifierReward(verifier or Remote(url or ""), detail=detail))
        except BaseException as error:
            with _LOADING:
                del _LOADED[key]
            loading.set_exception(error)
    return loading.result()
