"""Collects the replies of sequences that have ended."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from tts_verifier.verifiers.imagedoctor.engine.kv_cache import SequenceBuffers
from tts_verifier.verifiers.imagedoctor.ops.transfer import to_device
from tts_verifier.verifiers.imagedoctor.requests import GeneratedReply


def ended_sequences(buffers: SequenceBuffers, running: Iterable[int]) -> dict[int, int]:
    """Returns the running sequences that are no longer live: sequence -> number of its tokens.

    Waits for the device.
    """
    # Stacked, so the host waits for one copy only.
    live, counts = torch.stack([buffers.live.long(), buffers.count]).tolist()
    return {sequence: counts[sequence] for sequence in running if not live[sequence]}


def read_replies(
    buffers: SequenceBuffers,
    ended: dict[int, int],
    visual: Sequence[Tensor],
    *,
    eos: tuple[int, ...],
) -> list[GeneratedReply]:
    """Reads ended replies out of the buffers.

    Args:
        buffers: hold the replies.
        ended: the result of `ended_sequences`.
        visual: each sequence's visual features, (merged tokens, H).
        eos: token ids that end a reply.
    """
    at = to_device(torch.tensor(list(ended)), buffers.length.device)
    # The buffers have a column for each of `max_new_tokens`; most replies are far shorter.
    longest = max(ended.values())
    tokens, has_map = buffers.tokens[at, :longest].tolist(), buffers.has_map[at].tolist()
    probs = buffers.probs[at, :longest].cpu().numpy()
    states = buffers.map_states[at]
    log_probs = buffers.log_probs[at, :longest].cpu().numpy() if buffers.log_probs.numel() else None
    replies = []
    for i, (count, features) in enumerate(zip(ended.values(), visual, strict=True)):
        ids, end = _split_eos(tokens[i][:count], eos)
        misalignment, artifact = has_map[i]
        replies.append(
            GeneratedReply(
                ids=ids,
                ended=end is not None,
                map_states=states[i],
                has_map=(misalignment, artifact),
                visual=features,
                probs=probs[i, : len(ids)],
                end=end,
                # A copy, because a view would keep the log-probabilities of all.
                log_probs=None if log_probs is None else log_probs[i, :count].copy(),
            )
        )
    return replies


def _split_eos(tokens: list[int], eos: tuple[int, ...]) -> tuple[list[int], int | None]:
    """Returns the tokens before the end token, and the end token if there is one."""
    if tokens and tokens[-1] in eos:
        return tokens[:-1], tokens[-1]
    return tokens, None
