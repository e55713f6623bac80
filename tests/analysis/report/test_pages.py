"""A large report: its pages, what each has, and how they refer to each other."""

import re
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest
from click.testing import CliRunner
from html_pages import fragments
from searches import InpaintReroll

from tts_verifier.analysis.report import write_report
from tts_verifier.analysis.report.pages import Pages, PromptRange, divide, divide_comparison
from tts_verifier.cli.report import report_command
from tts_verifier.errors import RunError
from tts_verifier.log import LoggedPrompts, read_trials
from tts_verifier.runner import run
from tts_verifier.strategies.best_of_n import BestOfN
from tts_verifier.testing import FakeGenerator, FakeVerifier

PAGES = "tts_verifier.analysis.report.pages"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    home = tmp_path_factory.mktemp("runs")
    prompts = [f"picture {i}" for i in range(9)]
    for name, strategy in (("painted", InpaintReroll(3, 2)), ("drawn & more", BestOfN(4))):
        run(
            prompts,
            FakeGenerator(batch_size=5),
            FakeVerifier(),
            strategy,
            judge=FakeVerifier(),
            folder=home / name,
        )
    return [home / "painted", home / "drawn & more"]


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{PAGES}.SINGLE", 10)
    monkeypatch.setattr(f"{PAGES}.LINKED", 14)
    monkeypatch.setattr(f"{PAGES}.INLINE", 7)
    monkeypatch.setattr(f"{PAGES}.COMPARED", 4)


def anchors(page: str) -> list[str]:
    return re.findall(r'<article id="(\w+)"', page)


@pytest.mark.usefixtures("small_pages")
@pytest.mark.parametrize("inline", [False, True])
def test_every_prompt_is_on_one_page_with_its_replies(
    folders: list[Path], tmp_path: Path, inline: bool
) -> None:
    paths = write_report(folders[:1], tmp_path / "a b.html", inline=inline)
    assert paths[0] == tmp_path / "a b.html"
    assert [p.name for p in paths[1:3]] == ["0002.html", "0003.html"]
    assert {p.parent for p in paths[1:]} == {tmp_path / "a b_pages"}
    pages = [path.read_text("utf-8") for path in paths]
    # Six candidates a prompt: two prompts a page, or one with thumbnails.
    assert [len(anchors(page)) for page in pages] == ([1] * 9 if inline else [2, 2, 2, 2, 1])
    assert [a for page in pages for a in anchors(page)] == [f"r0p{i}" for i in range(9)]
    for page in pages:
        numbers = [int(n) for n in re.findall(r'data-f="(\d+)"', page)]
        assert numbers == list(range(len(fragments(page)))), "a reply and a sheet for each prompt"
        assert page.count("<script>") == page.count("Content-Security-Policy") == 1
    assert len({re.search("<title>(.*?)</title>", page)[1] for page in pages}) == len(pages)  # type: ignore[index]


@pytest.mark.usefixtures("small_pages")
@pytest.mark.parametrize("count", [1, 2])
def test_links_between_pages_are_relative_and_lead_somewhere(
    folders: list[Path], tmp_path: Path, count: int
) -> None:
    paths = write_report(folders[:count], tmp_path / "re&port #1.html")
    ids = {path: set(re.findall(r'\bid="(\w+)"', path.read_text("utf-8"))) for path in paths}
    seen = set()
    for path in paths:
        page = path.read_text("utf-8")
        for link in re.findall(r'<a [^>]*href="([^"]*)"', page):
            address, anchor = urldefrag(link)
            goal = (path.parent / unquote(address)).resolve() if address else path
            assert goal in ids, link
            assert not anchor or anchor in ids[goal], link
            seen.add((path, goal))
        for source in re.findall(r'<img [^>]*src="([^"]*)"', page):
            assert (path.parent / unquote(source)).is_file(), source
    assert {(paths[0], path) for path in paths} <= seen, "the main page leads to all others"
    with_prompts = [path for path in paths if anchors(path.read_text("utf-8"))]
    following = [re.findall(r'rel="next" href="([^"]*)"', p.read_text()) for p in with_prompts]
    assert following.pop() == []
    assert [Path(unquote(link)).name for (link,) in following] == [p.name for p in with_prompts[1:]]


@pytest.mark.usefixtures("small_pages")
def test_large_runs_are_compared_on_pages_of_their_own(folders: list[Path], tmp_path: Path) -> None:
    paths = write_report(folders, tmp_path / "report.html")
    pages = [path.read_text("utf-8") for path in paths]
    compared = [page for page in pages if 'class="sheet pair"' in page]
    assert [page.count('class="sheet pair"') for page in compared] == [8, 4, 4, 1]
    assert [pages[0], *pages[-3:]] == compared, "the main page has those with the greatest losses"
    assert ">5 to 8</a>" in pages[0]
    assert "drawn &amp; more" in compared[1]


def test_a_small_report_is_one_page(folders: list[Path], tmp_path: Path) -> None:
    assert write_report(folders, tmp_path / "report.html") == [tmp_path / "report.html"]
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    page = (tmp_path / "report.html").read_text("utf-8")
    assert page.count('class="sheet pair"') == 9
    assert 'rel="next"' not in page


def test_prompts_are_divided_by_their_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{PAGES}.SINGLE", 9)
    monkeypatch.setattr(f"{PAGES}.LINKED", 8)
    assert divide([[3, 3, 3]], inline=False) == [[PromptRange(1, 0, 3)]]
    # A prompt with more candidates than a page may have is a page of its own.
    assert divide([[3, 3, 3, 20, 1]], inline=False) == [
        [PromptRange(1, 0, 2), PromptRange(2, 2, 3), PromptRange(3, 3, 4), PromptRange(4, 4, 5)]
    ]
    assert divide([[5, 5], [4, 4]], inline=False) == [
        [PromptRange(1, 0, 1), PromptRange(2, 1, 2)],
        [PromptRange(1, 0, 1), PromptRange(3, 1, 2)],
    ]
    assert divide_comparison(501, 3) == [PromptRange(4, 0, 500), PromptRange(5, 500, 501)]
    pages = Pages(Path("x/a#.html"))
    links = [pages.link(1, 1), pages.link(1, 2), pages.link(2, 1), pages.link(2, 3)]
    assert links == ["", "a%23_pages/0002.html", "../a%23.html", "0003.html"]


def test_a_table_of_very_many_prompts_is_divided_too(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_pages: None
) -> None:
    monkeypatch.setattr("tts_verifier.analysis.report.page.LONGEST_TABLE", 8)
    main, *others = write_report(folders[:1], tmp_path / "report.html")
    assert "2 prompts in a table" in main.read_text("utf-8")
    assert main.read_text("utf-8").count('<th scope="row"><a') == 2
    assert [p.read_text("utf-8").count('<th scope="row"><a') for p in others] == [2, 2, 2, 1]


@pytest.mark.usefixtures("small_pages")
def test_the_command_says_where_the_pages_are(folders: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    done = CliRunner().invoke(report_command, [str(folders[0]), "--output", str(path)])
    assert done.stdout == f"report: {path}\n4 more pages: {tmp_path / 'report_pages'}\n"


@pytest.mark.usefixtures("small_pages")
def test_nothing_is_written_through_a_link(folders: list[Path], tmp_path: Path) -> None:
    home, run_folder = tmp_path / "home", tmp_path / "run"
    home.mkdir()
    run_folder.mkdir()
    (home / "kept.html").write_text("mine")
    (run_folder / "report_pages").symlink_to(home)
    with pytest.raises(RunError, match=r"report_pages is a link.*--output"):
        write_report(folders[:1], run_folder / "report.html")
    (run_folder / "report_pages").unlink()
    (run_folder / "report.html").symlink_to(home / "kept.html")
    (run_folder / "report_pages").mkdir()
    (run_folder / "report_pages" / "0002.html").symlink_to(home / "kept.html")
    write_report(folders[:1], run_folder / "report.html")
    assert [(p.name, p.read_text()) for p in home.iterdir()] == [("kept.html", "mine")]
    assert not (run_folder / "report.html").is_symlink()
    (run_folder / "other_pages").write_text("a file")
    with pytest.raises(RunError, match=r"other_pages cannot be made.*--output"):
        write_report(folders[:1], run_folder / "other.html")


def test_prompts_read_one_by_one_are_those_read_at_once(folders: list[Path]) -> None:
    for folder in folders:
        wanted: dict[str, list[str]] = {}
        for trial in read_trials(folder):
            wanted.setdefault(trial.prompt.id, []).append(trial.id)
        read = {some[0].prompt.id: [t.id for t in some] for some in LoggedPrompts(folder)}
        assert list(read.items()) == list(wanted.items())
