import torch

from tts_verifier.training.common import CapturedStep


def test_a_captured_step_is_called_as_it_is_on_a_cpu():
    calls = []
    step = CapturedStep(lambda x: calls.append(x) or x * 2)
    assert step(torch.ones(2)).tolist() == [2.0, 2.0]
    assert len(calls) == 1
