"""How generator and verifier share devices, without a GPU: parts only say where they are."""

from types import SimpleNamespace

import pytest
import torch

from tts_verifier import BestOfN, run
from tts_verifier.errors import RunWarning
from tts_verifier.log import read_header
from tts_verifier.runner.devices import PartPlacement, placement_of, plan_placement
from tts_verifier.testing import FakeGenerator, FakeVerifier

GIB = 2**30
GPU = "cuda:0"


HERE, AWAY, BOUND = (
    PartPlacement(GPU, 0, True),
    PartPlacement(GPU, 8 * GIB, True),
    PartPlacement(GPU, 0, False),
)


@pytest.mark.parametrize(
    ("generator", "verifier", "free", "expected"),
    [
        (HERE, HERE, 4 * GIB, "together"),
        # Room for the weights, none for what is computed.
        (HERE, HERE, 4 * GIB - 1, "in turns"),
        (HERE, AWAY, 12 * GIB, "together"),
        (HERE, AWAY, 11 * GIB, "in turns"),
        (AWAY, AWAY, 19 * GIB, "in turns"),
        (BOUND, AWAY, 12 * GIB, "together"),
        (BOUND, AWAY, 11 * GIB, "as placed"),
        (HERE, BOUND, 1 * GIB, "as placed"),
        (HERE, PartPlacement("cuda:1"), None, "apart"),
        (BOUND, PartPlacement("cpu"), None, "apart"),
        (PartPlacement("cpu"), PartPlacement("cpu"), None, "together"),
        (PartPlacement(None), AWAY, None, "as placed"),
    ],
)
def test_the_plan_follows_from_sizes(generator, verifier, free, expected):
    assert plan_placement(generator, verifier, free) == expected


class Movable:
    """Says where it is, and notes every move and every piece of work in `seen`."""

    def __init__(self, seen, *, device=GPU, home=None, nbytes=10 * GIB):
        super().__init__()
        self.seen, self.nbytes, self.device, self.home = seen, nbytes, device, home

    def to(self, device):
        self.seen.append(f"{type(self).__name__} to {device}")
        self.device = device


class Drawer(Movable, FakeGenerator):
    def generate(self, jobs):
        self.seen.append("draw")
        return super().generate(jobs)


class Judge(Movable, FakeVerifier):
    def verify(self, images, prompts, *, detail="diagnose"):
        self.seen.append("judge")
        return super().verify(images, prompts, detail=detail)


def searched(monkeypatch, free, folder=None, overlap=False, **told):
    """What happened in a best-of-4 for two prompts on a GPU with `free` bytes left."""
    monkeypatch.setattr("tts_verifier.runner.devices.free_bytes", lambda device: free)
    trace = []
    parts = Drawer(trace), Judge(trace, **told)
    parts[0].batch_size = 2
    run(["a red circle", "a blue one"], *parts, BestOfN(4), folder=folder, overlap=overlap)
    return trace


def test_parts_that_do_not_fit_change_places_once_a_round(monkeypatch, tmp_path):
    trace = searched(monkeypatch, 1 * GIB, tmp_path)
    assert trace == [
        "Judge to cpu", "draw", "draw", "draw", "draw",
        "Drawer to cpu", "Judge to cuda:0", "judge", "judge", "judge", "judge",
        "Drawer to cuda:0",
    ]  # fmt: skip
    (session,) = read_header(tmp_path)["sessions"]
    assert session["plan"] == "in turns"
    assert session["moves"] == 3  # that back is not over yet
    assert session["overlap"] is False


def test_a_verifier_that_waits_in_host_memory_waits_there_again(monkeypatch):
    trace = searched(monkeypatch, 1 * GIB, device="cpu", home=GPU)
    assert trace[-2:] == ["Judge to cpu", "Drawer to cuda:0"]


def test_a_second_run_finds_both_where_the_first_did(monkeypatch):
    monkeypatch.setattr("tts_verifier.runner.devices.free_bytes", lambda device: GIB)
    trace = []
    parts = Drawer(trace), Judge(trace)
    for _ in range(2):
        run(["a red circle"], *parts, BestOfN(1))
        assert [part.device for part in parts] == [GPU, GPU]
    assert trace == 2 * trace[: len(trace) // 2]


def test_what_waits_to_be_judged_is_bounded(monkeypatch):
    monkeypatch.setattr("tts_verifier.runner.loop.MAX_UNVERIFIED", 4)
    trace = searched(monkeypatch, 1 * GIB)
    assert "".join(what[0] for what in trace if what in ("draw", "judge")) == "ddjjddjj"


def test_parts_that_fit_stay(monkeypatch, tmp_path):
    assert searched(monkeypatch, 40 * GIB, tmp_path) == ["draw", "judge"] * 4
    (session,) = read_header(tmp_path)["sessions"]
    assert (session["plan"], session["moves"]) == ("together", 0)


def test_a_part_that_waited_elsewhere_comes_when_it_fits(monkeypatch):
    trace = searched(monkeypatch, 40 * GIB, device="cpu", home=GPU)
    assert trace == ["draw", "Judge to cuda:0", "judge", *["draw", "judge"] * 3]


def test_sizes_are_counted_only_where_memory_is_short(monkeypatch):
    class Huge(Judge):
        @property
        def nbytes(self):
            raise AssertionError("counted")

        @nbytes.setter
        def nbytes(self, _):
            pass

    monkeypatch.setattr("tts_verifier.runner.devices.free_bytes", lambda device: 40 * GIB)
    run(["a"], Drawer([]), Huge([]), BestOfN(1), overlap=False)


def test_a_part_that_must_stay_stays(monkeypatch):
    assert searched(monkeypatch, 1 * GIB, nbytes=None) == ["draw", "judge"] * 4


def test_a_part_that_finds_no_room_beside_one_that_must_stay_is_not_brought(monkeypatch):
    monkeypatch.setattr("tts_verifier.runner.devices.free_bytes", lambda device: GIB)
    seen = []
    parts = Drawer(seen, nbytes=None), Judge(seen, device="cpu", home=GPU)
    run(["a red circle"], *parts, BestOfN(1))
    assert seen == ["draw", "judge"]


@pytest.mark.parametrize(
    ("free", "told", "expected"),
    [
        (40 * GIB, {"device": "cuda:1"}, ("apart", True)),
        (40 * GIB, {"device": "cuda:1", "overlap": False}, ("apart", False)),
        (40 * GIB, {}, ("together", True)),
        (40 * GIB, {"overlap": False}, ("together", False)),
        (40 * GIB, {"device": "cpu", "home": GPU}, ("together", True)),
        (1 * GIB, {"overlap": True}, ("in turns", False)),
    ],
)
def test_two_devices_overlap_and_a_shared_gpu_unless_told_otherwise(
    free, told, expected, monkeypatch, tmp_path
):
    searched(monkeypatch, free, tmp_path, **{"overlap": None, **told})
    (session,) = read_header(tmp_path)["sessions"]
    assert (session["plan"], session["overlap"]) == expected
    assert session["devices"] == {
        "generate": GPU,
        "verify": told.get("home", told.get("device", GPU)),
    }


def test_on_a_cpu_nothing_overlaps_unless_asked(monkeypatch, tmp_path):
    monkeypatch.setattr("tts_verifier.runner.devices.free_bytes", lambda device: None)
    run(["a"], Drawer([], device="cpu"), Judge([], device="cpu"), BestOfN(1), folder=tmp_path)
    (session,) = read_header(tmp_path)["sessions"]
    assert (session["plan"], session["overlap"]) == ("together", False)


def test_a_part_that_waited_elsewhere_is_there_before_it_judges_beside_drawing(monkeypatch):
    seen = searched(monkeypatch, 40 * GIB, overlap=True, device="cpu", home=GPU)
    assert seen.index("Judge to cuda:0") < seen.index("judge")


def test_the_generator_is_back_when_a_run_fails(monkeypatch):
    monkeypatch.setattr("tts_verifier.runner.devices.free_bytes", lambda device: GIB)
    trace = []

    class Broken(Judge):
        def verify(self, images, prompts, *, detail="diagnose"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(["a red circle"], Drawer(trace), Broken(trace), BestOfN(2))
    assert trace[-1] == "Drawer to cuda:0"


def test_a_judge_that_waits_in_host_memory_is_told(monkeypatch):
    monkeypatch.setattr("tts_verifier.runner.devices.free_bytes", lambda device: 40 * GIB)
    judge = Judge([], device="cpu", home=GPU)
    with pytest.warns(RunWarning, match="held-out judge did not fit on cuda:0 and judges on cpu"):
        run(["a red circle"], Drawer([]), Judge([]), BestOfN(1), judge=judge, overlap=False)


def test_a_part_may_say_where_it_computes():
    assert placement_of(FakeVerifier()) == PartPlacement(None, 0, False)
    assert placement_of(SimpleNamespace(device=torch.device("cuda", 1))) == PartPlacement(
        "cuda:1", 0, False
    )
    assert placement_of(Judge([], device="cpu", home=GPU, nbytes=3)) == PartPlacement(GPU, 3, True)
    assert placement_of(Judge([], nbytes=3)) == PartPlacement(GPU, 0, True)


def test_what_was_drawn_before_the_turn_to_judge_outlives_a_kill(monkeypatch, tmp_path):
    class Dies(Judge):
        def verify(self, images, prompts, *, detail="diagnose"):
            raise KeyboardInterrupt

    monkeypatch.setattr("tts_verifier.runner.devices.free_bytes", lambda device: 1 * GIB)
    with pytest.raises(KeyboardInterrupt):
        run(["a red circle"], Drawer([]), Dies([]), BestOfN(8), folder=tmp_path)
    trace = []
    run(["a red circle"], Drawer(trace), Judge(trace), BestOfN(8), folder=tmp_path)
    assert (trace.count("draw"), trace.count("judge")) == (0, 2)
