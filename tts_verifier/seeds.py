"""Seeds are data: one pure function derives every seed of a run.

No global random state is read or written anywhere in the package.
"""

from __future__ import annotations

import hashlib


def seed_for(run_seed: int, prompt: str, index: int, purpose: str = "draw") -> int:
    """Returns the seed of the `index`-th use of `purpose` for a prompt, in [0, 2^63).

    It depends on the prompt's text and not on its place in the file, so that adding prompts
    or raising N leaves the pictures already drawn as they are.
    """
    key = f"{run_seed}\0{purpose}\0{index}\0{prompt}".encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:8], "big") >> 1
