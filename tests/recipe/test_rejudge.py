"""A run verified again: the same candidates, other verdicts, no image generated."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner, Result
from searches import InpaintReroll, SeedBeam

from tts_verifier import run
from tts_verifier.analysis.report import write_report
from tts_verifier.choice.objective import Objective
from tts_verifier.cli.run import run_command
from tts_verifier.errors import InputError, RunError
from tts_verifier.interfaces import Strategy
from tts_verifier.log import open_log, read_trials
from tts_verifier.recipe.rejudge import Proposed, RecordedGenerator
from tts_verifier.runner import RunResult, execute
from tts_verifier.runner.setup import RunSetup
from tts_verifier.strategies.best_of_n import BestOfN
from tts_verifier.testing import FakeGenerator, FakeVerifier
from tts_verifier.types import Job

PROMPTS = ["a red circle", "a blue star"]


def blue(image: object, prompt: str) -> dict[str, float]:
    return {"blue": image.getpixel((3, 3))[2] / 255}  # type: ignore[attr-defined]


def again(old: Path, new: Path) -> RunResult:
    recorded = RecordedGenerator(old, new)
    search = RunSetup(
        recorded, FakeVerifier(blue), Proposed(recorded.trials), Objective({"blue": 1})
    )
    return execute(search, recorded.prompts, folder=new)


@pytest.mark.parametrize("strategy", [InpaintReroll(), SeedBeam()])
def test_the_same_candidates_get_other_verdicts(tmp_path: Path, strategy: Strategy) -> None:
    old = run(PROMPTS, FakeGenerator(), FakeVerifier(), strategy, folder=tmp_path / "old")
    new = again(tmp_path / "old", tmp_path / "new")
    assert [t.id for t in new.trials] == [t.id for t in old.trials]
    assert all(set(t.scores) == {"blue"} for t in new.trials)
    for name, choice in new.choices.items():
        finished = [t for t in new.trials if t.prompt.id == name and t.finished]
        assert choice.trial.objective == max(t.objective for t in finished)
    assert [t.cost.network_evaluations for t in new.trials] == [
        t.cost.network_evaluations for t in old.trials
    ]
    table = pd.read_parquet(tmp_path / "new" / "trials.parquet")
    assert table.image_path.str.startswith("images/").all(), "no folder refers to another"
    for mine, theirs in zip(new.trials, old.trials, strict=True):
        assert mine.image.load().tobytes() == theirs.image.load().tobytes()
    write_report([tmp_path / "new"], tmp_path / "new" / "page.html")
    assert 'src="images/' in (tmp_path / "new" / "page.html").read_text()


def test_prompts_of_the_same_text_keep_their_own_images(tmp_path: Path) -> None:
    texts = ["a", "b", "a"]
    old = run(texts, FakeGenerator(), FakeVerifier(), BestOfN(2), folder=tmp_path / "old")
    new = again(tmp_path / "old", tmp_path / "new")
    assert [t.id for t in new.trials] == [t.id for t in old.trials]
    # Of a run in another order, and of a part of one.
    recorded = RecordedGenerator(tmp_path / "new", tmp_path / "newer")
    search = RunSetup(
        recorded, FakeVerifier(blue), Proposed(recorded.trials), Objective({"blue": 1})
    )
    last = execute(search, recorded.prompts[:1:-1], folder=tmp_path / "newer")
    assert [t.id for t in last.trials] == [t.id for t in old.trials[4:]]
    assert [t.id for t in again(tmp_path / "newer", tmp_path / "newest").trials] == [
        t.id for t in last.trials
    ]


def test_a_failed_candidate_stays_failed(tmp_path: Path) -> None:
    def fails(job: Job) -> bool:
        return job.proposal.seed % 2 == 0

    old = run(
        PROMPTS, FakeGenerator(fails=fails), FakeVerifier(), BestOfN(6), folder=tmp_path / "old"
    )
    new = again(tmp_path / "old", tmp_path / "new")
    assert [t.error for t in new.trials] == [t.error for t in old.trials]
    assert "fails on purpose" in [t.error for t in new.trials]


def test_it_continues_where_it_stopped(tmp_path: Path) -> None:
    run(PROMPTS, FakeGenerator(), FakeVerifier(), InpaintReroll(), folder=tmp_path / "old")
    again(tmp_path / "old", tmp_path / "new")
    recorded = RecordedGenerator(tmp_path / "old", tmp_path / "new")
    verifier = FakeVerifier(blue)
    search = RunSetup(recorded, verifier, Proposed(recorded.trials), Objective({"blue": 1}))
    execute(search, recorded.prompts, folder=tmp_path / "new")
    assert verifier.trace == []


def test_a_picture_that_is_gone_from_the_old_run_is_named_and_not_moved(tmp_path: Path) -> None:
    old = run(PROMPTS, FakeGenerator(), FakeVerifier(), InpaintReroll(), folder=tmp_path / "old")
    again(tmp_path / "old", tmp_path / "new")
    path = tmp_path / "old" / old.trials[0].image.path
    path.write_bytes(b"other")
    with pytest.raises(RunError, match="was changed"):
        again(tmp_path / "old", tmp_path / "newer")
    assert path.read_bytes() == b"other"
    shutil.rmtree(tmp_path / "old" / "images")
    assert len(read_trials(tmp_path / "new")[0].image.load().tobytes()) == 16 * 16 * 3


def test_what_cannot_be_judged_again_is_named(tmp_path: Path) -> None:
    open_log(tmp_path / "empty", {"generator": {}}, {}).close()
    with pytest.raises(InputError, match="empty has no verified candidate yet"):
        RecordedGenerator(tmp_path / "empty", tmp_path / "new")
    with pytest.raises(RunError, match=r"needs a folder of its own, .*Give another with --output"):
        RecordedGenerator(tmp_path / "empty", tmp_path / "empty")
    with pytest.raises(RunError, match=r"nothing has no header\.json\. Check the path"):
        RecordedGenerator(tmp_path / "nothing", tmp_path / "new")


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(run_command, [str(a) for a in arguments])


def test_the_command_judges_again(tmp_path: Path) -> None:
    assert invoke("fake", "strategy.n=3", "--output", tmp_path / "old").exit_code == 0
    arguments = ("fake", "objective.weights.aesthetics=1", "--output", tmp_path / "new")
    done = invoke(*arguments, "--rejudge", tmp_path / "old")
    assert done.exit_code == 0, done.output
    assert f"the candidates of {tmp_path / 'old'} again\n  verifier fake, judge fake" in done.stdout
    assert "  objective.weights.aesthetics: 1\n" in done.stdout
    assert "generator" not in done.stdout
    shown = invoke(*arguments, "--rejudge", tmp_path / "old", "--show-recipe")
    assert "rejudge: ../old" in shown.stdout
    assert "3 prompts, 9 candidates" in done.stdout
    names = {p.name for p in (tmp_path / "new").iterdir()}
    assert names >= {"trials.parquet", "chosen.png"}
    assert {t.prompt for t in read_trials(tmp_path / "new")} == {
        t.prompt for t in read_trials(tmp_path / "old")
    }
    assert invoke(*arguments, "--rejudge", tmp_path / "new").exit_code == 2


def test_a_run_without_a_finished_candidate_says_how_to_finish_one(tmp_path: Path) -> None:
    recipe = tmp_path / "short.yaml"
    recipe.write_text(
        "generator: {name: fake}\nverifier: {name: fake}\nstrategy: {name: seed_beam}\n"
        "budget: {network_evaluations: 3}\nprompts: [a red circle]\n"
    )
    source, again = tmp_path / "source", tmp_path / "again"
    for more in (["--output", source], ["--rejudge", source, "--output", again]):
        done = CliRunner().invoke(run_command, [str(a) for a in (recipe, "--quiet", *more)])
        assert done.exit_code == 3, done.output
        assert "needs a candidate that is finished, and none of" in done.stderr
        assert "give that run's own command first" in done.stderr


@pytest.mark.parametrize("settings", [None, True, [], {"a": []}, {"a": 2**63}])
def test_settings_that_no_generator_has_are_named(tmp_path: Path, settings: object) -> None:
    run(PROMPTS, FakeGenerator(), FakeVerifier(), BestOfN(2), folder=tmp_path / "old")
    path = tmp_path / "old" / "header.json"
    header = json.loads(path.read_text())
    header["about"]["generator"] = settings
    path.write_text(json.dumps(header))
    with pytest.raises(RunError, match=r"header\.json must name the settings of the generator"):
        RecordedGenerator(tmp_path / "old", tmp_path / "new")


def test_settings_of_another_generator_are_named(tmp_path: Path) -> None:
    run(PROMPTS, FakeGenerator(), FakeVerifier(), BestOfN(2), folder=tmp_path / "old")
    path = tmp_path / "old" / "header.json"
    header = json.loads(path.read_text())
    header["about"]["generator"] = {"model": "another"}
    path.write_text(json.dumps(header))
    with pytest.raises(
        RunError, match=r"must name the settings that its candidates were generated"
    ):
        again(tmp_path / "old", tmp_path / "new")
