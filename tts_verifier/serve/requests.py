"""What the endpoints accept in JSON, and how each becomes pictures and prompts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError
from pydantic_core import from_json

from tts_verifier.errors import InputError
from tts_verifier.reward.reward import LATENT_GRID
from tts_verifier.serve.answers import Wanted, wanted_maps
from tts_verifier.serve.limits import MemoryShare, Refused, RequestLimits
from tts_verifier.serve.pictures import from_arrays, from_texts
from tts_verifier.types import Detail
from tts_verifier.verifiers.remote.protocol import PROTOCOL, load, unpack_message

CAPTION: Final = "Text Caption: ["
"""How the official instruction (ImageDoctor, inference.py) ends: this, the caption, and "]"."""

_BYTES_OF_CELL: Final = 8
"""Of an answer, for the two maps that verifiers have."""
_SEPARATORS: Final = 1024
"""Commas and brackets of a request's JSON for each picture that it may have: prompts have some."""

RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    400: {"description": "The body cannot be read."},
    401: {"description": "The token is missing or wrong."},
    408: {"description": "The body was sent too slowly."},
    413: {"description": "The body, a picture or a prompt is too large."},
    415: {"description": "The content-type is neither JSON nor safetensors, or it is compressed."},
    422: {"description": "The verifier cannot use a picture or a prompt."},
    424: {"description": "The verifier cannot work: its own endpoint refuses it, for instance."},
    429: {"description": "Too many pictures wait; try again after `Retry-After`."},
    500: {"description": "The verifier failed."},
    503: {"description": "Memory ran out, the server is ending, or one that it asks is away."},
    504: {"description": "The verifier took too long."},
}
"""The errors of an endpoint that takes pictures, for the OpenAPI page."""

_ENDS_OF_KEYS: Final = re.compile(rb'"\s*:')

Texts = Annotated[list[str], FailFast()]
"""Texts, of which only the first wrong one is told: each error takes a kilobyte."""


class Asked(NamedTuple):
    """A request that can be answered."""

    pixels: list[NDArray[np.uint8]]
    """(H, W, 3) each, in RGB."""
    prompts: list[str]
    """One for each."""
    detail: Detail
    """How thoroughly."""
    maps: Wanted
    """Which maps to send."""


class ScoreRequest(BaseModel):
    """A request to /v1/score in JSON."""

    model_config = ConfigDict(extra="forbid", strict=True)
    protocol: int = Field(PROTOCOL, description="The version of the protocol.")
    prompts: Texts = Field(description="What each picture should show.")
    images: Texts = Field(description="Picture files in base64, or as data URIs.")
    detail: Detail = Field("diagnose", description='"score" gives no maps and is quicker.')
    maps: bool | list[int] = Field(
        True, description="false, true (the verifier's own grid), or [rows, columns]."
    )


class ComputeRequest(BaseModel):
    """A request of Flow-Factory's remote reward (reward_server/example_server.py)."""

    # Its client sends `prompt` and `image`; its template of a server reads `prompts` and `images`.
    model_config = ConfigDict(strict=True, extra="ignore", populate_by_name=True)
    prompt: Texts = Field(validation_alias="prompts", description="One for each picture.")
    image: list[str] | None = Field(
        None, validation_alias="images", description="Picture files in base64."
    )
    video: list[Any] | None = Field(None, description="Not judged, refused.")
    condition_images: list[Any] | None = Field(None, description="Not judged, refused.")
    condition_videos: list[Any] | None = Field(None, description="Not judged, refused.")
    kwargs: dict[str, Any] | None = Field(
        None,
        description='"detail" and "maps" as in /v1/score, but maps are 64 x 64 if true, and none '
        "if left out. Anything else is not read.",
    )


class ChatRequest(BaseModel):
    """A request of an OpenAI client. Other parameters are not read: replies are greedy."""

    model_config = ConfigDict(strict=True, extra="ignore")
    model: str | None = Field(None, description="Not read; a server has one verifier.")
    messages: Annotated[list[dict[str, Any]], FailFast()] = Field(
        description="The last message of the user has one picture, as a data URI, and a text: the "
        "prompt, alone or in the official instruction."
    )
    # Some clients send null for what they leave to the server, as OpenAI's API allows.
    stream: bool | None = Field(None, description="Must be false.")
    n: int | None = Field(None, description="Must be 1.")
    detail: Detail = Field("diagnose", description="As in /v1/score.")
    maps: bool | list[int] = Field(list(LATENT_GRID), description="As in /v1/score.")


def asked_in_arrays(
    body: bytes,
    limits: RequestLimits,
    share: MemoryShare,
) -> Asked:
    """Reads a request to /v1/score in safetensors.

    Raises:
        InputError: it cannot be used.
        Refused: a picture is too large, or there are too many.
    """
    header = int.from_bytes(body[:8], "little")
    _check_separators(body[8 : min(8 + header, len(body))], limits)
    message, arrays = unpack_message(body)
    if "images" in message:
        raise InputError("Pictures in safetensors are its arrays; leave `images` out of `message`.")
    # The number of pictures is that of the prompts, which is checked after they are read.
    asked = _validated(ScoreRequest, message | {"images": []})
    _check_counts(_count(arrays), asked.prompts, limits)
    maps = _checked_maps(asked.maps, len(asked.prompts), limits, share)
    return Asked(from_arrays(arrays, limits, share), asked.prompts, asked.detail, maps)


def asked_in_json(
    body: bytes,
    limits: RequestLimits,
    share: MemoryShare,
) -> Asked:
    """Reads a request to /v1/score in JSON."""
    asked = _validated(ScoreRequest, _json_of(body, limits))
    _check_counts(len(asked.images), asked.prompts, limits)
    maps = _checked_maps(asked.maps, len(asked.prompts), limits, share)
    return Asked(from_texts(asked.images, limits, share), asked.prompts, asked.detail, maps)


def asked_to_compute(
    body: bytes,
    limits: RequestLimits,
    share: MemoryShare,
) -> Asked:
    """Reads a request of Flow-Factory."""
    found = _json_of(body, limits)
    for name in ("prompt", "image"):
        if isinstance(found, dict) and {name, f"{name}s"} <= set(found):
            raise InputError(f"{name} and {name}s are two names of one thing. Leave out one.")
    asked = _validated(ComputeRequest, found)
    for name in ("video", "condition_images", "condition_videos"):
        if getattr(asked, name):
            raise InputError(f"Verifiers judge a picture by its prompt alone. Leave out {name}.")
    images = asked.image or []
    _check_counts(len(images), asked.prompt, limits)
    chosen = asked.kwargs or {}
    options = {name: chosen[name] for name in ("detail", "maps") if name in chosen}
    # Its client reads rewards only; who wants maps says so.
    filled = {"maps": False, **options, "prompts": asked.prompt, "images": []}
    same = _validated(ScoreRequest, filled)
    maps = _checked_maps(same.maps, len(same.prompts), limits, share)
    return Asked(from_texts(images, limits, share), same.prompts, same.detail, maps)


def asked_in_chat(
    body: bytes,
    limits: RequestLimits,
    share: MemoryShare,
) -> Asked:
    """Reads a request of an OpenAI client."""
    asked = _validated(ChatRequest, _json_of(body, limits))
    if asked.stream or asked.n not in (None, 1):
        raise InputError(
            f"A verifier gives one whole reply: stream must be false and n 1, got {asked.stream} "
            f"and {asked.n}."
        )
    texts, pictures = _parts(asked.messages)
    if len(pictures) != 1:
        raise InputError(
            f"The last message of the user must have one image_url, it has {len(pictures)}."
        )
    prompts = [caption_of("\n".join(texts))]
    _check_counts(1, prompts, limits)
    maps = _checked_maps(asked.maps, 1, limits, share)
    return Asked(from_texts(pictures, limits, share), prompts, asked.detail, maps)


def caption_of(text: str) -> str:
    """Returns the caption in the official instruction; another text is the caption itself."""
    _, found, rest = text.rpartition(CAPTION)
    return rest.rstrip()[:-1] if found and rest.rstrip().endswith("]") else text


def _parts(messages: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    """Returns the texts and the pictures of the last message of the user."""
    last = next((m for m in reversed(messages) if m.get("role") == "user"), None)
    content = None if last is None else last.get("content")
    if not isinstance(content, list):
        raise InputError(
            "The last message of the user must have a list as its content: a text and an image_url."
        )
    texts: list[str] = []
    pictures: list[str] = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        url = part.get("image_url") if kind == "image_url" else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif isinstance(url, dict) and isinstance(url.get("url"), str):
            pictures.append(url["url"])
        else:
            raise InputError(f"A part of a message must be a text or an image_url, got {kind!r}.")
    return texts, pictures


def _checked_maps(
    value: object, pictures: int, limits: RequestLimits, share: MemoryShare
) -> Wanted:
    """Returns which maps a request wants, if the answer is no longer than a request may be."""
    maps = wanted_maps(value)
    if not isinstance(maps, bool):
        size = _BYTES_OF_CELL * maps[0] * maps[1] * pictures
        if size > limits.body:
            raise Refused(
                413,
                f"The maps of an answer may have {limits.body:,} bytes, these would have {size:,}. "
                "Ask for a coarser grid, or send fewer pictures at a time.",
            )
        share.add(size)
    return maps


def _count(arrays: Mapping[str, Any]) -> int:
    batch = arrays.get("images")
    return len(arrays) if batch is None or not batch.ndim else len(batch)


def _check_counts(images: int, prompts: Sequence[str], limits: RequestLimits) -> None:
    if images != len(prompts):
        raise InputError(
            f"A request must have one prompt for each picture, got {images} pictures and "
            f"{len(prompts)} prompts."
        )
    if not images:
        raise InputError("A request must have a picture, it has none.")
    if images > limits.images:
        raise Refused(
            413,
            f"A request may have {limits.images} pictures, this one has {images}. Send fewer at a "
            "time, or start the server with a larger --max-images.",
        )
    for place, prompt in enumerate(prompts):
        if len(prompt) > limits.prompt:
            raise Refused(
                413,
                f"A prompt may have {limits.prompt:,} characters, prompt {place} has "
                f"{len(prompt):,}. Shorten it.",
            )


def _check_separators(text: bytes, limits: RequestLimits) -> None:
    """Refuses JSON of very many values before it is parsed, as each takes 20 times its bytes."""
    most = _SEPARATORS * limits.images + limits.prompt
    found = sum(text.count(separator) for separator in (b",", b"[", b"{"))
    if found > most:
        raise Refused(
            413,
            f"The JSON of a request may have {most:,} commas and brackets, this one has {found:,}. "
            "Send fewer pictures at a time, or start the server with a larger --max-images.",
        )


def _json_of(body: bytes, limits: RequestLimits) -> Any:
    """Returns the value of a body of JSON, see `load`."""
    _check_separators(body, limits)
    # Python's own reader takes three times as long, and with one letter beyond ASCII five times the
    # body; it reads what may be wrong.
    with suppress(ValueError):
        found = from_json(body, allow_inf_nan=False)
        # A text may hold more of them, but no key is without one.
        if _count_keys(found) == len(_ENDS_OF_KEYS.findall(body)):
            return found
    try:
        return load(body)
    except (ValueError, RecursionError) as error:
        raise InputError(f"A request must be an object of JSON: Invalid JSON: {error}") from None


def _count_keys(value: object) -> int:
    """Returns how many keys all objects of a value have."""
    if isinstance(value, dict):
        return len(value) + sum(map(_count_keys, value.values()))
    return sum(map(_count_keys, value)) if isinstance(value, list) else 0


def _validated(model: type[BaseModel], found: object) -> Any:
    """Checks a request by its model, and that it speaks this version of the protocol."""
    try:
        asked: Any = model.model_validate(found)
    except ValidationError as error:
        # Without the value, which may be long or not be printable.
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"])) or "the body"
        raise InputError(f"A request must fit {model.__name__}: {place}: {first['msg']}") from None
    spoken = getattr(asked, "protocol", PROTOCOL)
    if spoken != PROTOCOL:
        raise InputError(
            f"This server speaks version {PROTOCOL} of the protocol, the request says {spoken}. "
            "Install the same tts-verifier on both sides."
        )
    return asked


def described_body(kinds: dict[str, type[BaseModel] | None]) -> dict[str, Any]:
    """Describes a body that the endpoint reads itself, for the OpenAPI page."""
    binary = {
        "type": "string",
        "format": "binary",
        "description": "See tts_verifier/verifiers/remote/protocol.py.",
    }
    content = {
        kind: {"schema": binary if model is None else model.model_json_schema()}
        for kind, model in kinds.items()
    }
    return {"requestBody": {"required": True, "content": content}}
