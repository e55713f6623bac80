"""The report: what it shows, that all text stays text, and that it loads nothing from outside."""

import base64
import hashlib
import io
import math
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from click.testing import CliRunner
from html_pages import EVIL, Page
from PIL import Image
from searches import InpaintReroll

from tts_verifier.analysis.report import write_report
from tts_verifier.analysis.report.figures import (
    categories,
    cost_table,
    paired_difference,
    progress_series,
    search_states,
)
from tts_verifier.analysis.report.sources import HeatmapLayer, InlineThumbnails, LinkedFiles
from tts_verifier.choice.summary import summarise, summarise_prompt
from tts_verifier.cli.report import report_command
from tts_verifier.errors import InputError, RunError
from tts_verifier.interfaces import Strategy
from tts_verifier.log import is_running, open_log, read_trials
from tts_verifier.log.storage.codecs import HeatmapCodec
from tts_verifier.runner import run
from tts_verifier.strategies.best_of_n import BestOfN
from tts_verifier.testing import FakeGenerator, FakeVerifier
from tts_verifier.types import Cost, Draw, Heatmap, InFile, Look, Prompt, Trial, Verdict

PROMPTS = ["a red circle", "three yellow triangles"]


class Wordy(FakeVerifier):
    def verify(self, images: Any, prompts: Any, **options: Any) -> list[Verdict]:
        verdicts = super().verify(images, prompts, **options)
        return [replace(v, text=f"{EVIL} {v.text}") for v in verdicts]


def make(
    folder: Path, strategy: Strategy, *, prompts: Sequence[Prompt | str] = PROMPTS, **options: Any
) -> Path:
    parts = {"generator": FakeGenerator(), "verifier": FakeVerifier(), "judge": FakeVerifier()}
    run(prompts, strategy=strategy, folder=folder, **{**parts, **options})
    return folder


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("runs") / "a run", InpaintReroll(3, 2))


def test_every_candidate_has_a_card_with_its_lineage(painted: Path, tmp_path: Path) -> None:
    write_report([painted], tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    # Three draws, a look and two repaints for each of two prompts.
    cards = [name for name in page.all("li", "id") if name]
    assert len(cards) == 2 * 6
    assert page.text.count("#4 repainted, strength 0.8") == 2 * 2 * 2
    assert page.text.count("All 6 candidates, best first") == 2
    assert set(page.all("a", "href")) >= {"#r0p0c4", "#r0p1c4"}
    assert page.all("img", "alt").count("mask of the repaint") == 2 * 2
    assert page.text.count("looked at again") == 2
    for text in (*PROMPTS, "held-out judge", "semantic_alignment=", "class: InpaintReroll"):
        assert text in page.text
    ids = [attrs["id"] for _, attrs in page.tags if attrs.get("id")]
    assert len(ids) == len(set(ids))
    assert {h[1:] for h in page.all("a", "href")} <= set(ids)


def test_links_are_relative_and_lead_to_the_runs_own_files(painted: Path, tmp_path: Path) -> None:
    write_report([painted], tmp_path / "page.html")
    sources = Page(tmp_path / "page.html").all("img", "src")
    kinds = Counter(Path(s).parent.name for s in sources)
    assert kinds["images"] > 12
    assert kinds["heatmaps"] > 0
    assert kinds["masks"] == 4
    for source in sources:
        assert not source.startswith(("/", "http", "data"))
        assert (tmp_path / unquote(source)).is_file()


def test_images_load_lazily_and_have_descriptions(painted: Path, tmp_path: Path) -> None:
    write_report([painted], tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert set(page.all("img", "loading")) == {"lazy"}
    assert all("alt" in attrs for tag, attrs in page.tags if tag == "img")
    words = [a["alt"] for t, a in page.tags if t == "img" and a.get("width")]
    assert "Candidate 1, objective" in " ".join(map(str, words))
    assert all(words)
    assert page.count("h1") == page.count("main") == 1


def test_inline_holds_everything(painted: Path, tmp_path: Path) -> None:
    write_report([painted], tmp_path / "page.html", inline=True)
    sources = Page(tmp_path / "page.html").all("img", "src")
    assert {s.split(",")[0] for s in sources} == {
        "data:image/webp;base64",
        "data:image/png;base64",
    }


def test_an_inline_page_works_without_a_missing_file(painted: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(painted, folder)
    for path in [*(folder / "images").iterdir(), *(folder / "heatmaps").iterdir()]:
        path.unlink()
    write_report([folder], tmp_path / "page.html", inline=True)
    assert "no image" in Page(tmp_path / "page.html").text


@pytest.mark.parametrize("inline", [False, True])
def test_text_with_html_or_script_in_it_is_text(tmp_path: Path, inline: bool) -> None:
    prompts = [Prompt(EVIL, EVIL)]
    folder = make(tmp_path / "<b>&'", BestOfN(2), prompts=prompts, verifier=Wordy())
    write_report([folder], tmp_path / "page.html", inline=inline)
    page = Page(tmp_path / "page.html")
    assert page.count("script") == 1
    assert "<b>&' · report" in page.text
    assert EVIL in page.text
    assert page.all("pre", "class").count("reply") == 2
    assert page.text.count(EVIL) > 4, "the prompt, and the replies about both images"
    assert not [a for _, attrs in page.tags for a in attrs if a.startswith("on")]
    assert "http" not in "".join(page.all("img", "src"))


def test_nothing_is_loaded_from_outside(painted: Path, tmp_path: Path) -> None:
    write_report([painted], tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    policy = next(a["content"] or "" for t, a in page.tags if t == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'; img-src 'self' file: data:;")
    assert "script-src 'sha256-" in policy
    assert "unsafe-inline" not in policy.split("script-src")[1]
    shown = (tmp_path / "page.html").read_text()
    assert not re.findall(r"(?:src|href)=.?(?:https?:)?//|@import|url\((?!#)", shown)


def test_runs_are_compared_prompt_by_prompt(painted: Path, tmp_path: Path) -> None:
    other = make(tmp_path / "other", BestOfN(2), prompts=[*PROMPTS, "a ring"])
    write_report([other, painted], tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert "the greatest loss against other first" in page.text
    assert "worse than other" in page.text or "better than other" in page.text
    assert page.text.count("a red circle") > 2
    ids = [attrs["id"] for _, attrs in page.tags if attrs.get("id")]
    assert len(ids) == len(set(ids))


def test_failures_are_shown_with_their_reason(tmp_path: Path) -> None:
    folder = make(tmp_path / "run", BestOfN(2), generator=FakeGenerator(fails=lambda job: True))
    write_report([folder], tmp_path / "page.html")
    text = Page(tmp_path / "page.html").text
    assert "fails on purpose" in text
    assert "No candidate is usable." in text
    assert "nan" not in re.findall(r"\w+", text)


def test_a_running_log_says_so(painted: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / "parts").mkdir(parents=True)
    shutil.copy(painted / "header.json", folder)
    shutil.copy(painted / "trials.parquet", folder / "parts" / "00000000.parquet")
    shutil.copytree(painted / "masks", folder / "masks")
    write_report([folder], tmp_path / "page.html")
    assert "This run has not finished" in Page(tmp_path / "page.html").text
    shutil.copy(painted / "trials.parquet", folder)
    assert is_running(folder), "it goes on with more candidates"
    assert not is_running(painted)


def test_what_cannot_be_reported_is_named(painted: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="must be a run's header"):
        write_report([tmp_path], tmp_path / "page.html")
    open_log(tmp_path / "empty", {}, {})
    with pytest.raises(InputError, match="empty has no verified candidate yet"):
        write_report([tmp_path / "empty"], tmp_path / "page.html")
    with pytest.raises(InputError, match="A list of run folders is needed, got one str: '/"):
        write_report(str(painted), tmp_path / "page.html")  # type: ignore[arg-type]
    with pytest.raises(RunError, match=r"cannot be written.*--output"):
        write_report([painted], tmp_path / "no" / "page.html")


def test_the_command_writes_into_the_run(painted: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(painted, folder)
    done = CliRunner().invoke(report_command, [str(folder)])
    assert (done.exit_code, done.stdout) == (0, f"report: {folder / 'report.html'}\n")
    assert 'src="images/' in (folder / "report.html").read_text()
    failed = CliRunner().invoke(report_command, [str(tmp_path)])
    assert failed.exit_code == 2
    assert "Traceback" not in failed.output


# -- figures and sources ---------------------------------------------------------------------


def trial(name: str, objective: float, parent: str = "") -> Trial:
    proposal = Look(parent) if parent else Draw(0)
    cost = Cost(0 if parent else 20, verifier_calls=1, generate_seconds=0.5)
    return Trial(name, Prompt("p", "p"), 0, proposal, 1.0, None, objective, cost)


def test_best_so_far_starts_at_the_first_usable_image_and_follows_looks() -> None:
    some = [trial("a", math.nan), trial("b", 0.5), trial("c", 0.7), trial("d", 0.1, parent="c")]
    found = search_states([*some, trial("e", 0.2, parent="b"), trial("f", 0.6)])
    # Two looks put b before c. Its number stays the quick one, which compares with those before.
    best = [(2, "b", 0.5), (3, "c", 0.7), (3, "c", 0.7), (3, "b", 0.5), (4, "c", 0.7)]
    assert [(s.candidates, s.best.id, s.best.objective) for s in found] == best
    assert [s.cost.network_evaluations for s in found] == [40, 60, 60, 60, 80]


def test_progress_is_the_mean_over_prompts_that_keep_their_last_value() -> None:
    one, two = [trial("a", 0.2), trial("b", 0.4), trial("c", 0.6)], [trial("d", 1.0)]
    series = progress_series(
        "x", [search_states(one), search_states(two), []], "candidates", lambda t: t.objective
    )
    assert series.points == [(1, pytest.approx(0.6)), (2, pytest.approx(0.7)), (3, 0.8)]


def test_costs_are_added_up_by_kind() -> None:
    table = cost_table([trial("a", 0.1), trial("b", 0.2), trial("c", 0.3, parent="b")])
    assert [(kind, n, c.network_evaluations) for kind, n, c in table] == [
        ("draw", 2, 40),
        ("look", 1, 0),
        ("all", 3, 40),
    ]


def test_wins_are_counted_by_category(tmp_path: Path) -> None:
    prompts = [Prompt("a", "one", "counting"), Prompt("b", "two", "counting"), Prompt("c", "three")]
    folder = make(tmp_path / "run", BestOfN(4), prompts=prompts)
    write_report([folder], tmp_path / "page.html")
    assert "Wins by category" in Page(tmp_path / "page.html").text
    log = read_trials(folder)
    summary = summarise([summarise_prompt(p, [t for t in log if t.prompt == p]) for p in prompts])
    counting, rest = categories(summary, "overall")
    assert (counting.name, counting.prompts, rest.name, rest.prompts) == ("counting", 2, "none", 1)
    pairs = [(r.first.objective, r.chosen.objective) for r in summary.prompts[:2]]
    assert counting.wins == sum(chosen > first for first, chosen in pairs)
    assert counting.losses == 0
    assert counting.objective[1] == pytest.approx(sum(chosen for _, chosen in pairs) / 2)
    assert counting.judge[0] == pytest.approx(
        sum(r.first.judge["overall"] for r in summary.prompts[:2]) / 2
    )
    assert categories(summarise([]), None) == []


def test_runs_are_paired_by_prompt() -> None:
    result = paired_difference(
        "x", {"a": 1.0, "b": 0.5, "c": 0.1, "e": math.nan}, {"a": 0.5, "b": 0.5, "d": 1}
    )
    assert (result.prompts, result.mean, result.wins, result.losses) == (2, 0.25, 1, 0)
    assert (result.low, result.high) == (0.0, 0.5)
    assert paired_difference("x", {"a": 1.0}, {}).prompts == 0


def test_a_letterboxed_heatmap_lies_over_its_image(tmp_path: Path) -> None:
    grid = np.zeros((4, 4), np.float32)
    grid[1:3] = 1
    box = (0.0, 0.25, 1.0, 0.75)
    codec = HeatmapCodec((8, 4), box)
    content = codec.encode(Heatmap(grid, (8, 4), box))
    (tmp_path / "heatmaps").mkdir()
    (tmp_path / "heatmaps/x.png").write_bytes(content)
    stored = InFile(tmp_path, "heatmaps/x.png", hashlib.sha256(content).hexdigest(), codec)
    linked = LinkedFiles(tmp_path, tmp_path / "page.html").layer(0, "artifact", stored)
    assert linked == HeatmapLayer(
        0, "heatmaps/x.png", "artifact", "left:0.000%;top:-50.000%;width:100.000%;height:200.000%"
    )
    shown = InlineThumbnails(tmp_path).layer(0, "artifact", stored)
    assert shown.place == ""
    content = base64.b64decode(shown.source.split(",")[1])
    assert np.asarray(Image.open(io.BytesIO(content))).min() == 255
