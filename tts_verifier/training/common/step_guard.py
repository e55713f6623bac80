"""Leaves out training steps whose loss or gradient is not a number."""

from __future__ import annotations

import math
from typing import Final

from tts_verifier.errors import RunError

MOST_IN_A_ROW: Final = 10
"""Skipped steps in a row that stop a run."""


class StepGuard:
    """Decides whether a step counts. Saved with the run."""

    def __init__(self) -> None:
        self.skipped = self.in_a_row = 0

    def allows(self, step: int, loss: float, gradient: float) -> bool:
        """Returns False for a step that must be skipped.

        Raises:
            RunError: it is the last of `MOST_IN_A_ROW` such steps.
        """
        if math.isfinite(loss) and math.isfinite(gradient):
            self.in_a_row = 0
            return True
        self.skipped += 1
        self.in_a_row += 1
        if self.in_a_row == MOST_IN_A_ROW:
            raise RunError(
                f"Loss and gradient must be finite, and were not in {MOST_IN_A_ROW} steps in a "
                f"row, the last of them step {step} (loss {loss:g}, gradient {gradient:g}). The "
                "state before them is kept. Lower the learning rate, or look for damaged data."
            )
        return False

    def state_dict(self) -> dict[str, int]:
        """Returns the counts."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Sets the counts."""
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]
