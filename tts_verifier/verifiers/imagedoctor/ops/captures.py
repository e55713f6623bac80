"""Keeps captures of CUDA graphs apart that threads of several GPUs would make at once."""

from __future__ import annotations

from threading import Lock
from typing import Final

CAPTURES: Final = Lock()
"""Held during a capture, and while torch's cached memory is freed. A capture begins by freeing the
cached memory of all GPUs, which torch forbids while another capture is under way."""
