"""The chosen images of a run, as files and on one sheet."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tts_verifier.analysis.contact_sheet import sheet, write_chosen
from tts_verifier.choice.summary import PromptSummary, summarise_prompt
from tts_verifier.errors import RunError
from tts_verifier.types import Draw, InMemory, Prompt, Trial


def trial(prompt: str, index: int) -> Trial:
    image = InMemory(Image.new("RGB", (8, 4), (index * 20, 0, 0)))
    identity = (f"{prompt}{index}", Prompt(prompt, f"text {prompt}"))
    return Trial(*identity, 0, Draw(index), 1.0, None, index / 10, image=image)


def rows(*names: str) -> list[PromptSummary]:
    """Returns prompts whose first draw has red 60 and whose chosen image has red 180."""
    histories = [[trial(name, 3), trial(name, 9)] for name in names]
    return [summarise_prompt(history[0].prompt, history) for history in histories]


def test_the_sheet_has_first_beside_chosen() -> None:
    pixels = np.asarray(sheet(rows("a", "b")))
    reds = {tuple(pixel) for pixel in pixels.reshape(-1, 3)}
    assert {(60, 0, 0), (180, 0, 0)} <= reds
    assert pixels.shape[1] > 4 * 192


def test_the_sheet_accepts_any_text_and_shape() -> None:
    tall = InMemory(Image.new("RGB", (1, 500)))
    cat = Trial("x", Prompt("x", "一只猫" * 50), 0, Draw(1), 1.0, None, 0.5, image=tall)
    nothing = PromptSummary(cat.prompt, None, None)
    assert sheet([PromptSummary(cat.prompt, cat, cat), nothing]).width > 0
    assert sheet([]).width > 0


def test_chosen_images_are_named_by_prompt_and_stay_inside(tmp_path: Path) -> None:
    write_chosen(rows("a", "../../x", "一"), tmp_path / "run")
    names = sorted(p.name for p in (tmp_path / "run" / "chosen").iterdir())
    assert [name.split("-")[0] for name in names] == ["______x", "a.png", "一"]
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    assert (tmp_path / "run" / "chosen.png").exists()


ODD_IDS = [
    "x" * 252, "一" * 30, "..", ".", "CON", "con.png", "a/b", "a_b", ".hidden", "nul\0byte", "Cat",
    "cat", "cat ", "a\\b", "-rf", "line\nbreak", "\U0001f600" * 40, "C:", "é", "e\u0301", "0000",
    "", "x" * 251, "一" * 29 + "二", "/" * 99,
]  # fmt: skip


def test_any_id_gets_a_file_of_its_own(tmp_path: Path) -> None:
    write_chosen(rows(*ODD_IDS), tmp_path / "run")
    names = [p.name for p in (tmp_path / "run" / "chosen").iterdir()]
    assert len({name.casefold() for name in names}) == len(ODD_IDS)
    assert {"0000.png", "a_b.png"} <= set(names)
    assert max(len(name.encode()) for name in names) < 144
    assert all(name.endswith(".png") and not name.startswith((".", "-")) for name in names)
    assert [p.name for p in (tmp_path / "run").glob("*.png")] == ["chosen.png"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"file/run/chosen/a\.png cannot be written"):
        write_chosen(rows("a"), tmp_path / "file" / "run")


def test_no_image_is_written_through_a_link(tmp_path: Path) -> None:
    home, folder = tmp_path / "home", tmp_path / "run"
    (folder / "chosen").mkdir(parents=True)
    home.mkdir()
    (home / "kept.png").write_text("mine")
    (folder / "chosen.png").symlink_to(home / "kept.png")
    (folder / "chosen" / "a.png").symlink_to(home / "kept.png")
    write_chosen(rows("a"), folder)
    assert (home / "kept.png").read_text() == "mine"
    for path in (folder / "chosen.png", folder / "chosen" / "a.png"):
        assert not path.is_symlink()
        path.unlink()
    (folder / "chosen").rmdir()
    (folder / "chosen").symlink_to(home)
    with pytest.raises(RunError, match=r"must hold files, not links; .*chosen is a link"):
        write_chosen(rows("a"), folder)
    assert [p.name for p in home.iterdir()] == ["kept.png"]
