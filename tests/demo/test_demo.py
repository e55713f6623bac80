"""The demo without a browser: what a search reports, the page's HTML, and errors."""

import socket
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from tiny_pipelines import sd15

from tts_verifier import wrap
from tts_verifier.cli.demo import demo_command
from tts_verifier.demo import launch
from tts_verifier.demo.page import Page, status
from tts_verifier.demo.search import Snapshot, search
from tts_verifier.errors import InputError, UnsupportedError
from tts_verifier.runner import RunSetup
from tts_verifier.strategies.best_of_n import BestOfN
from tts_verifier.strategies.inpaint_reroll import InpaintReroll
from tts_verifier.strategies.successive_halving import SuccessiveHalving
from tts_verifier.testing import FakeGenerator, FakeVerifier
from tts_verifier.types import Verdict

EVIL = "<script>owned=1</script>"


def searched(setup: RunSetup, prompt: str = "a red circle") -> list[Snapshot]:
    return list(search(setup, prompt, threading.Event()))


def test_each_candidate_is_reported_when_it_is_verified_and_the_chosen_one_last() -> None:
    found = searched(RunSetup(FakeGenerator(1), FakeVerifier(), BestOfN(3)))
    assert sorted({len(now.candidates) for now in found}) == [0, 1, 2, 3]
    last = found[-1]
    best = max(last.candidates, key=lambda trial: trial.objective)
    assert (last.best, last.doing, last.error) == (best.id, "", "")
    assert all(now.doing for now in found[:-1])


def test_a_look_takes_the_place_of_the_picture_that_it_looked_at() -> None:
    setup = RunSetup(FakeGenerator(1), FakeVerifier(), BestOfN(3), looks=1)
    last = searched(setup)[-1]
    assert len(last.candidates) == 3
    details = {t.id: t.verdict.detail for t in last.candidates if t.verdict}
    assert sorted(details.values()) == ["diagnose", "score", "score"]
    assert details[last.best or ""] == "diagnose"


def test_a_continued_picture_keeps_its_place_and_the_first_is_a_finished_one() -> None:
    setup = RunSetup(FakeGenerator(1), FakeVerifier(), SuccessiveHalving(4, stops=(0.5, 1.0)))
    found = searched(setup)
    drawn = [t.id for t in next(now for now in found if len(now.candidates) == 4).candidates]
    last = found[-1]
    pairs = list(zip(last.candidates, drawn, strict=True))
    assert [id for t, id in pairs if t.id != id] == [t.parent_id for t, id in pairs if t.id != id]
    finished = [t.objective for t in last.candidates if t.finished]
    assert 0 < len(finished) < 4
    assert status(last, 4).endswith(f"the first has {finished[0]:.3f}.")


def test_a_stopped_search_keeps_what_was_drawn() -> None:
    stop = threading.Event()
    found = []
    for now in search(RunSetup(FakeGenerator(1), FakeVerifier(), BestOfN(50)), "a", stop):
        found.append(now)
        if len(now.candidates) == 2:
            stop.set()
    last = found[-1]
    assert last.error == "Stopped."
    assert 2 <= len(last.candidates) < 50
    assert last.best in {trial.id for trial in last.candidates}


def test_a_closed_search_has_ended() -> None:
    generator = FakeGenerator(1)
    found = search(RunSetup(generator, FakeVerifier(), BestOfN(50)), "a", threading.Event())
    next(found)
    found.close()  # type: ignore[attr-defined]
    count = len(generator.trace)
    assert len(generator.trace) == count < 50


class BreaksAtTheThird(FakeVerifier):
    def verify(self, images: Any, prompts: Any, **options: Any) -> list[Verdict]:
        if len(self.trace) == 2:
            raise InputError("The third is refused.")
        return super().verify(images, prompts, **options)


def test_errors_are_said_beside_the_candidates_until_then(
    capsys: pytest.CaptureFixture[str],
) -> None:
    setup = RunSetup(FakeGenerator(1), BreaksAtTheThird(), BestOfN(4), overlap=False)
    last = searched(setup)[-1]
    assert (last.error, len(last.candidates)) == ("The third is refused.", 2)
    assert status(last, 4).startswith("The third is refused. The best of 2 has 0.")
    assert "prompt" in searched(setup, " ")[-1].error
    wrong = SimpleNamespace(propose=lambda task, history: 1 / 0, needs=frozenset())
    broken = searched(RunSetup(FakeGenerator(), FakeVerifier(), wrong))[-1]
    assert broken.error == "ZeroDivisionError: division by zero"
    assert "propose" in capsys.readouterr().err, "the terminal has the place"


def test_the_page_shows_scores_maps_and_the_chosen_one_and_text_stays_text() -> None:
    setup = RunSetup(FakeGenerator(1), FakeVerifier(), BestOfN(2), judge=FakeVerifier())
    found = searched(setup, EVIL)
    page = Page()
    html = page.html(found[-1])
    assert html.count("<figure") == html.count('class="map"') == 2
    assert html.count("<mark>chosen</mark>") == 1
    assert "judge: overall" in html
    assert EVIL not in html
    assert "<mark>best so far</mark>" in page.html(found[-2])


def test_a_failed_candidate_says_why() -> None:
    generator = FakeGenerator(1, fails=lambda job: True)
    last = searched(RunSetup(generator, FakeVerifier(), BestOfN(2)))[-1]
    assert status(last, 2) == "None of 2 candidates is usable; each one says why."
    assert last.candidates[0].error[:20] in Page().html(last)


def test_the_line_says_what_the_search_does_and_found() -> None:
    found = searched(RunSetup(FakeGenerator(1), FakeVerifier(), BestOfN(2)))
    assert "draw … 0 of at most 2 candidates" in [status(now, 2) for now in found]
    assert status(found[-1], 2).startswith("The best of 2 has 0.")


def test_without_gradio_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(InputError, match=r'pip install "tts-verifier\[demo\]"'):
        launch()
    result = CliRunner().invoke(demo_command, ["no-such-recipe"])
    assert result.exit_code == 2
    assert "tts-verifier[demo]" in result.output


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What `launch` would serve, without gradio."""
    seen = SimpleNamespace()

    def searches(setup: RunSetup, strategies: dict[str, Any], most: int) -> None:
        seen.setup, seen.strategies, seen.most = setup, strategies, most

    def build_page(_: object, prompts: list[str]) -> None:
        seen.prompts = list(prompts)

    app: Any = SimpleNamespace(
        Searches=searches, build_page=build_page, serve_page=lambda app, **options: app
    )
    monkeypatch.setitem(sys.modules, "gradio", SimpleNamespace())  # type: ignore[misc]
    monkeypatch.setitem(sys.modules, "tts_verifier.demo.app", app)
    return seen


def test_any_generator_and_verifier_will_do(served: SimpleNamespace) -> None:
    launch(FakeGenerator(), FakeVerifier(), prompts=["x"], objective={"overall": 1.0})
    assert served.setup.objective.weights == {"overall": 1.0}
    assert [name.split(":")[0] for name in served.strategies] == [
        "best of n",
        "adaptive",
        "inpaint and reroll",
    ]


def test_strategies_that_the_generator_cannot_serve_are_not_offered(
    served: SimpleNamespace,
) -> None:
    generator: Any = FakeGenerator()
    generator.supports = frozenset(kind for kind in generator.supports if kind.__name__ == "Draw")
    launch(generator, FakeVerifier())
    assert not [name for name in served.strategies if name.startswith("inpaint")]
    with pytest.raises(UnsupportedError, match="repaint"):
        launch(generator, FakeVerifier(), strategies={"mine": lambda n: InpaintReroll(n)})


def test_a_wrapped_pipeline_brings_its_verifier_strategy_and_options(
    served: SimpleNamespace, tmp_path: Path
) -> None:
    verifier, strategy = FakeVerifier(), InpaintReroll(2)
    pipe = wrap(sd15(tmp_path), verifier, strategy=strategy, detail="diagnose")
    launch(pipe, call={"num_inference_steps": 2})
    assert served.setup.verifier is verifier
    assert next(iter(served.strategies.values()))(4) is strategy
    assert served.setup.generator.batch_size == 1
    with pytest.raises(InputError, match="brings its verifier"):
        launch(pipe, verifier)


def test_the_command_takes_a_recipe(served: SimpleNamespace) -> None:
    result = CliRunner().invoke(demo_command, ["fake", "strategy.n=3", "--most", "5"])
    assert result.exit_code == 0, result.output
    assert served.most == 5
    assert "a red circle" in served.prompts
    assert CliRunner().invoke(demo_command, ["fake", "strategy.m=3"]).exit_code == 2


def test_an_address_that_cannot_be_used_is_refused_at_once() -> None:
    pytest.importorskip("gradio")
    from tts_verifier.demo.app import serve_page

    page = SimpleNamespace()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        _, port = taken.getsockname()
        wrong = {"127.0.0.1": port, "203.0.113.7": None, "nowhere.invalid": None}
        for host, number in wrong.items():
            message = f"{host} with {number or 'a port from 7860 to 7959'} cannot be used"
            with pytest.raises(InputError, match=message):
                serve_page(page, host=host, port=number, open_browser=False, block=False)


def test_a_strategy_or_number_that_the_page_does_not_offer_is_refused() -> None:
    pytest.importorskip("gradio")
    from tts_verifier.demo.app import Searches

    setup = RunSetup(FakeGenerator(1), FakeVerifier(), BestOfN(2))
    searches = Searches(setup, {"best of n": BestOfN}, most=8)
    for name, n in (("best of n", 9), ("another", 2)):
        ((said, _, image),) = searches.run("a red circle", name, n, 0, "visitor")
        assert "of the list and 1 to 8 candidates" in said
        assert image is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"most": 1}, "most must be an integer of at least 2, got 1"),
        ({"pipeline": FakeGenerator()}, "verifier must be a Verifier beside a generator, got None"),
        ({"pipeline": FakeGenerator(), "verifier": "shapes"}, "got 'shapes'. Load it with"),
        ({"pipeline": FakeGenerator(), "verifier": FakeVerifier(), "call": {}}, "call belongs to"),
        ({"pipeline": object(), "verifier": FakeVerifier()}, "pipeline"),
        ({"pipeline": "./nowhere"}, "A pipeline needs a verifier"),
    ],
)
def test_unusable_arguments_are_refused(
    served: SimpleNamespace, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        launch(**arguments)
