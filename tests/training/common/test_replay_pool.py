import torch
from seeded import seeded

from tts_verifier.training.common import ReplayPool


def test_a_pool_forgets_the_oldest_and_keeps_rows_whole():
    pool = ReplayPool(4, seeded(0))
    pool.add(torch.tensor([1, 2]), torch.tensor([10.0, 20.0]))
    assert set(pool.sample(50)[0].tolist()) == {1, 2}
    for first in (3, 5):
        pool.add(torch.tensor([first, first + 1]), torch.tensor([10.0 * first, 10.0 * first + 10]))
    ids, values = pool.sample(100)
    assert set(ids.tolist()) == {3, 4, 5, 6}
    assert torch.equal(values, 10.0 * ids)
