"""Our Triton kernels in float32 against plain torch in float64; on a CPU interpreted."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from tts_verifier.verifiers.imagedoctor.engine.kv_cache import LayerCache
from tts_verifier.verifiers.imagedoctor.ops import (
    attention_kernels,
    decode_kernels,
    pointwise_kernels,
    row_kernels,
)
from tts_verifier.verifiers.imagedoctor.ops.e4m3 import LARGEST
from tts_verifier.verifiers.imagedoctor.ops.fp8 import Fp8Matrix, quantise_rows
from tts_verifier.verifiers.imagedoctor.ops.pointwise import rotate_heads, silu_gate


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got.double(), expected, atol=2e-5, rtol=1e-5)


def normed(x: Tensor, weight: Tensor, eps: float, dim: int = -1) -> Tensor:
    return x * torch.rsqrt(x.square().mean(dim, keepdim=True) + eps) * weight


@pytest.fixture(autouse=True)
def _start() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        yield


def random_rope(vectors: int, size: int) -> tuple[Tensor, Tensor]:
    angle = torch.randn(vectors, size // 2)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)


def test_a_gate_is_the_plain_chain_beyond_one_block_of_columns() -> None:
    both = torch.randn(3, 2 * 1500)
    close(pointwise_kernels.triton_silu_gate(both), silu_gate(both.double()))


@pytest.mark.parametrize("size", [80, 128])
def test_some_heads_are_rotated_and_the_others_stay(size: int) -> None:
    heads, rope = torch.randn(9, 12, size), random_rope(9, size)
    expected = rotate_heads(heads.double(), rope[0].double(), rope[1].double(), 8)
    close(pointwise_kernels.triton_rotate_heads(heads, *rope, 8), expected)


def test_rotated_keys_and_values_enter_the_cache_of_their_sequence() -> None:
    rows, tokens, queries, kv, size = 2, 5, 4, 2, 32
    heads, rope = torch.randn(rows, tokens, queries + 2 * kv, size), random_rope(10, size)
    before = torch.randn(4, 2, kv, 8, size)
    cache, at = before.clone(), torch.tensor([3, 1])
    expected = rotate_heads(
        heads.double().flatten(0, 1), *(t.double() for t in rope), queries + kv
    ).view(heads.shape)
    pointwise_kernels.triton_rotate_and_store(heads, *rope, at, cache, None)
    close(heads, expected)
    close(
        cache[at, ..., :tokens, :],
        expected[:, :, queries:].unflatten(2, (2, kv)).permute(0, 2, 3, 1, 4),
    )
    assert torch.equal(cache[[0, 2]], before[[0, 2]])
    assert torch.equal(cache[..., tokens:, :], before[..., tokens:, :])


def random_int8_cache(*shape: int) -> LayerCache:
    values = torch.randint(-127, 128, shape, dtype=torch.int8)
    return LayerCache(values, torch.rand(*shape[:-1], 1) * 0.02 + 0.001)


def close_integers(got: LayerCache, expected: tuple[Tensor, ...]) -> None:
    """Checks values and scales; a number half-way between two integers may become either."""
    values, scales = expected
    assert (got.values.int() - values.int()).abs().max() <= 1
    assert got.scales is not None
    close(got.scales, scales.double())


def test_a_cache_in_int8_gets_rounded_keys_and_values() -> None:
    rows, tokens, queries, kv, size = 2, 5, 4, 2, 32
    heads, rope = torch.randn(rows, tokens, queries + 2 * kv, size), random_rope(10, size)
    cache, at = random_int8_cache(4, 2, kv, 8, size), torch.tensor([3, 1])
    before = cache.values.clone()
    pointwise_kernels.triton_rotate_and_store(heads, *rope, at, *cache)
    kept = heads[:, :, queries:].unflatten(2, (2, kv)).permute(0, 2, 3, 1, 4)
    stored = LayerCache(*(tensor[at, ..., :tokens, :] for tensor in cache.tensors))
    close_integers(stored, stored.rounded(kept))
    assert torch.equal(cache.values[[0, 2]], before[[0, 2]])
    assert torch.equal(cache.values[..., tokens:, :], before[..., tokens:, :])


@pytest.mark.parametrize("size", [16, 80])
def test_tokens_attend_within_their_window_only(size: int) -> None:
    lengths, rope = [4, 9, 20], random_rope(33, size)
    heads = torch.randn(33, 3 * 2, size)
    starts = torch.tensor([0, *lengths]).cumsum(0)
    got = attention_kernels.triton_attend_windows(heads, rope, starts, max(lengths))
    turned = rotate_heads(heads.double(), rope[0].double(), rope[1].double(), 4)
    for window in turned.split(lengths):
        q, k, v = window.unflatten(1, (3, 2)).permute(1, 2, 0, 3)
        mixed = (q @ k.transpose(1, 2) * size**-0.5).softmax(-1) @ v
        close(got[: len(window)], mixed.transpose(0, 1).flatten(1))
        got = got[len(window) :]


def test_channels_are_weighed_after_bias_and_relu() -> None:
    x, bias, weights = torch.randn(2, 24, 6, 5), torch.randn(24), torch.randn(2, 24)
    raised = (x.double() + bias.double()[:, None, None]).relu()
    expected = (raised * weights.double()[..., None, None]).sum(1)
    close(pointwise_kernels.triton_weigh_channels(x, bias, weights), expected)


@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("relu_first", [False, True])
def test_a_norm_over_channels_includes_bias_sum_and_relu(relu_first: bool, added: bool) -> None:
    x, bias, scale = torch.randn(2, 24, 6, 5), torch.randn(24), torch.randn(24, 1, 1)
    add = torch.randn(2, 24, 6, 5) if added else None
    expected = x.double() + bias.double()[:, None, None]
    expected = expected.relu() if relu_first else expected
    expected = normed(expected, scale.double(), 1e-8, dim=1)
    expected = expected if add is None else expected + add.double()
    expected = expected if relu_first else expected.relu()
    close(
        pointwise_kernels.triton_channel_norm(
            x, bias, scale, add=add, relu_first=relu_first, eps=1e-8
        ),
        expected,
    )


@pytest.mark.parametrize("rows", [1, 20])
def test_products_of_few_rows(rows: int) -> None:
    x, weight, norm = torch.randn(rows, 512), torch.randn(256, 512) / 16, torch.randn(256)
    whole = x.double() @ weight.double().T
    close(decode_kernels.triton_gated_product(x, weight), silu_gate(whole))
    states = torch.randn(rows, 256)
    expected = states.double() + whole
    got = decode_kernels.triton_add_product_and_norm(states, x, weight, norm, 1e-6)
    close(states, expected)
    close(got, normed(expected, norm.double(), 1e-6))


@pytest.mark.parametrize("rows", [1, 20])
def test_products_of_few_rows_in_fp8(rows: int) -> None:
    x, norm = torch.randn(rows, 512), torch.randn(256)
    weight = quantise_rows(torch.randn(256, 512) / 16)
    quantised = quantise_rows(x)
    whole = quantised.dequantise().double() @ weight.dequantise().double().T
    close(decode_kernels.triton_gated_product(quantised, weight), silu_gate(whole))
    states = torch.randn(rows, 256)
    expected = states.double() + whole
    got = decode_kernels.triton_add_product_and_norm(
        states, quantised, weight, norm, 1e-6, in_fp8=True
    )
    close(states, expected)
    close_in_fp8(got, normed(expected, norm.double(), 1e-6))


def test_rows_end_in_fp8_with_a_scale_each() -> None:
    x = torch.randn(3, 300) * torch.tensor([[1e-3], [1.0], [1e4]])
    x[1] = 0
    close_in_fp8(Fp8Matrix(*row_kernels.triton_quantise_rows(x), x.dtype), x.double())
    both = torch.randn(3, 2 * 300)
    gates = Fp8Matrix(*row_kernels.triton_gate_rows(both), both.dtype)
    close_in_fp8(gates, silu_gate(both.double()))
    states, added, norm = torch.randn(3, 48), torch.randn(3, 48), torch.randn(48)
    expected = states.double() + added.double()
    rows = Fp8Matrix(
        *row_kernels.triton_norm_rows(states, added, norm, 1e-6, fp8=True), states.dtype
    )
    close(states, expected)
    close_in_fp8(rows, normed(expected, norm.double(), 1e-6))
    rows = Fp8Matrix(
        *row_kernels.triton_norm_rows(states, None, norm, 1e-6, fp8=True), states.dtype
    )
    close_in_fp8(rows, normed(expected, norm.double(), 1e-6))


def test_a_sum_and_its_norm_stay_in_the_dtype_of_the_states() -> None:
    states, added, norm = torch.randn(3, 48), torch.randn(3, 48), torch.randn(48)
    expected = states.double() + added.double()
    rows, _ = row_kernels.triton_norm_rows(states, added, norm, 1e-6, fp8=False)
    close(states, expected)
    close(rows, normed(expected, norm.double(), 1e-6))


def close_in_fp8(got: object, expected: Tensor) -> None:
    """Asserts that each value is off by at most half a step of e4m3's three bits."""
    assert isinstance(got, Fp8Matrix)
    peak = expected.abs().amax(-1, keepdim=True)
    torch.testing.assert_close(got.scale.double(), peak[:, 0].clamp(1e-12) / LARGEST)
    # Below 2 ** -6 the numbers are subnormal: their steps no longer shrink.
    step = expected.abs().clamp(min=2.0**-6 * peak / LARGEST) * 2**-4
    near = (got.dequantise().double() - expected).abs() <= step * 1.001 + 1e-12
    # Triton's interpreter loses the carry where rounding up reaches the next power of two.
    assert near.double().mean() >= (1.0 if expected.is_cuda else 0.94)


def test_partial_sums_are_float32_whatever_the_default_dtype_is() -> None:
    x, weight, states = torch.randn(4, 512), torch.randn(256, 512) / 16, torch.zeros(4, 256)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        decode_kernels.triton_add_product_and_norm(states, x, weight, torch.ones(256), 1e-6)
    finally:
        torch.set_default_dtype(before)
    close(states, x.double() @ weight.double().T)


@pytest.mark.parametrize(
    ("heads", "kv", "size", "count"), [(8, 2, 32, 1), (8, 2, 32, 5), (4, 4, 64, 1), (16, 2, 16, 15)]
)
@pytest.mark.parametrize("capacity", [64, pytest.param(256, marks=pytest.mark.slow)])
def test_attention_over_caches_of_all_lengths(
    heads: int, kv: int, size: int, count: int, capacity: int
) -> None:
    lengths = [0, capacity // 2 - 2, capacity - count]
    sequences = len(lengths)
    qkv = torch.randn(sequences, count, (heads + 2 * kv) * size)
    cache = torch.randn(4, 2, kv, capacity, size)
    rope, length = random_rope(sequences * count, size), torch.tensor([*lengths, 7])
    expected = cache.double()
    rotated = rotate_heads(
        qkv.double().view(sequences * count, -1, size),
        *(t.double() for t in rope), heads + kv,
    ).view(sequences, count, -1, size)  # fmt: skip
    got = attention_kernels.triton_cached_attention(qkv, rope, cache, None, length, bucket=capacity)
    for sequence, before in enumerate(lengths):
        after = before + count
        new = rotated[sequence, :, heads:].unflatten(1, (2, kv)).permute(1, 2, 0, 3)
        expected[sequence, :, :, before:after] = new
        keys, values = expected[sequence, :, :, :after].repeat_interleave(heads // kv, 1)
        later = torch.arange(after) > torch.arange(before, after)[:, None]
        weights = rotated[sequence, :, :heads].transpose(0, 1) @ keys.transpose(1, 2) * size**-0.5
        mixed = weights.masked_fill(later, -torch.inf).softmax(-1) @ values
        close(got[sequence], mixed.transpose(0, 1).flatten(1))
    close(cache, expected)


@pytest.mark.parametrize(("count", "capacity"), [(1, 64), (1, 256), (3, 64)])
def test_attention_over_a_cache_in_int8(count: int, capacity: int) -> None:
    heads, kv, size, lengths = 4, 2, 32, [0, 30, capacity - count]
    qkv = torch.randn(3, count, (heads + 2 * kv) * size)
    cache = random_int8_cache(4, 2, kv, capacity, size)
    rope, length = random_rope(3 * count, size), torch.tensor([*lengths, 7])
    rotated = rotate_heads(qkv.clone().view(3 * count, -1, size), *rope, heads + kv)
    rotated = rotated.view(3, count, -1, size)
    got = attention_kernels.triton_cached_attention(qkv, rope, *cache, length, bucket=capacity)
    for sequence, before in enumerate(lengths):
        after = before + count
        new = rotated[sequence, :, heads:].unflatten(1, (2, kv)).permute(1, 2, 0, 3)
        stored = LayerCache(*(tensor[sequence, :, :, before:after] for tensor in cache.tensors))
        close_integers(stored, stored.rounded(new))
        read = cache.read(4, after, torch.float64)[sequence]
        keys, values = read.repeat_interleave(heads // kv, 1)
        later = torch.arange(after) > torch.arange(before, after)[:, None]
        queries = rotated[sequence, :, :heads].double().transpose(0, 1)
        weights = queries @ keys.transpose(1, 2) * size**-0.5
        mixed = weights.masked_fill(later, -torch.inf).softmax(-1) @ values
        close(got[sequence], mixed.transpose(0, 1).flatten(1))
