"""What tests of reports in a browser share: texts that try to become markup, and open parts."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tts_verifier.testing import FakeVerifier
from tts_verifier.types import Verdict

EVIL = (
    '</pre></style><script>owned=1</script><img src="http://x.invalid/" onerror="owned=1">{{7*7}}'
)


class Wordy(FakeVerifier):
    def verify(self, images: Any, prompts: Sequence[str], **options: Any) -> list[Verdict]:
        return [replace(v, text=EVIL + v.text) for v in super().verify(images, prompts, **options)]


def open_all(page: Any) -> None:
    page.look("document.querySelectorAll('details').forEach((part) => (part.open = true))")
    page.wait("!document.querySelector('[data-f]') && document.querySelector('.sheet') !== null")
