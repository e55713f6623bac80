"""How generator and verifier share devices, without a GPU: parts only say where they are."""

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from tts_verifier import BestOfN, run
from tts_verifier.errors import RunError, RunWarning
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
        # Enough memory for the weights, not for the activations.
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


class MovablePart:
    """Says where it is, and notes every move and every piece of work in `events`."""

    def __init__(self, events, *, device=GPU, home=None, nbytes=10 * GIB):
        super().__init__()
        self.events, self.nbytes, self.device, self.home = events, nbytes, device, home

    def to(self, device):
        self.events.append(f"{type(self).__name__} to {device}")
        self.device = device


class MovableGenerator(MovablePart, FakeGenerator):
    def generate(self, jobs):
        self.events.append("generate")
        return super().generate(jobs)


class MovableVerifier(MovablePart, FakeVerifier):
    def verify(self, images, prompts, *, detail="diagnose"):
        self.events.append("verify")
        return super().verify(images, prompts, detail=detail)


def trace_of_run(monkeypatch, free, folder=None, overlap=False, **options):
    """Returns what a best-of-4 for two prompts does on a GPU with `free` bytes left."""
    monkeypatch.setattr("tts_verifier.runner.devices.free_bytes", lambda device: free)
    events = []
    parts = MovableGenerator(events), MovableVerifier(events, **options)
    parts[0].batch_size = 2
    run(["a red circle", "a blue one"], *parts, BestOfN(4), folder=folder, overlap=overlap)
    return events


def test_parts_that_do_not_fit_change_places_once_a_round(monkeypatch, tmp_path):
    events = trace_of_run(monkeypatch, 1 * GIB, tmp_path)
    assert events == [
        "MovableVerifier to cpu", "generate", "generate", "generate", "generate",
        "MovableGenerator to cpu", "MovableVerifier to cuda:0",
        "verify", "verify", "verify", "verify",
        "MovableGenerator to cuda:0",
    ]  # fmt: skip
    (session,) = read_header(tmp_path)["sessions"]
    assert session["plan"] == "in turns"
    assert session["moves"] == 3  # the move back comes after the header
    assert session["overlap"] is False


def test_a_verifier_that_waits_in_host_memory_waits_there_again(monkeypatch):
    events = trace_of_run(monkeypatch, 1 * GIB, device="cpu", home=GPU)
    assert events[-2:] == ["MovableVerifier to cpu", "MovableGenerator to cuda:0"]


def test_a_second_run_finds_both_where_the_first_did(monkeypatch):
    monkeypatch.setattr("tts_verifier.runner.devices.free_bytes", lambda device: GIB)
    events = []
    parts = MovableGenerator(events), MovableVerifier(events)
    for _ in range(2):
        run(["a red circle"], *parts, BestOfN(1))
        assert [part.device for part in parts] == [GPU, GPU]
    assert events == 2 * events[: len(events) // 2]


def test_the_images_that_wait_for_the_verifier_are_bounded(monkeypatch):
    monkeypatch.setattr("tts_verifier.runner.loop.MAX_UNVERIFIED", 4)
    events = trace_of_run(monkeypatch, 1 * GIB)
    assert "".join(what[0] for what in events if what in ("generate", "verify")) == "ggvvggvv"


def test_parts_that_fit_stay(monkeypatch, tmp_path):
    assert trace_of_run(monkeypatch, 40 * GIB, tmp_path) == ["generate", "verify"] * 4
    (session,) = read_header(tmp_path)["sessions"]
    assert (session["plan"], session["moves"]) == ("together", 0)


def test_a_part_that_waited_elsewhere_comes_when_it_fits(monkeypatch):
    events = trace_of_run(monkeypatch, 40 * GIB, device="cpu", home=GPU)
    assert events == [
        "generate",
        "MovableVerifier to cuda:0",
        "verify",
        *["generate", "verify"] * 3,
    ]


def test_sizes_are_counted_only_where_memory_is_short(monkeypatch):
    class Huge(MovableVerifier):
        @property
        def nbytes(self):
            raise AssertionError("counted")

        @nbytes.setter
        def nbytes(self, _):
            pass

    monkeypatch.setattr("tts_verifier.runner.devices.free_bytes", lambda device: 40 * GIB)
    run(["a"], MovableGenerator([]), Huge([]), BestOfN(1), overlap=False)


def test_a_part_that_must_stay_stays(monkeypatch):
    assert trace_of_run(monkeypatch, 1 * GIB, nbytes=None) == ["generate", "verify"] * 4


def test_a_part_that_finds_no_room_beside_one_that_must_stay_is_not_brought(monkeypatch):
    monkeypatch.setattr("tts_verifier.runner.devices.free_bytes", lambda device: GIB)
    events = []
    parts = MovableGenerator(events, nbytes=None), MovableVerifier(events, device="cpu", home=GPU)
    run(["a red circle"], *parts, BestOfN(1))
    assert events == ["generate", "verify"]


@pytest.mark.parametrize(
    ("free", "options", "expected"),
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
    free, options, expected, monkeypatch, tmp_path
):
    trace_of_run(monkeypatch, free, tmp_path, **{"overlap": None, **options})
    (session,) = read_header(tmp_path)["sessions"]
    assert (session["plan"], session["overlap"]) == expected
    assert session["devices"] == {
        "generate": GPU,
        "verify": options.get("home", options.get("device", GPU)),
    }


@pytest.mark.parametrize(
    ("gpu", "free", "expected"),
    [
        ("cuda:0", 40 * GIB, ("together", True)),
        ("cuda:1", 40 * GIB, ("together", True)),
        ("cuda:1", 1 * GIB, ("as placed", False)),
        ("cuda:2", 1 * GIB, ("apart", True)),
    ],
)
def test_a_verifier_on_several_gpus_shares_any_of_them(gpu, free, expected, monkeypatch, tmp_path):
    monkeypatch.setattr("tts_verifier.runner.devices.free_bytes", lambda device: free)
    events = []
    generator, verifier = MovableGenerator(events, device=gpu), MovableVerifier(events, nbytes=None)
    verifier.devices = (torch.device("cuda:0"), torch.device("cuda:1"))
    run(["a"], generator, verifier, BestOfN(1), folder=tmp_path)
    (session,) = read_header(tmp_path)["sessions"]
    assert (session["plan"], session["overlap"]) == expected
    assert session["devices"] == {"generate": gpu, "verify": "cuda:0,cuda:1"}
    assert session["moves"] == 0


def test_on_a_cpu_nothing_overlaps_unless_asked(monkeypatch, tmp_path):
    monkeypatch.setattr("tts_verifier.runner.devices.free_bytes", lambda device: None)
    run(
        ["a"],
        MovableGenerator([], device="cpu"),
        MovableVerifier([], device="cpu"),
        BestOfN(1),
        folder=tmp_path,
    )
    (session,) = read_header(tmp_path)["sessions"]
    assert (session["plan"], session["overlap"]) == ("together", False)


def test_a_part_that_waited_elsewhere_is_there_before_it_overlaps(monkeypatch):
    events = trace_of_run(monkeypatch, 40 * GIB, overlap=True, device="cpu", home=GPU)
    assert events.index("MovableVerifier to cuda:0") < events.index("verify")


def test_the_generator_is_back_when_a_run_fails(monkeypatch):
    monkeypatch.setattr("tts_verifier.runner.devices.free_bytes", lambda device: GIB)
    events = []

    class Broken(MovableVerifier):
        def verify(self, images, prompts, *, detail="diagnose"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(["a red circle"], MovableGenerator(events), Broken(events), BestOfN(2))
    assert events[-1] == "MovableGenerator to cuda:0"


def test_a_judge_that_waits_in_host_memory_is_told(monkeypatch):
    monkeypatch.setattr("tts_verifier.runner.devices.free_bytes", lambda device: 40 * GIB)
    judge = MovableVerifier([], device="cpu", home=GPU)
    with pytest.warns(RunWarning, match="held-out judge did not fit on cuda:0 and runs on cpu"):
        run(
            ["a red circle"],
            MovableGenerator([]),
            MovableVerifier([]),
            BestOfN(1),
            judge=judge,
            overlap=False,
        )


def test_a_part_may_say_where_it_computes():
    assert placement_of(FakeVerifier()) == PartPlacement(None, 0, False)
    assert placement_of(SimpleNamespace(device=torch.device("cuda", 1))) == PartPlacement(
        "cuda:1", 0, False
    )
    assert placement_of(MovableVerifier([], device="cpu", home=GPU, nbytes=3)) == PartPlacement(
        GPU, 3, True
    )
    assert placement_of(MovableVerifier([], nbytes=3)) == PartPlacement(GPU, 0, True)


def test_images_that_wait_for_the_verifiers_turn_outlive_a_kill(monkeypatch, tmp_path):
    class Dies(MovableVerifier):
        def verify(self, images, prompts, *, detail="diagnose"):
            raise KeyboardInterrupt

    monkeypatch.setattr("tts_verifier.runner.devices.free_bytes", lambda device: 1 * GIB)
    with pytest.raises(KeyboardInterrupt):
        run(["a red circle"], MovableGenerator([]), Dies([]), BestOfN(8), folder=tmp_path)
    events = []
    run(
        ["a red circle"],
        MovableGenerator(events),
        MovableVerifier(events),
        BestOfN(8),
        folder=tmp_path,
    )
    assert (events.count("generate"), events.count("verify")) == (0, 2)


@pytest.mark.parametrize("shared", ["verifier", "generator"])
@pytest.mark.parametrize("free", [1 * GIB, 40 * GIB])
def test_runs_at_once_cannot_share_a_part_that_takes_turns(monkeypatch, shared, free):
    monkeypatch.setattr("tts_verifier.runner.devices.free_bytes", lambda device: 1 * GIB)
    events, errors = [], []

    class Shared(MovableGenerator if shared == "generator" else MovableVerifier):
        inside = False

        def _meanwhile(self):
            if self.inside:
                return
            self.inside = True
            # The other run would find room, now that a part is away.
            monkeypatch.setattr("tts_verifier.runner.devices.free_bytes", lambda device: free)
            before = list(events)
            with ThreadPoolExecutor(1) as thread, pytest.raises(RunError) as caught:
                thread.submit(search).result()
            errors.append(str(caught.value))
            assert events == before

        def generate(self, jobs):
            self._meanwhile()
            return super().generate(jobs)

        def verify(self, images, prompts, *, detail="diagnose"):
            self._meanwhile()
            return super().verify(images, prompts, detail=detail)

    part = Shared(events)
    other = (MovableVerifier if shared == "generator" else MovableGenerator)(events)

    def search():
        own = type(other)(events) if part.inside else other
        parts = (part, own) if shared == "generator" else (own, part)
        return run(["a red circle"], *parts, BestOfN(2))

    search()
    assert len(errors) == 1
    assert "cannot share a generator or verifier that takes turns on a device" in errors[0]
    # What is over is in nobody's way, and neither is a run that failed.
    search()


def test_runs_at_once_may_share_parts_that_stay(monkeypatch):
    monkeypatch.setattr("tts_verifier.runner.devices.free_bytes", lambda device: 40 * GIB)
    parts = MovableGenerator([]), MovableVerifier([])
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(lambda _: run(["a ring"], *parts, BestOfN(2)), range(8)))
    assert len({result.choices["0000"].trial.objective for result in results}) == 1
