"""Where our own kernels run: not on old GPUs, and not where Triton cannot build them."""

from __future__ import annotations

import warnings

import pytest
import torch

from tts_verifier.errors import RunWarning
from tts_verifier.verifiers.imagedoctor.ops import pointwise

GPU = torch.device("cuda", 0)
runs_on = pointwise.triton_runs_on.__wrapped__  # without the cache


def test_an_old_gpu_runs_the_plain_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert not runs_on(GPU)


def test_a_warning_says_what_triton_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = pytest.importorskip("tts_verifier.verifiers.imagedoctor.ops.pointwise_kernels")

    def broken(_: torch.Tensor) -> None:
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch, "zeros", lambda *shape, **_: torch.empty(shape))
    monkeypatch.setattr(kernels, "triton_silu_gate", broken)
    with pytest.warns(RunWarning, match=r"do not run on cuda:0 .*C compiler.*install one"):
        assert not runs_on(GPU)
    monkeypatch.setattr(kernels, "triton_silu_gate", lambda _: None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert runs_on(GPU)


def test_a_cpu_runs_the_plain_chain() -> None:
    assert not pointwise.use_triton(torch.zeros(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_heads_are_rotated_in_place_and_rounded_once(dtype: torch.dtype) -> None:
    heads = torch.randn(5, 3, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    angle = torch.arange(20.0).view(5, 4)
    cos, sin = torch.cat([angle.cos()] * 2, -1), torch.cat([-angle.sin(), angle.sin()], -1)
    first, second = heads[:, :2].double().chunk(2, -1)
    c, s = angle.double().cos()[:, None], angle.double().sin()[:, None]
    turned = torch.cat([first * c - second * s, second * c + first * s], -1)
    expected = torch.cat([turned, heads[:, 2:].double()], 1)
    result = pointwise.rotate_heads(heads, cos, sin, 2)
    assert result is heads
    torch.testing.assert_close(result, expected.to(dtype))
    assert (heads.double() - expected).abs().max() < torch.finfo(dtype).eps * 4
