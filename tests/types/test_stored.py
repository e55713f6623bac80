"""A stored value pickles, and a file that changed is noticed when it is loaded."""

import hashlib
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tts_verifier import BestOfN, run
from tts_verifier.errors import RunError
from tts_verifier.log import read_trials
from tts_verifier.log.storage.codecs import IMAGE, MASK
from tts_verifier.testing import FakeGenerator, FakeVerifier
from tts_verifier.types import InFile, InMemory, path_of

READ = """
import pickle, sys
trial = pickle.load(sys.stdin.buffer)
maps = trial.verdict.heatmaps
print(trial.id, trial.image.load().size, maps["artifact"].shape, round(trial.objective, 6))
"""


@pytest.mark.parametrize("logged", [False, True])
def test_a_finished_trial_pickles_into_a_fresh_process(tmp_path: Path, logged: bool) -> None:
    folder = tmp_path / "run" if logged else None
    result = run(["a red circle"], FakeGenerator(), FakeVerifier(), BestOfN(1), folder=folder)
    (trial,) = result.trials
    assert isinstance(trial.image, InFile if logged else InMemory)
    done = subprocess.run(
        [sys.executable, "-c", READ], input=pickle.dumps(trial), capture_output=True, check=True
    )
    assert done.stdout.decode() == f"{trial.id} (16, 16) (16, 16) {round(trial.objective, 6)}\n"


def test_a_file_that_is_gone_or_changed_is_an_error(tmp_path: Path) -> None:
    run(["a red circle"], FakeGenerator(), FakeVerifier(), BestOfN(1), folder=tmp_path)
    (trial,) = read_trials(tmp_path)
    assert trial.image is not None
    file = tmp_path / path_of(trial.image)
    file.write_bytes(b"another")
    with pytest.raises(RunError, match="was changed since the log was written"):
        trial.image.load()
    file.unlink()
    with pytest.raises(RunError, match="cannot be read: No such file"):
        trial.image.load()
    os.mkfifo(file)
    with pytest.raises(RunError, match="cannot be read: a regular file is needed, this is a named"):
        trial.image.load()


def test_a_value_in_memory_has_no_path() -> None:
    assert (InMemory(3).load(), path_of(InMemory(3)), path_of(None)) == (3, "", "")


@pytest.mark.parametrize("content", [b"no picture", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"GIF89a"])
def test_a_file_that_is_not_what_its_row_says_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    stored = InFile(tmp_path, "a.png", hashlib.sha256(content).hexdigest(), IMAGE)
    with pytest.raises(
        RunError, match=r"a\.png is not what its row says: .*it is no PNG"
    ) as caught:
        stored.load()
    assert str(caught.value).endswith(
        "Move it away; the command that made the run generates it again."
    )
    assert "\n" not in str(caught.value)


def test_a_mask_of_two_hundred_megapixels_is_named(tmp_path: Path) -> None:
    Image.new("1", (20_000, 10_000)).save(tmp_path / "mask.png")
    content = (tmp_path / "mask.png").read_bytes()
    stored = InFile(tmp_path, "mask.png", hashlib.sha256(content).hexdigest(), MASK)
    with pytest.raises(RunError, match=r"mask\.png is not what its row says: DecompressionBomb"):
        stored.load()
