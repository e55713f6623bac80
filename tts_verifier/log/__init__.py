"""The run folder, written so that a kill loses nothing that was verified."""

from tts_verifier.log.by_prompt import LoggedPrompts, read_outlines
from tts_verifier.log.header import HEADER, read_header
from tts_verifier.log.lock import FolderInUse
from tts_verifier.log.reader import (
    is_running,
    read_errors,
    read_finished,
    read_picks,
    read_rows,
    read_trials,
    repeat_of,
)
from tts_verifier.log.resume import LoggedPrompt
from tts_verifier.log.sharded import Shards, open_shards, table_folders
from tts_verifier.log.writer import RunLog, open_log

__all__ = [
    "HEADER",
    "FolderInUse",
    "LoggedPrompt",
    "LoggedPrompts",
    "RunLog",
    "Shards",
    "is_running",
    "open_log",
    "open_shards",
    "read_errors",
    "read_finished",
    "read_header",
    "read_outlines",
    "read_picks",
    "read_rows",
    "read_trials",
    "repeat_of",
    "table_folders",
]
