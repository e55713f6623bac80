"""The report in a real browser: keys, overlays, colours, widths, and that it loads nothing.

    pytest -m browser

Not part of the default run; needs Chromium on the path.
"""

import sys
from pathlib import Path

import pytest
from browser_pages import EVIL, open_all

sys.path.append(str(Path(__file__).parents[3] / "examples" / "benchmarks"))
from chromium import Chromium

pytestmark = pytest.mark.browser


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
    page.wait("document.querySelector('article button.pic').matches(':hover')")
    assert shown(page, "article .m0")
    page.point("h1")
    page.wait("!document.querySelector('article button.pic').matches(':hover')")
    assert not shown(page, "article .m0")


def test_overlays_are_chosen_by_tab_and_arrows_too(page: Chromium) -> None:
    page.look("document.querySelector('#ovnone').focus()")
    page.press("ArrowRight")
    assert page.look("document.activeElement.id") == "ov0"
    assert shown(page, "article .m0")
    outline = "getComputedStyle(document.querySelector('#ov0 + span')).outlineStyle"
    assert page.look(outline) == "solid", "where the focus is can be seen"


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
    page.look("document.querySelector('.index').open = true")
    rows = "[...document.querySelectorAll('.index tbody tr')]"
    page.wait(f"{rows}.length")
    assert page.look(f"{rows}.map((row) => row.hidden)") == [False, True, True]
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
    page.look("document.querySelector('#heat').focus()")
    page.press("h")
    assert page.look("document.querySelector('#ov1').checked"), "the slider leaves the keys alone"
