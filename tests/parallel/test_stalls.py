"""Which shard is said to have had no new candidate, and for how long."""

from tts_verifier.parallel.stalls import Stalls


def test_the_shard_that_is_silent_for_longest_is_named():
    now = 0.0
    stalls = Stalls(lambda: now)
    stalls.note("00000", 4)
    stalls.note("00001", 0)
    now = 59.0
    stalls.note("00001", 0)
    assert str(stalls) == ""
    now = 125.0
    stalls.note("00000", 8)
    assert str(stalls) == "shard 00001: nothing new for 2 min"
    now = 200.0
    assert str(stalls) == "shard 00001: nothing new for 3 min (1 more for less)"
    stalls.note("00001", 1)
    assert str(stalls) == "shard 00000: nothing new for 1 min"
    stalls.forget("00000")
    assert str(stalls) == ""
