"""Where the parts of a run compute, without a GPU: torch's calls are noted in place of made."""

from types import SimpleNamespace

import pytest
import torch

from tts_verifier.devices import device_of, own_stream
from tts_verifier.testing import FakeVerifier


def test_a_part_may_say_where_it_computes():
    assert device_of(FakeVerifier()) is None
    assert device_of(SimpleNamespace(device=torch.device("cuda", 1))) == "cuda:1"


@pytest.mark.parametrize("device", [None, "cpu"])
def test_without_a_gpu_there_is_no_stream(device, monkeypatch):
    monkeypatch.delattr(torch.cuda, "set_stream")
    own_stream(device)


def test_a_thread_gets_a_stream_of_precedence_and_always_the_same(monkeypatch):
    told = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: told.append(device))
    monkeypatch.setattr(torch.cuda, "set_stream", told.append)
    monkeypatch.setattr(
        torch.cuda, "Stream", lambda device, priority: SimpleNamespace(at=device, first=-priority)
    )
    own_stream("cuda:7")
    own_stream("cuda:7")
    assert told[0] == told[2] == "cuda:7"
    assert told[1] is told[3]
    assert (told[1].at, told[1].first) == ("cuda:7", 1)
