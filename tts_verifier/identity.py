"""All that is derived by hashing: proposals as canonical JSON, trial ids, mask digests, seeds.

Ids are content addresses: the same request has the same id in every run, so that a run can
be continued, or extended, from what is already generated. Seeds are data: one pure function
derives them all, and no global random state is read or written anywhere in the package.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Final

import numpy as np

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
    """Returns JSON that is equal for equal values: sorted keys, no spaces, exact floats."""
    return _CANONICAL.encode(value)


def described(value: object) -> str:
    """Returns text for a value that JSON has not: the same in every process for equal content.

    Pictures, arrays and tensors count by their content, functions by their name.
    """
    tensor: Any = value
    if not hasattr(value, "__array_interface__") and not hasattr(value, "detach"):
        text = repr(value)
        name = tensor if hasattr(value, "__qualname__") else type(value)
        return text if " at 0x" not in text else f"{name.__module__}.{name.__qualname__}"
    pixels = np.asarray(tensor.detach().float().cpu() if hasattr(value, "detach") else tensor)
    content = hashlib.sha256(f"{pixels.dtype}{pixels.shape}".encode() + pixels.tobytes())
    return f"{type(value).__qualname__} {content.hexdigest()[:16]}"


def mask_digest(mask: Mask) -> str:
    """Returns the SHA-256 of a mask's size and bits."""
    return hashlib.sha256(f"{mask.height}x{mask.width}:".encode() + mask.bits).hexdigest()


def proposal_to_json(proposal: Proposal) -> str:
    """Returns the proposal as canonical JSON, with its kind; a mask is its digest."""
    fields: dict[str, Any] = {name: getattr(proposal, name) for name in proposal.__slots__}
    if isinstance(proposal, Repaint):
        fields["mask"] = mask_digest(proposal.mask)
    if isinstance(proposal, Draw) and proposal.noise is not None:
        kind = "near" if isinstance(proposal.noise, Near) else "low_band"
        fields["noise"] = {**asdict(proposal.noise), "kind": kind}
    return canonical({"kind": kind_of(proposal), **fields})


def proposal_from_json(text: str, mask: Callable[[str], Mask]) -> Proposal:
    """Returns what `proposal_to_json` wrote; `mask` finds a mask by its digest.

    Raises:
        ValueError, KeyError, TypeError: the text is not such a proposal.
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
    return proposal


def trial_id(prompt: str, proposal: Proposal, settings: Mapping[str, Setting]) -> str:
    """Returns the id of the trial: 16 hex digits.

    It is a hash of the prompt's text, the proposal and the generator's settings. A proposal
    names its parent by such an id, so the ancestors are part of it.
    """
    key = canonical([prompt, proposal_to_json(proposal), dict(settings)])
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def seed_for(run_seed: int, prompt: str, index: int, purpose: str = "draw") -> int:
    """Returns the seed of the `index`-th use of `purpose` for a prompt, in [0, 2^63).

    It depends on the prompt's text and not on its place in the file, so that adding prompts
    or raising N leaves the pictures already drawn as they are.
    """
    key = f"{run_seed}\0{purpose}\0{index}\0{prompt}".encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:8], "big") >> 1
