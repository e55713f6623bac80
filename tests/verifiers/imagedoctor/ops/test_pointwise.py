"""Where kernels of our own run: not on old GPUs, nor where Triton cannot build them."""

from __future__ import annotations

import warnings

import pytest
import torch

from tts_verifier.errors import RunWarning
from tts_verifier.verifiers.imagedoctor.ops import pointwise

GPU = torch.device("cuda", 0)
tried = pointwise._run_on.__wrapped__


def test_an_old_gpu_runs_the_plain_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert not tried(GPU)


def test_what_triton_lacks_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = pytest.importorskip("tts_verifier.verifiers.imagedoctor.ops.pointwise_kernels")

    def broken(_: torch.Tensor) -> None:
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch, "zeros", lambda *shape, **_: torch.empty(shape))
    monkeypatch.setattr(kernels, "gated", broken)
    with pytest.warns(RunWarning, match=r"do not run on cuda:0 .*C compiler.*install one"):
        assert not tried(GPU)
    monkeypatch.setattr(kernels, "gated", lambda _: None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tried(GPU)


def test_a_cpu_and_training_run_the_plain_chain() -> None:
    assert not pointwise.in_kernels(torch.zeros(1))
