"""The demo in a real browser: pictures while they are drawn, maps, the chosen one, no network.

    pytest -m browser tests/demo

Not part of the default run; needs Chromium on the path and the extra `demo`.
"""

import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "examples" / "benchmarks"))
from chromium import Chromium

pytestmark = pytest.mark.browser

EVIL = "<script>owned=1</script><img src=x onerror=owned=1> ${owned=1} {{owned=1}}"
SAID = "document.querySelector('#status textarea, #status input').value"
FIGURES = "document.querySelectorAll('#candidates figure').length"


SERVER = """
import time

from tts_verifier.demo import launch
from tts_verifier.testing import FakeGenerator, FakeVerifier

def fails(job):
    if job.prompt.text == "slow":
        time.sleep(0.5)
    return job.prompt.text == "fails"


generator = FakeGenerator(1, 64, fails=fails)
launch(generator, FakeVerifier(), prompts=["a red circle"], most=12)
"""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    pytest.importorskip("gradio")
    # A process of its own: gradio leaves sockets and event loops to the garbage collector.
    command = [sys.executable, "-W", "ignore", "-c", SERVER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        line = server.stdout.readline()
        yield line.split()[4]
        server.send_signal(signal.SIGINT)
        assert server.wait(30) == 0, "Ctrl-C ends it in peace"


@pytest.fixture
def page(chromium: Chromium, address: str) -> Chromium:
    chromium.size(1440, 900)
    chromium.events.clear()
    chromium.call("Page.navigate", url=address)
    chromium.wait("document.querySelector('#draw') !== null")
    return chromium


def draw(page: Chromium, prompt: str) -> None:
    page.look("document.querySelector('#prompt textarea').focus()")
    page.look("document.querySelector('#prompt textarea').select()")
    page.call("Input.insertText", text=prompt)
    page.look("document.querySelector('#draw').click()")


def test_pictures_appear_with_scores_and_the_chosen_one_is_marked(page: Chromium) -> None:
    draw(page, "a red circle")
    page.wait(f"{SAID}.startsWith('The best of 8')")
    assert page.look(FIGURES) == 8
    assert page.look("document.querySelector('figure.best mark').textContent") == "chosen"
    number = "parseFloat(f.querySelector('figcaption b').textContent)"
    numbers = page.look(f"[...document.querySelectorAll('#candidates figure')].map(f => {number})")
    best = page.look("[...document.querySelectorAll('figure')].findIndex(f => f.matches('.best'))")
    assert numbers[best] == max(numbers)
    page.wait("document.querySelector('#best img')?.naturalWidth === 64")


def test_the_maps_of_a_picture_show_under_the_mouse_and_at_a_tap(page: Chromium) -> None:
    draw(page, "a red circle")
    page.wait(f"{SAID}.startsWith('The best of 8')")
    seen = "getComputedStyle(document.querySelector('.tts-pic .map')).opacity"
    assert page.look(seen) == "0"
    page.point("#candidates figure .tts-pic")
    page.wait(f"{seen} === '1'")
    page.point("h1")
    page.wait(f"{seen} === '0'")
    page.look("document.querySelector('#candidates figure').focus()")
    page.wait(f"{seen} === '1'")


def test_text_stays_text_and_nothing_outside_is_asked_for(page: Chromium, address: str) -> None:
    draw(page, EVIL)
    page.wait(f"{SAID}.startsWith('The best of 8')")
    assert page.look("typeof owned") == "undefined"
    asked = page.requests()
    assert asked
    assert [u for u in asked if not u.startswith((address, "data:", "blob:"))] == []


def test_bad_input_and_failed_candidates_are_said_on_the_page(page: Chromium) -> None:
    draw(page, " ")
    page.wait(f"{SAID}.includes('prompt')")
    draw(page, "fails")
    page.wait(f"{SAID}.startsWith('None of 8')")
    assert page.look("document.querySelector('.tts-pic p').textContent")


def test_the_stop_button_keeps_what_was_drawn(page: Chromium) -> None:
    draw(page, "slow")
    page.wait(f"{FIGURES} === 2 && {SAID}.startsWith('draw')")
    page.look("document.querySelector('#stop').click()")
    page.wait(f"{SAID}.startsWith('Stopped. The best of')")
    assert 2 <= page.look(FIGURES) < 8
    assert page.look("document.querySelector('figure.best mark').textContent") == "chosen"


@pytest.mark.parametrize("width", [390, 1440])
def test_nothing_is_wider_than_the_window(page: Chromium, width: int) -> None:
    page.size(width, 844)
    draw(page, "a red circle")
    page.wait(f"{SAID}.startsWith('The best of 8')")
    assert page.look("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize(("width", "dark"), [(390, True), (1440, False)])
def test_axe_finds_violations_of_gradio_only(
    page: Chromium, address: str, width: int, dark: bool
) -> None:
    found = find_spec("axe_playwright_python")
    if found is None or not found.submodule_search_locations:
        pytest.skip("needs axe-core: pip install --no-deps axe-playwright-python")
    axe = Path(found.submodule_search_locations[0], "axe.min.js").read_text("utf-8")
    page.size(width, 900, dark=dark)
    page.call("Page.navigate", url=address)
    page.wait("document.querySelector('#draw') !== null")
    draw(page, "a red circle")
    page.wait(f"{SAID}.startsWith('The best of 8')")
    page.wait("document.querySelector('#best img')?.naturalWidth === 64")
    page.look(axe)
    page.look("axe.run().then((found) => (window.found = found.violations))")
    page.wait("window.found !== undefined")
    told = "found.flatMap((one) => one.nodes.map((node) => [one.id, node.html]))"
    # docs/demo.md names these.
    known = ("image-frame", 'data-testid="max-value"', 'id="draw"')
    left = [one for one in page.look(told) if not any(name in one[1] for name in known)]
    assert left == []
