from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tiny_imagedoctor import example

from tts_verifier.training.verifier.sft_loss import IGNORED, loss
from tts_verifier.verifiers.imagedoctor.config import ImageDoctorConfig
from tts_verifier.verifiers.imagedoctor.model.model import ImageDoctorModel

RAW = example().config("tiny")
MISALIGNMENT, ARTIFACT = RAW["misalignment_token_id"], RAW["artifact_token_id"]
GRID = (2, 3)


@pytest.fixture(scope="module")
def case() -> SimpleNamespace:
    """Three rows: both tokens; misalignment alone; both, without truth for the artifact."""
    torch.manual_seed(0)
    model = ImageDoctorModel(ImageDoctorConfig.from_dict(RAW))
    ids = torch.randint(0, 256, (3, 20))
    ids[:, 2:8] = RAW["image_token_id"]
    ids[0, [12, 15]] = torch.tensor([ARTIFACT, MISALIGNMENT])
    ids[1, 14] = MISALIGNMENT
    ids[2, [11, 18]] = torch.tensor([MISALIGNMENT, ARTIFACT])
    labels = ids.clone()
    labels[:, :10] = IGNORED
    targets = torch.rand(3, 2, 32, 48)
    targets[2, 1] = torch.nan
    pixels = torch.randn(3 * 24, 1176)
    return SimpleNamespace(model=model, ids=ids, labels=labels, targets=targets, pixels=pixels)


def losses(case: SimpleNamespace, rows: list[int]):
    pixels = case.pixels.view(3, 24, -1)[rows].flatten(0, 1)
    out = case.model(case.ids[rows], pixels, [(1, 4, 6)] * len(rows))
    return loss(case.model, out, case.labels[rows], case.targets[rows], grid=GRID)


def test_a_batch_averages_over_the_maps_that_have_a_token_and_a_truth(
    case: SimpleNamespace,
) -> None:
    single = [losses(case, [i]) for i in range(3)]
    whole = losses(case, [0, 1, 2])
    expected = torch.stack([part.misalignment for part in single]).mean()
    torch.testing.assert_close(whole.misalignment, expected)
    torch.testing.assert_close(whole.artifact, single[0].artifact)
    assert single[1].artifact == 0
    assert single[2].artifact == 0
    torch.testing.assert_close(whole.total, whole.text + whole.artifact + whole.misalignment)


def test_a_map_without_truth_leaves_every_gradient_finite(case: SimpleNamespace) -> None:
    losses(case, [1, 2]).total.backward()
    grads = [p.grad for p in case.model.parameters() if p.grad is not None]
    case.model.zero_grad()
    assert len(grads) > 100
    assert all(g.isfinite().all() for g in grads)
