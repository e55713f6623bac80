"""Which files of a folder are pictures: links are followed once, hidden copies are left out."""

import os
from pathlib import Path

import pytest

from tts_verifier.errors import InputError, RunWarning
from tts_verifier.scoring import find_images


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A data set with everything that lies about in one; `data` is what users name."""
    for name in (
        "data/a.png",
        "data/B.JPG",
        "data/deep/c.webp",
        "data/deep/er/d.ppm",
        "data/notes.txt",
        "data/figure.eps",
        "data/table.h5",
        "data/film.mpg",
        "data/.hidden.png",
        "data/._a.png",
        "data/.DS_Store",
        "data/.ipynb_checkpoints/a-checkpoint.png",
        "data/deep/.cache/x/y.png",
        "data/.git/z.png",
        "else/e.png",
        "else/.trash/f.png",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def names(tree: Path, *patterns: str) -> list[str]:
    found = find_images([str(tree / pattern) for pattern in patterns])
    return [str(Path(path).relative_to(tree)) for path in found]


OWN = ["data/B.JPG", "data/a.png", "data/deep/c.webp", "data/deep/er/d.ppm"]


def test_pictures_are_what_has_a_pictures_suffix_and_is_not_hidden(tree: Path) -> None:
    assert names(tree, "data") == OWN
    assert names(tree, "data/*.png") == ["data/a.png"]
    assert names(tree, "data/**/*.p*") == ["data/a.png", "data/deep/er/d.ppm"]
    others = [f"data/{name}" for name in ("figure.eps", "film.mpg", "notes.txt", "table.h5")]
    assert names(tree, "data/**") == sorted([*OWN, *others])
    # Whatever is named itself is meant.
    assert names(tree, "data/.hidden.png", "data/figure.eps") == [
        "data/.hidden.png",
        "data/figure.eps",
    ]
    assert names(tree, "data/.git") == ["data/.git/z.png"]
    with pytest.raises(InputError, match="has no image"):
        names(tree, "data/.ipynb_checkpoints/*.jpg")


def test_linked_folders_are_searched(tree: Path) -> None:
    (tree / "data" / "linked").symlink_to(tree / "else")
    (tree / "data" / "0.png").symlink_to(tree / "else" / "e.png")
    assert names(tree, "data") == [*OWN, "data/linked/e.png"]
    (tree / "all").symlink_to(tree / "data")
    assert names(tree, "all") == [
        *(f"all{path[4:]}" for path in OWN),
        "all/linked/e.png",
    ]


def test_every_file_is_there_once_and_circles_end(tree: Path) -> None:
    data = tree / "data"
    (data / "deep" / "up").symlink_to(data)
    (data / "deep" / "me").symlink_to(data / "deep")
    (data / "0").symlink_to(data / "deep")
    (data / "0.png").symlink_to(data / "a.png")
    (data / "self.png").symlink_to(data / "self.png")
    for i in range(8):
        (data / f"again{i}").symlink_to(data)
    assert names(tree, "data") == [*OWN, "data/self.png"]
    # Python's own `**` would go round 40 times, in ten ways each.
    assert names(tree, "data/**/*.png") == ["data/a.png", "data/self.png"]


def test_links_that_lead_nowhere_are_there(tree: Path) -> None:
    (tree / "data" / "gone.png").symlink_to(tree / "gone")
    assert "data/gone.png" in names(tree, "data")
    assert names(tree, "data/g*.png") == ["data/gone.png"]


def test_a_folder_that_cannot_be_read_is_named(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("er"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.warns(RunWarning, match=r"deep/er cannot be read and is left out: Permission"):
        assert names(tree, "data") == OWN[:-1]


def test_the_home_folder_and_the_working_folder_are_searched(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tree))
    assert find_images(["~/data/*.png"]) == [str(tree / "data" / "a.png")]
    monkeypatch.chdir(tree / "data")
    assert find_images(["**/*.webp"]) == ["deep/c.webp"]
    assert find_images(["**/*.png", "a.png"]) == ["a.png"]
