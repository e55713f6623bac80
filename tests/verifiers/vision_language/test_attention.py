"""Parts of a packed sequence attend as they do alone."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from tts_verifier.verifiers.vision_language.inference.attention import attend_by_length


@pytest.mark.parametrize("lengths", [(4,), (4, 4, 4), (2, 5, 2, 1), (1,)])
def test_each_part_attends_within_itself(lengths: tuple[int, ...]) -> None:
    g = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, sum(lengths), 8, generator=g).unbind()
    ends = torch.tensor([0, *lengths]).cumsum(0).int()
    found, _ = attend_by_length(None, q, k, v, scaling=0.3, cu_seq_lens_q=ends)
    parts = [x.split(lengths, 2) for x in (q, k, v)]
    alone = [scaled_dot_product_attention(*part, scale=0.3) for part in zip(*parts, strict=True)]
    assert torch.allclose(found, torch.cat(alone, 2).transpose(1, 2), atol=1e-6)


def test_without_ends_there_is_one_part() -> None:
    q = torch.randn(1, 2, 5, 8)
    found, _ = attend_by_length(None, q, q, q)
    assert torch.allclose(found, scaled_dot_product_attention(q, q, q).transpose(1, 2))
