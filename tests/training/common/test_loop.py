from __future__ import annotations

import re

import pytest
import torch

from tts_verifier.training.common import Periodic, WeightAverage, learning_rate, train_for


def test_the_learning_rate_rises_stays_and_falls_to_nothing() -> None:
    rates = [learning_rate(2.0, p) for p in (0.0, 0.3, 0.75, 1.0, 1.5)]
    assert rates == [0.0, 2.0, 1.0, 0.0, 0.0]


def test_the_average_follows_the_weights() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    average = WeightAverage(model, 0.9)
    model.weight.data.fill_(7.0)
    for _ in range(100):
        average.update()
    torch.testing.assert_close(
        next(average.model.parameters()), torch.full((1, 1), 7.0), atol=0.01, rtol=0
    )


def test_the_loop_prints_mean_losses_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    losses = {"total": torch.tensor(0.0), "text": torch.tensor(5.0)}

    def step(progress: float) -> dict[str, torch.Tensor]:
        assert 0 <= progress < 1
        losses["total"] += 1  # in place, as a replayed graph overwrites its result
        return losses

    train_for(1e-4, step, print_seconds=-1.0)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == int(losses["total"])
    for number, line in enumerate(lines, 1):
        head = rf" +\d+ s, step {number}, \d+\.\d steps/s, 0 s left: "
        assert re.fullmatch(rf"{head}total {number}\.0000, text 5\.0000", line)


def test_periodic_work_is_done_when_due_and_in_order_at_the_end() -> None:
    done: list[str] = []

    def step(progress: float) -> dict[str, torch.Tensor]:
        done.append("step")
        return {"total": torch.tensor(0.0)}

    always = Periodic(-1.0, lambda: done.append("always"))
    never = Periodic(1e9, lambda: done.append("never"))
    train_for(1e-4, step, print_seconds=1e9, periodic=[always, never])
    steps = done.count("step")
    assert done == [*["step", "always"] * steps, "always", "never"]
