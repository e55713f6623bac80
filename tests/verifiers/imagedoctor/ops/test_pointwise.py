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
