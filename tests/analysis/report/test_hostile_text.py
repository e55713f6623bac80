"""A run folder from somebody else: whatever its texts say, they are text in pages and terminals."""

import itertools
import json
import os
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pytest
from cases import mostly_slow
from click.testing import CliRunner
from hostile_folders import forge, forge_tables
from html_pages import fragments
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tts_verifier.analysis.report import write_report
from tts_verifier.analysis.report.sources import InlineThumbnails, LinkedFiles, _css_of_box
from tts_verifier.cli.replay import replay_command
from tts_verifier.cli.report import report_command
from tts_verifier.errors import RunError, printable
from tts_verifier.identity import proposal_from_json
from tts_verifier.log import LoggedPrompts, open_log, read_outlines, read_trials
from tts_verifier.types import (
    Continue,
    Cost,
    Draw,
    Heatmap,
    Heatmaps,
    InMemory,
    Mask,
    Prompt,
    Proposal,
    Trial,
    Verdict,
)

TEXTS = (
    "</script><script>owned()</script>",
    '"><img src=http://x.invalid/ onerror=owned()>',
    "' onmouseover='owned()' style='position:fixed",
    "</style><style>@import 'http://x.invalid/'</style>",
    "</template></title></textarea><svg onload=owned()>",
    "<!--<script>",
    "]]><a href='javascript:owned()'>{{7*7}}{% raw %}${7*7}",
    "javascript:owned()",
    "line\u2028and\u2029paragraph\x00\x0b\x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp",
    "=cmd|'/C calc'!A0",
    "&lt;b&gt; &amp; &#60;i&#62; \\u003cb\\u003e",
)
BOX = (0.0, 0.25, 1.0, 0.75)
ALLOWED = set(
    [
        "a",
        "article",
        "b",
        "body",
        "button",
        "circle",
        "dd",
        "details",
        "desc",
        "dialog",
        "div",
        "dl",
        "dt",
        "fecomponenttransfer",
        "fefunca",
        "fecolormatrix",
        "fefuncb",
        "fefuncg",
        "fefuncr",
        "fieldset",
        "figcaption",
        "figure",
        "filter",
        "form",
        "g",
        "h1",
        "h2",
        "h3",
        "h4",
        "head",
        "header",
        "html",
        "i",
        "img",
        "input",
        "kbd",
        "label",
        "legend",
        "li",
        "line",
        "link",
        "main",
        "meta",
        "nav",
        "noscript",
        "ol",
        "option",
        "output",
        "p",
        "polygon",
        "polyline",
        "path",
        "pre",
        "rect",
        "script",
        "section",
        "select",
        "span",
        "style",
        "summary",
        "svg",
        "table",
        "tbody",
        "td",
        "template",
        "text",
        "th",
        "thead",
        "title",
        "tr",
    ]
)


class Tags(HTMLParser):
    """Collects what a browser would find in a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def hostile_trial(text: str, number: int, proposal: Proposal, error: str = "") -> Trial:
    heatmap = InMemory(Heatmap(np.zeros((2, 2), np.float32), (2, 2), BOX))
    scores = {f"score{text}": 0.5, text: 0.25}
    return Trial(
        id=f"{number:016x}",
        prompt=Prompt(text, text, text),
        round=0,
        proposal=proposal,
        progress=1.0,
        verdict=Verdict(scores, Heatmaps({text: heatmap}), ((0.0, 0.0, 1.0, 1.0),), text),
        objective=number / 100,
        cost=Cost(1, 1, 1, 0.5, 0.5),
        image=InMemory(Image.new("RGB", (2, 2))),
        size=(2, 2),
        judge={text: 0.5},
        error=error,
    )


def hostile_run(folder: Path, texts: Sequence[str] = TEXTS) -> Path:
    about = {"recipe": {text: text for text in texts}}
    with open_log(folder, about, {"model": texts[0]}) as log:
        for i, text in enumerate(texts):
            first = hostile_trial(text, 3 * i, Draw(1))
            failed = hostile_trial(text, 3 * i + 1, Draw(2), error=text)
            log.append([first, failed, hostile_trial(text, 3 * i + 2, Continue(text, 1.0, 0))])
    header = json.loads((folder / "header.json").read_text())
    header |= {"device": texts[0], "git_revision": texts[1], "versions": {texts[2]: texts[3]}}
    (folder / "header.json").write_text(json.dumps(header))

    def edit(row: dict[str, Any]) -> None:
        # Ids and files that only a stranger's folder names so. The files do not exist.
        text = row["prompt_id"]
        row["trial_id"] += text
        for column, place in (("image", "images"), (f"heatmap_{text}", "heatmaps")):
            row |= {f"{column}_path": f"{place}/{text}", f"{column}_sha256": "0" * 64}

    forge(folder, edit)
    return folder


@pytest.mark.parametrize(
    "form",
    mostly_slow(itertools.product([False, True], repeat=2), quick=[(False, False), (True, True)]),
)
def test_no_text_of_a_folder_becomes_markup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: tuple[bool, bool]
) -> None:
    single, inline = form
    if not single:
        monkeypatch.setattr("tts_verifier.analysis.report.pages.SINGLE", 4)
        monkeypatch.setattr("tts_verifier.analysis.report.pages.LINKED", 12)
        monkeypatch.setattr("tts_verifier.analysis.report.pages.INLINE", 12)
    folders = [hostile_run(tmp_path / name) for name in ("<b>&' javascript:", '"onload=owned()')]
    paths = write_report(folders, tmp_path / "page'\"<.html", inline=inline)
    assert (len(paths) == 1) == single
    for path in paths:
        page = path.read_text("utf-8")
        tags = [tag for part in (page, *fragments(page)) for tag in Tags(part).found]
        assert {tag for tag, _ in tags} <= ALLOWED
        assert sum(tag == "script" for tag, _ in tags) == 1
        assert sum(tag == "style" for tag, _ in tags) == 1
        assert "{{7*7}}" in page or path != paths[0], "texts are no templates"
        for tag, attributes in tags:
            assert not [name for name in attributes if name.startswith("on")], tag
            assert set(attributes) <= {
                "aria-hidden", "aria-label", "aria-labelledby", "alt", "charset", "checked",
                "class",
                "color-interpolation-filters", "content", "cx", "cy", "d", "data-area",
                "data-c", "data-f", "data-name", "data-x", "height", "hidden",
                "href", "http-equiv", "id", "lang", "loading", "max", "method", "min", "name",
                "points", "r", "rel", "role", "scope", "src", "style", "tabindex", "tablevalues",
                "type", "value", "values", "viewbox", "width", "x", "x1", "x2", "y",
                "y1", "y2",
            }, tag  # fmt: skip
            for name in ("href", "src"):
                address = attributes.get(name) or ""
                assert re.match(r"#|data:(,|image/(png|webp);base64,)|[\w%.~/-]+(#|$)|$", address)
            assert re.fullmatch(
                r"(position:absolute|[a-z0-9:;.%-]*)", attributes.get("style") or ""
            )
        policy = next(a["content"] or "" for t, a in tags if t == "meta" and "http-equiv" in a)
        for rule in ("default-src 'none'", "base-uri 'none'", "form-action 'none'"):
            assert rule in policy


def test_the_charts_of_a_replay_stay_xml(tmp_path: Path) -> None:
    folder = hostile_run(tmp_path / "run")
    plot = tmp_path / "plot.svg"
    done = CliRunner().invoke(replay_command, [str(folder), "--plot", str(plot)])
    assert done.exit_code == 0, done.output
    tags = {element.tag.rpartition("}")[2] for element in ElementTree.parse(plot).iter()}
    assert tags <= set(
        [
            "svg",
            "title",
            "style",
            "desc",
            "text",
            "g",
            "path",
            "line",
            "circle",
            "polyline",
            "polygon",
        ]
    )


def test_commands_print_no_control_characters(tmp_path: Path) -> None:
    folder = hostile_run(tmp_path / "run\x1b[2J")
    plot = ["--plot", str(tmp_path / "plot.svg")]
    shown = [
        CliRunner().invoke(replay_command, [str(folder), *plot]),
        CliRunner().invoke(report_command, [str(folder)]),
        CliRunner().invoke(report_command, [str(tmp_path / "no\x1b]0;owned\x07run")]),
    ]
    assert [done.exit_code for done in shown] == [0, 0, 2]
    for done in shown:
        assert not re.findall(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e]", done.output)
    assert r"run\x1b[2J" in shown[1].output
    assert r"no\x1b]0;owned\x07run" in shown[2].output


def test_control_characters_are_shown_and_other_text_stays() -> None:
    assert printable("a\tb\nc é 猫 👍 \\x1b") == "a\tb\nc é 猫 👍 \\x1b"
    assert printable("\x1b[31m\r\x9b\u202e\u2066\ud800\x7f") == (
        r"\x1b[31m\r\u009b\u202e\u2066\ud800\u007f"
    )
    assert printable(RunError("no\x07")) == r"no\x07"


@given(st.text())
def test_lines_of_json_stay_json_when_they_are_printed(text: str) -> None:
    line = printable(json.dumps(text, ensure_ascii=False))
    assert json.loads(line) == text
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e]", line)


# -- values of a stranger's rows ---------------------------------------------------------------


def test_addresses_lead_to_files_of_runs_only(tmp_path: Path) -> None:
    linked = LinkedFiles(tmp_path / "run", tmp_path / "run" / "page.html")
    assert linked.mask("masks/a b.png") == "masks/a%20b.png"
    assert linked.mask("javascript:owned()") == "javascript%3Aowned%28%29"
    for path in ("/etc/passwd", "images/../../x", "..", "x/../y", "\\\\server\\x.png", "a\x1b"):
        assert linked.mask(path) == ""
    for content in (b"", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\x89PNG\r\n\x1a\n" + b"0" * 40):
        (tmp_path / "mask.png").write_bytes(content)
        assert InlineThumbnails(tmp_path).mask("mask.png") == ""
    (tmp_path / "link.png").symlink_to("mask.png")
    os.mkfifo(tmp_path / "fifo.png")
    for name in ("link.png", "fifo.png", "../mask.png"):
        assert InlineThumbnails(tmp_path).mask(name) == ""


@pytest.mark.parametrize("box", [(0.5, 0.0, 0.5, 1.0), (1.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 1.0)])
def test_a_damaged_box_covers_the_image(box: tuple[float, float, float, float]) -> None:
    assert _css_of_box(box) == ""


@pytest.mark.parametrize("name", ["objective", "reply", "image_width", "overall", "judge_overall"])
def test_a_column_of_another_type_is_an_error(tmp_path: Path, name: str) -> None:
    trial = hostile_trial("a", 0, Draw(0))
    trial = Trial(
        **{f: getattr(trial, f) for f in trial.__slots__}
        | {"verdict": Verdict({"overall": 0.5}), "judge": {"overall": 0.5}}
    )
    with open_log(tmp_path / "run", {}, {}) as log:
        log.append([trial])
    wrong = pa.array([1]) if name == "reply" else pa.array(['"><b>'])

    def change(table: pa.Table) -> pa.Table:
        field = table.schema.field(name).with_type(wrong.type)
        return table.set_column(table.column_names.index(name), field, wrong)

    forge_tables(tmp_path / "run", change)
    for read in (LoggedPrompts, read_outlines, read_trials):
        with pytest.raises(RunError, match=rf"is damaged \(its column {name} is .*, not .*\)"):
            read(tmp_path / "run")


@pytest.mark.parametrize(
    "text", ['{"kind":"draw","seed":"x"}', '{"kind":"draw","seed":1,"until":"<b>","noise":null}']
)
def test_a_proposal_with_text_for_a_number_is_an_error(text: str) -> None:
    with pytest.raises(TypeError, match="must be a number, got"):
        proposal_from_json(text, lambda digest: Mask(0, 0, b""))
