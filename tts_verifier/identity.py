"""Values derived by hashing: proposals as canonical JSON, trial ids, mask digests and seeds.

Ids are content addresses: the same request has the same id in every run. A run can therefore be
continued, or extended, from its log. One pure function derives all seeds; nothing in the package
reads or writes a global random state.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Final

from tts_verifier.types import (
    KINDS,
    Draw,
    LowBand,
    Mask,
    Near,
    Proposal,
    Repaint,
    Setting,
    kind_of,
)

_CANONICAL: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def canonical(value: object) -> str:
    """Returns JSON text that is the same for equal values: sorted keys, no spaces, exact floats."""
    return _CANONICAL.encode(value)


def mask_digest(mask: Mask) -> str:
    """Returns the SHA-256 of a mask's size and bits."""
    return hashlib.sha256(f"{mask.height}x{mask.width}:".encode() + mask.bits).hexdigest()


def proposal_to_json(proposal: Proposal) -> str:
    """Returns the proposal and its kind as canonical JSON; a mask is replaced by its digest."""
    fields: dict[str, Any] = {name: getattr(proposal, name) for name in proposal.__slots__}
    if isinstance(proposal, Repaint):
        fields["mask"] = mask_digest(proposal.mask)
    if isinstance(proposal, Draw):
        # Absent unless used, so that ids stay those of earlier versions.
        for name, default in (("rewrite", ""), ("pace", 1.0), ("cached", False)):
            if fields[name] == default:
                del fields[name]
    if isinstance(proposal, Draw) and proposal.noise is not None:
        kind = "near" if isinstance(proposal.noise, Near) else "low_band"
        fields["noise"] = {**asdict(proposal.noise), "kind": kind}
    return canonical({"kind": kind_of(proposal), **fields})


def proposal_from_json(text: str, mask: Callable[[str], Mask]) -> Proposal:
    """Reads a proposal that `proposal_to_json` wrote.

    Args:
        text: canonical JSON.
        mask: finds a mask by its digest.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: the text is not such a proposal.
    """
    fields = json.loads(text)
    kind = KINDS[fields.pop("kind")]
    if kind is Repaint:
        fields["mask"] = mask(fields["mask"])
    if noise := fields.get("noise"):
        if noise.pop("kind") == "near":
            fields["noise"] = Near(**noise)
        else:
            fields["noise"] = LowBand(tuple(noise["coefficients"]), noise["level"])
    proposal: Proposal = kind(**fields)
    for name in {"seed", "until", "strength", "renoise", "eta", "pace"} & fields.keys():
        if not isinstance(fields[name], int | float):
            raise TypeError(f"{name} must be a number, got {fields[name]!r}")
    if not isinstance(fields.get("cached", False), bool):
        raise TypeError(f"cached must be true or false, got {fields['cached']!r}")
    return proposal


def trial_id(
    prompt: str, proposal: Proposal, settings: Mapping[str, Setting], repeat: int = 0
) -> str:
    """Returns the id of the trial: 16 hex digits.

    The id is a hash of the prompt's text, the proposal and the generator's settings. A proposal
    names its parent by such an id, so the hash covers all ancestors. `repeat` is the prompt's.
    """
    # 64 bits: among a million trials the probability of two equal ids is 3e-8.
    again = [repeat] if repeat else []
    key = canonical([prompt, proposal_to_json(proposal), dict(settings), *again])
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def seed_for(run_seed: int, prompt: str, index: int, purpose: str = "draw") -> int:
    """Returns the seed of the `index`-th use of `purpose` for a prompt, in [0, 2^63).

    The seed depends on the prompt's text and not on its place in the file. Adding prompts or
    raising N therefore does not change the images that exist already.
    """
    # The separators tell index 1 of "2 cats" from index 12 of " cats".
    key = f"{run_seed}\0{purpose}\0{index}\0{prompt}".encode()
    # The shift makes room for the sign: many generators take a signed 64-bit seed.
    return int.from_bytes(hashlib.sha256(key).digest()[:8], "big") >> 1


def seed_of_repeat(run_seed: int, prompt: str, repeat: int) -> int:
    """Returns the run's seed as a prompt's task has it: another one where the text repeats."""
    return seed_for(run_seed, prompt, repeat, "repeat") if repeat else run_seed
