"""`python -m tts_verifier.training ENTRY CONFIG [key=value …]`: `tts-train` as a module.

`accelerate launch -m tts_verifier.training …` runs it in many processes.
"""

from __future__ import annotations

import sys

from tts_verifier.errors import TTSError, printable
from tts_verifier.training.entries import ENTRIES, run_entry

if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(f"Usage: ENTRY CONFIG.yaml [key=value …]. Entries: {', '.join(ENTRIES)}.")
    try:
        run_entry(sys.argv[1], sys.argv[2], sys.argv[3:])
    except TTSError as error:
        print(f"Error: {printable(error)}", file=sys.stderr)
        sys.exit(2)
