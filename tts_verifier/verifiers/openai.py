"""Any OpenAI-compatible endpoint that takes images: a vendor's, vLLM's, or one of your own.

It asks for one JSON object with a digit for each criterion. Where the endpoint gives
log-probabilities, scores also come as expectations over the digits, which seldom tie.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from PIL import Image

from tts_verifier.choice.objective import Objective
from tts_verifier.choice.views import PREFERRED
from tts_verifier.errors import InputError
from tts_verifier.images import ImageLike, as_images
from tts_verifier.interfaces import Verifier, check_detail, check_pairs
from tts_verifier.interfaces.endpoints import ChatEndpoint, ChatReply, check_above_zero
from tts_verifier.types import Cost, Detail, Setting, Verdict
from tts_verifier.types.score_names import EXPECTED
from tts_verifier.verifiers.chat_reply import (
    Criterion,
    instruction,
    read_scores,
    schema,
)

CRITERIA: Final[Mapping[str, str]] = {
    "alignment": "how completely the image shows what the prompt asks for, and nothing else",
    "aesthetics": "how pleasing the image is, whatever the prompt",
    "plausibility": "how free the image is of artifacts, broken anatomy and impossible objects",
}
"""Name -> what 9 means, unless the user gives others."""
_COMPARE: Final = "You compare two generated images of one prompt."
_PAIR: Final = (
    Criterion(PREFERRED, "how much better the first image shows the prompt; 0 = the second is "
              "far better, 4 or 5 = no difference, 9 = the first is far better"),
)  # fmt: skip
_MOST_LETTERS: Final = 16384
"""Characters of a reply that a verdict keeps."""
_WEIGHTS: Final = {"alignment": 0.8, "aesthetics": 0.1, "plausibility": 0.1}
COSTS: Final = ("cost_input_tokens", "cost_output_tokens", "cost_usd")
"""Columns beside the scores: what a verdict took; NaN where neither endpoint nor user says it."""


class OpenAIVerifier(Verifier):
    """Scores criteria in [0, 1] by a chat model behind an HTTP endpoint.

    Besides each criterion there is its expectation `…_expected`, equal to the written score where
    the endpoint gives no log-probabilities; `from_logprobs` is 1 where it does, otherwise 0.
    `COSTS` are further columns. A picture without a usable reply has NaN and an `error`.

    Safe to share between threads, and with processes that are forked; `parallel` bounds each call's
    requests.

    Args:
        model: the endpoint's name of the model.
        base_url: such as "http://localhost:8000/v1"; None = OPENAI_BASE_URL, or else OpenAI's.
        api_key_env: the environment variable that holds the key; the key itself is never logged. It
            may be unset where `base_url` is given.
        criteria: score name -> what 9 means; None = `CRITERIA`.
        max_side: images are shrunk to this many pixels on their longer side; None = sent whole.
        max_tokens: of a reply.
        timeout: seconds for a request, from its first byte to the answer's last.
        retries: further tries after a timeout, a broken connection, or the status 408, 409, 429 or
            5xx, with growing pauses, or after those that the endpoint asks for.
        parallel: requests at a time.
        requests_per_minute: no more requests than these; retries are not counted. None = no limit.
        usd_per_million_input: the price of a million tokens, for `cost_usd`; None = not known.
        usd_per_million_output: likewise.

    Raises:
        InputError: an argument is not usable, the key is missing, or the extra `api` is.
    """

    def __init__(
        self,
        model: str = "",
        *,
        base_url: str | None = None,
        api_key_env: str = "OPENAI_API_KEY",
        criteria: Mapping[str, str] | None = None,
        max_side: int | None = 1024,
        max_tokens: int = 1024,
        timeout: float = 60.0,
        retries: int = 4,
        parallel: int = 8,
        requests_per_minute: float | None = None,
        usd_per_million_input: float | None = None,
        usd_per_million_output: float | None = None,
    ) -> None:
        if not isinstance(model, str) or not model:
            raise InputError(
                f"model must be a name that the endpoint knows, got {model!r}.", argument="model"
            )
        check_above_zero("max_tokens", max_tokens, whole=True)
        check_above_zero("parallel", parallel, whole=True)
        if max_side is not None:
            check_above_zero("max_side", max_side, whole=True)
        self._prices = (usd_per_million_input, usd_per_million_output)
        for kind, price in zip(("input", "output"), self._prices, strict=True):
            if price is not None and price != 0:
                check_above_zero(f"usd_per_million_{kind}", price)
        chosen = CRITERIA if criteria is None else _checked(criteria)
        self.criteria = [Criterion(name, text) for name, text in chosen.items()]
        self.max_side, self.max_tokens, self.parallel = max_side, max_tokens, parallel
        self.batch_size = 4 * parallel
        """Images that `tts-score` gives to a call: with fewer, threads wait for the last reply."""
        self.endpoint = ChatEndpoint(
            base_url,
            api_key_env=api_key_env,
            timeout=timeout,
            retries=retries,
            requests_per_minute=requests_per_minute,
        )
        self.model = model
        names = list(chosen)
        expected = [name + EXPECTED for name in names]
        self.score_names: Collection[str] = (*names, *expected, "from_logprobs", *COSTS)
        weights = _WEIGHTS if criteria is None else dict.fromkeys(names, 1 / len(names))
        self.objective = Objective({name + EXPECTED: w for name, w in weights.items()})
        self.settings: Mapping[str, Setting] = {
            "verifier": "openai",
            "model": model,
            "base_url": self.endpoint.url,
            "criteria": repr(dict(chosen)),
            "max_side": max_side,
            "max_tokens": max_tokens,
        }

    def verify(
        self,
        images: Sequence[ImageLike],
        prompts: Sequence[str],
        *,
        detail: Detail = "diagnose",
    ) -> list[Verdict]:
        """Scores image i against prompt i, several requests at a time.

        Args:
            images: whatever `images.as_image` accepts.
            prompts: any text.
            detail: "diagnose" asks for a reason first, "score" for the digits alone.

        Returns:
            A verdict for each image, in order; NaN with an `error` where there is no usable reply.

        Raises:
            InputError: an image or a prompt cannot be used, or the lengths differ.
            ServerError: the endpoint refuses the key, does not know the model, or wants money.
        """
        check_detail(detail)
        rgb = as_images(images)
        texts = check_pairs(rgb, prompts)
        with ThreadPoolExecutor(self.parallel) as threads:
            return list(threads.map(lambda i, p: self._verdict(i, p, detail), rgb, texts))

    def compare(
        self, first: Sequence[ImageLike], second: Sequence[ImageLike], prompts: Sequence[str]
    ) -> list[Verdict]:
        """Asks which of two images shows the prompt better; the model sees both at once.

        One request for each pair. `preferred` is in [0, 1], an expectation over the digits where
        the endpoint gives log-probabilities; NaN with an `error` where there is no usable reply.

        Raises:
            InputError: an image or a prompt cannot be used, or the lengths differ.
            ServerError: as in `verify`.
        """
        ones, others = as_images(first), as_images(second)
        texts = check_pairs(ones, prompts)
        check_pairs(others, texts)
        with ThreadPoolExecutor(self.parallel) as threads:
            return list(threads.map(self._preference, ones, others, texts))

    def _preference(self, one: Image.Image, other: Image.Image, prompt: str) -> Verdict:
        told = instruction(_PAIR, reason=True, task=_COMPARE)
        reply = self.endpoint.ask(self._request([one, other], prompt, _PAIR, told, reason=True))
        written, expected, problem = read_scores(reply, _PAIR)
        return Verdict(
            written | expected | self._costs(reply),
            text=reply.text[:_MOST_LETTERS],
            cost=Cost(verifier_calls=1),
            error=problem,
        )

    def _verdict(self, image: Image.Image, prompt: str, detail: Detail) -> Verdict:
        reason = detail == "diagnose"
        told = instruction(self.criteria, reason=reason)
        request = self._request([image], prompt, self.criteria, told, reason=reason)
        reply = self.endpoint.ask(request)
        written, expected, problem = read_scores(reply, self.criteria)
        scores = written | {n + EXPECTED: expected.get(n, value) for n, value in written.items()}
        scores["from_logprobs"] = float(bool(expected))
        return Verdict(
            scores | self._costs(reply),
            text=reply.text[:_MOST_LETTERS],
            detail=detail,
            cost=Cost(verifier_calls=1),
            error=problem,
        )

    def _request(
        self,
        images: Sequence[Image.Image],
        prompt: str,
        criteria: Sequence[Criterion],
        told: str,
        *,
        reason: bool,
    ) -> dict[str, Any]:
        pictures = [
            {"type": "image_url", "image_url": {"url": self._data_url(image)}} for image in images
        ]
        which = "The image was" if len(images) == 1 else "Both images were"
        text = {"type": "text", "text": f"{which} generated for this prompt:\n{prompt}"}
        answer = {"name": "scores", "strict": True, "schema": schema(criteria, reason=reason)}
        return {
            "model": self.model,
            "messages": [
                {"role": "system", "content": told},
                {"role": "user", "content": [*pictures, text]},
            ],
            "response_format": {"type": "json_schema", "json_schema": answer},
            "max_completion_tokens": self.max_tokens,
            "temperature": 0.0,
            "logprobs": True,
            "top_logprobs": 10,
        }

    def _costs(self, reply: ChatReply) -> dict[str, float]:
        counts = (reply.input_tokens, reply.output_tokens)
        prices = [math.nan if price is None else price for price in self._prices]
        usd = sum(n * price / 1e6 for n, price in zip(counts, prices, strict=True))
        return dict(zip(COSTS, (*counts, usd), strict=True))

    def _data_url(self, image: Image.Image) -> str:
        if self.max_side is not None and max(image.size) > self.max_side:
            image = image.copy()
            image.thumbnail((self.max_side, self.max_side), Image.Resampling.LANCZOS)
        file = io.BytesIO()
        image.save(file, format="PNG")
        return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _checked(criteria: Mapping[str, str]) -> Mapping[str, str]:
    named = isinstance(criteria, Mapping) and bool(criteria)
    texts = [*criteria, *criteria.values()] if named else []
    if not named or not all(isinstance(text, str) and text.strip() for text in texts):
        raise InputError(
            f"criteria must be texts by score name, got {criteria!r:.200}.", argument="criteria"
        )
    taken = {*COSTS, "from_logprobs", "reason", *(name + EXPECTED for name in criteria)}
    for name in criteria:
        if name in taken or not name.isprintable() or '"' in name or "\\" in name:
            raise InputError(
                "A criterion's name becomes a column and a key of JSON: it must have no quotes, "
                f"and be none of {', '.join(sorted(taken))}; got {name!r:.80}.",
                argument="criteria",
            )
    return criteria
