"""The report in a real browser: keys, overlays, colours, widths, and that it loads nothing.

    pytest -m browser

Not part of the default run; needs Chromium on the path.
"""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tts_verifier.analysis.report import write_report
from tts_verifier.runner import run
from tts_verifier.strategies.best_of_n import BestOfN
from tts_verifier.testing import FakeGenerator, FakeVerifier
from tts_verifier.training.common.run_folder import write_metrics
from tts_verifier.training.examples import Examples, miniature_examples, write_examples
from tts_verifier.types import Prompt, Verdict

sys.path.append(str(Path(__file__).parents[3] / "examples" / "benchmarks"))
from chromium import Chromium, find_chromium
from searches import InpaintReroll

pytestmark = pytest.mark.browser

EVIL = (
    '</pre></style><script>owned=1</script><img src="http://x.invalid/" onerror="owned=1">{{7*7}}'
)
PROMPTS = [Prompt("one", "a red circle"), Prompt("two", EVIL), Prompt("three", "x" * 300)]


class Wordy(FakeVerifier):
    def verify(self, images: Any, prompts: Sequence[str], **options: Any) -> list[Verdict]:
        return [replace(v, text=EVIL + v.text) for v in super().verify(images, prompts, **options)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "a run"
    run(PROMPTS, FakeGenerator(size=64), Wordy(), InpaintReroll(4), judge=Wordy(), folder=folder)
    write_report([folder], folder / "report.html")
    write_report([folder], folder / "inline.html", inline=True)
    return folder


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    program = find_chromium()
    if program is None:
        pytest.skip("needs chromium")
    with Chromium(program, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def page(chromium: Chromium, folder: Path) -> Chromium:
    chromium.size(1200, 900)
    chromium.open(folder / "report.html")
    return chromium


def shown(page: Chromium, selector: str) -> bool:
    return bool(
        page.look(f"getComputedStyle(document.querySelector('{selector}')).display") != "none"
    )


def test_a_key_shows_heatmaps_and_boxes_over_every_image(page: Chromium) -> None:
    seen = []
    for _ in range(4):
        seen.append([shown(page, f"article {layer}") for layer in (".m0", ".m1", ".bx")])
        page.press("h")
    assert seen == [
        [False, False, False],
        [True, False, False],
        [False, True, False],
        [False, False, True],
    ]
    assert page.look("document.querySelector('#ovnone').checked")
    assert page.look("document.querySelectorAll('article .bx rect').length") > 0


def test_a_map_shows_under_the_mouse(page: Chromium) -> None:
    page.point("article button.pic")
    page.wait("getComputedStyle(document.querySelector('article .m0')).display == 'block'")
    page.point("h1")
    page.wait("getComputedStyle(document.querySelector('article .m0')).display == 'none'")


def test_overlays_are_chosen_by_tab_and_arrows_too(page: Chromium) -> None:
    page.look("document.querySelector('#ovnone').focus()")
    page.press("ArrowRight")
    assert page.look("document.activeElement.id") == "ov0"
    assert shown(page, "article .m0")
    outline = "getComputedStyle(document.querySelector('#ov0 + span')).outlineStyle"
    assert page.look(outline) == "solid", "where the focus is can be seen"


def open_all(page: Chromium) -> None:
    page.look("document.querySelectorAll('details').forEach((part) => (part.open = true))")
    page.wait("!document.querySelector('[data-f]') && document.querySelector('.sheet') !== null")


def test_an_image_is_enlarged_and_changed_and_closed_by_keys(page: Chromium) -> None:
    open_all(page)
    page.look("document.querySelector('.sheet button.pic').focus()")
    page.press("Enter")
    assert page.look("document.querySelector('dialog').open")
    label = "document.querySelector('dialog .pic img').alt"
    first = page.look(label)
    page.press("ArrowRight")
    assert page.look(label) != first
    page.press("ArrowLeft")
    assert page.look(label) == first
    page.press("Escape")
    page.wait("!document.querySelector('dialog').open")
    assert page.look("document.activeElement.matches('.sheet button.pic')")


def test_keys_lead_from_prompt_to_prompt(page: Chromium) -> None:
    seen = []
    for key in "jjk":
        page.press(key)
        seen.append(page.look("document.activeElement.id"))
    assert seen == ["r0p0", "r0p1", "r0p0"]


def test_the_first_tab_skips_to_the_prompts(page: Chromium) -> None:
    page.press("Tab")
    assert page.look("document.activeElement.className") == "skip"
    assert page.look("document.activeElement.getBoundingClientRect().left") >= 0


def test_a_repaint_names_its_parent_and_shows_its_mask(page: Chromium) -> None:
    open_all(page)
    assert page.look("document.querySelectorAll('.from .hole').length") > 0
    link = page.look("document.querySelector('.from a').getAttribute('href')")
    assert page.look(f"document.querySelector('{link} button.pic') !== null")


CONTRAST = """(() => {
  const luminance = (colour) => {
    const [r, g, b] = colour.match(/[0-9.]+/g).map((v) => v / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const back = luminance(getComputedStyle(document.querySelector("article")).backgroundColor);
  return ["h3", ".cap", ".sheet summary", ".from a", ".pick"].map((name) => {
    const ink = luminance(getComputedStyle(document.querySelector("article " + name)).color);
    return (Math.max(ink, back) + 0.05) / (Math.min(ink, back) + 0.05);
  });
})()"""


@pytest.mark.parametrize("dark", [False, True])
def test_words_stand_out_in_light_and_dark(page: Chromium, dark: bool) -> None:
    page.size(1200, 900, dark=dark)
    open_all(page)
    red = page.look("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/)[0]")
    assert (int(red) < 60) == dark
    assert min(page.look(CONTRAST)) >= 4.5, "WCAG 2.2, 1.4.3"


@pytest.mark.parametrize("width", [320, 390, 768, 1600])
@pytest.mark.parametrize("name", ["report.html", "inline.html"])
def test_nothing_is_wider_than_the_window(
    page: Chromium, folder: Path, width: int, name: str
) -> None:
    page.size(width, 800)
    page.open(folder / name)
    open_all(page)
    assert page.look("document.documentElement.scrollWidth") <= width
    sizes = "[...document.querySelectorAll('.cap, summary, .from a, td, dt')]"
    assert (
        page.look(f"Math.min(...{sizes}.map((p) => parseFloat(getComputedStyle(p).fontSize)))")
        >= 12
    )


@pytest.mark.parametrize("name", ["report.html", "inline.html"])
def test_text_stays_text_and_nothing_outside_is_asked_for(
    page: Chromium, folder: Path, name: str
) -> None:
    page.open(folder / name)
    open_all(page)
    for _ in range(3):
        page.press("h")
    page.look("document.querySelectorAll('img').forEach((i) => (i.loading = 'eager'))")
    page.wait("[...document.images].every((image) => image.complete)")
    assert page.look("typeof owned") == "undefined"
    assert page.look("[...document.images].filter((i) => !i.naturalWidth).length") == 0
    kept = (
        "[...document.querySelectorAll('pre.reply')].map((part) => part.textContent.slice(0, 12))"
    )
    assert set(page.look(kept)) == {EVIL[:12]}
    assert page.look("document.querySelectorAll('script').length") == 1
    here = folder.as_uri()
    asked = page.requests()
    assert asked
    assert [url for url in asked if not url.startswith((here, "data:"))] == []


HIDDEN = "[...document.querySelectorAll('article')].filter((a) => a.hidden).map((a) => a.id)"
ORDER = "[...document.querySelectorAll('article')].map((article) => article.id)"
GAINS = "[...document.querySelectorAll('.lines tbody tr:first-child td:last-child')]"


def typed(page: Chromium, selector: str, value: str) -> None:
    part = f"document.querySelector({selector!r})"
    page.look(f"{part}.value = {value!r}; {part}.dispatchEvent(new Event('input', {{bubbles: 1}}))")


def test_prompts_are_filtered_and_put_in_order(page: Chromium) -> None:
    typed(page, "[name=q]", "RED circle")
    assert page.look(HIDDEN) == ["r0p1", "r0p2"]
    assert page.look("document.querySelector('.find output').value") == "1 of 3 here"
    typed(page, "[name=q]", "")
    typed(page, "[name=sort]", "3 objective")
    gains = page.look(f"{GAINS}.map((cell) => parseFloat(cell.textContent))")
    assert gains == sorted(gains)
    page.look("document.querySelector('[name=down]').click()")
    assert page.look(f"{GAINS}.map((cell) => parseFloat(cell.textContent))") == gains[::-1]
    typed(page, "[name=sort]", "")
    page.look("document.querySelector('[name=down]').click()")
    assert page.look(ORDER) == ["r0p0", "r0p1", "r0p2"]
    assert page.look(HIDDEN) == []


def test_letters_in_the_filter_are_letters(page: Chromium) -> None:
    page.look("document.querySelector('[name=q]').focus()")
    page.press("h")
    assert page.look("document.querySelector('#ovnone').checked")


def test_two_images_are_flipped_at_the_same_place(page: Chromium) -> None:
    page.look("document.querySelector('.hero button.pic').click()")
    assert page.look("document.querySelectorAll('dialog .over2').length") == 1
    cut = "document.querySelector('dialog .over2').style.clipPath"
    seen = [page.look(cut)]
    for _ in range(2):
        page.press("f")
        seen.append(page.look(cut))
    assert seen == [f"inset(0px 0px 0px {share}%)" for share in (50, 100, 0)]
    sides = "[...document.querySelectorAll('.swipe span')].map((part) => part.textContent)"
    left, right = page.look(sides)
    assert (left.split(",")[0], right.split(",")[0]) == ("First draw", "Chosen")


def test_a_chart_tells_its_values_under_the_mouse(page: Chromium) -> None:
    page.point("#progress svg.chart")
    page.wait("!document.querySelector('.tip').hidden")
    words = page.look("document.querySelector('.tip').textContent")
    assert words.startswith("candidates per prompt ")
    assert "a run: 0." in words
    page.point("h1")
    page.wait("document.querySelector('.tip').hidden")


def test_heatmaps_have_a_scale_and_an_opacity(page: Chromium) -> None:
    scale = "getComputedStyle(document.querySelector('.heat')).visibility"
    assert page.look(scale) == "hidden"
    page.press("h")
    assert page.look(scale) == "visible"
    typed(page, "#heat", "30")
    assert page.look("getComputedStyle(document.querySelector('img.m0')).opacity") == "0.3"


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
