"""Reports of several runs, of many prompts and of a training run, in a real browser.

    pytest -m browser

Not part of the default run; needs Chromium on the path.
"""

import json
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from browser_pages import Wordy, open_all

from tts_verifier.analysis.report import write_report
from tts_verifier.runner import run
from tts_verifier.strategies.best_of_n import BestOfN
from tts_verifier.testing import FakeGenerator, FakeVerifier
from tts_verifier.training.common.run_folder import write_metrics
from tts_verifier.training.examples import Examples, miniature_examples, write_examples
from tts_verifier.types import Prompt

sys.path.append(str(Path(__file__).parents[3] / "examples" / "benchmarks"))
from chromium import Chromium
from searches import InpaintReroll

pytestmark = pytest.mark.browser


def test_won_and_lost_prompts_of_two_runs_are_shown_apart(
    chromium: Chromium, tmp_path: Path
) -> None:
    for name, count in (("few", 2), ("many", 4)):
        prompts = [f"image {i}" for i in range(4)]
        run(prompts, FakeGenerator(size=64), FakeVerifier(), BestOfN(count), folder=tmp_path / name)
    write_report([tmp_path / "many", tmp_path / "few"], tmp_path / "page.html")
    chromium.size(1440, 900)
    chromium.open(tmp_path / "page.html")
    wide = "document.querySelector('.versus .pic').getBoundingClientRect()"
    assert chromium.look(f"{wide}.width") >= 200
    assert chromium.look(f"{wide}.bottom") <= 900
    lost = chromium.look("document.querySelectorAll('.versus.worse').length")
    assert 0 < lost < 4
    chromium.look("document.querySelector('#cmpworse').click()")
    left = "[...document.querySelectorAll('.versus')].filter((one) => one.offsetWidth).length"
    assert chromium.look(left) == lost


@pytest.mark.parametrize("width", [390, 1200])
def test_a_long_name_of_a_run_is_text_inside_the_window(
    chromium: Chromium, tmp_path: Path, width: int
) -> None:
    folders = [tmp_path / ("<script>owned=1<" + "x" * 200), tmp_path / "other"]
    for folder in folders:
        run(["a red circle"], FakeGenerator(), FakeVerifier(), BestOfN(2), folder=folder)
    write_report(folders, tmp_path / "page.html")
    chromium.size(width, 800)
    chromium.open(tmp_path / "page.html")
    assert chromium.look("document.documentElement.scrollWidth") <= width
    chromium.point("#progress svg.chart")
    chromium.wait("!document.querySelector('.tip').hidden")
    assert folders[0].name in chromium.look("document.querySelector('.tip').textContent")
    box = "document.querySelector('.tip').getBoundingClientRect()"
    assert 0 <= chromium.look(f"{box}.left") < chromium.look(f"{box}.right") <= width
    assert chromium.look("typeof owned") == "undefined"


SHIFT = """new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) window.moved = (window.moved ?? 0) + entry.value;
}).observe({type: "layout-shift", buffered: true})"""


@pytest.fixture(scope="module")
def sixteen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of sixteen prompts of eight candidates, in the folder of the run."""
    folder = tmp_path_factory.mktemp("runs") / "sixteen"
    prompts = [Prompt(f"{i:04}", f"a red circle and {i} squares", "ab"[i % 2]) for i in range(16)]
    run(prompts, FakeGenerator(size=64), FakeVerifier(), BestOfN(8), judge=Wordy(), folder=folder)
    (page,) = write_report([folder], folder / "report.html")
    return page


@pytest.mark.parametrize(("width", "height"), [(1440, 900), (390, 844)])
def test_a_report_opens_on_chosen_images_and_nothing_moves(
    chromium: Chromium, sixteen: Path, width: int, height: int
) -> None:
    assert sixteen.stat().st_size <= 100_000
    chromium.size(width, height)
    chromium.open(sixteen)
    chromium.look(SHIFT)
    chosen = "document.querySelector('.strip img[alt=Chosen]')"
    chromium.wait(f"{chosen}.complete && {chosen}.naturalWidth")
    assert chromium.look(f"{chosen}.getBoundingClientRect().bottom") <= height
    assert chromium.look(f"{chosen}.getBoundingClientRect().right") <= width
    chromium.look("scrollTo(0, 2000)")
    chromium.look("scrollTo(0, 99999)")
    chromium.wait("document.querySelector('.dim') && performance.now() > 300")
    assert chromium.look("window.moved ?? 0") == 0


@pytest.mark.parametrize(("width", "dark"), [(390, True), (1440, False)])
def test_axe_finds_no_violation(
    chromium: Chromium, sixteen: Path, folder: Path, tmp_path: Path, width: int, dark: bool
) -> None:
    found = find_spec("axe_playwright_python")
    if found is None or not found.submodule_search_locations:
        pytest.skip("needs axe-core: pip install --no-deps axe-playwright-python")
    axe = Path(found.submodule_search_locations[0], "axe.min.js").read_text("utf-8")
    write_report([folder, folder], tmp_path / "two.html")
    chromium.size(width, 900, dark=dark)
    for page in (sixteen, folder / "report.html", tmp_path / "two.html"):
        chromium.open(page)
        if page != sixteen:
            open_all(chromium)
        chromium.press("h")
        chromium.look(axe)
        chromium.look("axe.run().then((found) => (window.found = found.violations))")
        chromium.wait("window.found !== undefined")
        told = "found.map((one) => [one.id, one.nodes.slice(0, 3).map((node) => node.html)])"
        assert chromium.look(told) == []


def test_large_pages_load_images_when_they_are_near(chromium: Chromium, tmp_path: Path) -> None:
    prompts = [f"image {i}" for i in range(40)]
    run(prompts, FakeGenerator(), FakeVerifier(), InpaintReroll(4), folder=tmp_path / "run")
    write_report([tmp_path / "run"], tmp_path / "run" / "report.html")
    chromium.size(1200, 900)
    chromium.open(tmp_path / "run" / "report.html")
    loaded = chromium.look("[...document.images].filter((image) => image.naturalWidth).length")
    assert 0 < loaded < 80 / 2, "of two an article"


def test_without_scripts_first_draws_and_choices_are_there(
    chromium: Chromium, folder: Path
) -> None:
    chromium.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        chromium.open(folder / "report.html")
        assert chromium.look("document.querySelectorAll('article').length") == 3
        assert chromium.look("document.querySelectorAll('article .hero .pic').length") == 6
        assert chromium.look("document.querySelectorAll('article .lines td').length") > 0
    finally:
        chromium.call("Emulation.setScriptExecutionDisabled", value=False)


def test_keys_and_old_addresses_lead_over_the_pages_of_a_large_report(
    chromium: Chromium, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, count in (("SINGLE", 8), ("LINKED", 8)):
        monkeypatch.setattr(f"tts_verifier.analysis.report.pages.{name}", count)
    prompts = [f"image {i}" for i in range(8)]
    run(prompts, FakeGenerator(), Wordy(), BestOfN(4), folder=tmp_path / "run")
    main, *others = write_report([tmp_path / "run"], tmp_path / "a page.html")
    assert len(others) == 3
    chromium.size(1200, 900)
    chromium.open(main)
    here = "decodeURIComponent(location.pathname.split('/').pop())"
    for key, pages in (("j", ["0002.html", "0003.html"]), ("k", ["0002.html", "a page.html"])):
        for name in pages:
            for _ in range(3):
                if chromium.look(here) != name:
                    chromium.press(key)
                    time.sleep(0.2)
            chromium.wait(f"{here} == {name!r} && document.readyState == 'complete'")
    chromium.look("location.hash = 'r0p5'")
    chromium.wait(f"{here} == '0003.html' && document.readyState == 'complete'")
    assert chromium.look("document.querySelector('article:target').id") == "r0p5"
    chromium.look("location.hash = 'r0p5c4'")
    chromium.wait("document.querySelector('#r0p5c4:target') !== null")
    chromium.look("document.querySelectorAll('img').forEach((i) => (i.loading = 'eager'))")
    chromium.wait("[...document.images].every((image) => image.complete && image.naturalWidth)")
    chromium.look("document.querySelector('.sheet button.pic').click()")
    assert chromium.look("document.querySelector('dialog').open")
    chromium.look("document.querySelector('dialog .close').click()")
    assert not chromium.look("document.querySelector('dialog').open"), "the policy lets it close"


@pytest.mark.parametrize("width", [320, 768, 1600])
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_of_a_training_run_fits_and_asks_for_nothing(
    chromium: Chromium, tmp_path: Path, width: int, dark: bool
) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"steps": 9, "init": "x" * 200}))
    long = {"total": 1.0, "a_metric_with_a_long_name_" * 4: 2.0}
    write_metrics(tmp_path, [{"step": i} | {k: i * v for k, v in long.items()} for i in range(9)])
    shown = Examples([*miniature_examples(2).pictures], "dev")
    write_examples(tmp_path, Wordy(), shown, step=9)
    (page,) = write_report([tmp_path], tmp_path / "report.html")
    chromium.size(width, 800, dark=dark)
    chromium.open(page)
    assert chromium.look("document.documentElement.scrollWidth") <= width
    chromium.look("document.querySelectorAll('img').forEach((i) => (i.loading = 'eager'))")
    chromium.wait("[...document.images].every((image) => image.complete)")
    assert chromium.look("[...document.images].filter((i) => !i.naturalWidth).length") == 0
    maps = "[...document.querySelectorAll('.over .ov')].map((i) => getComputedStyle(i).display)"
    assert set(chromium.look(maps)) == {"block"}
    assert chromium.look("typeof owned") == "undefined"
    asked = [url for url in chromium.requests() if not url.startswith("data:")]
    assert asked == [page.as_uri()]
