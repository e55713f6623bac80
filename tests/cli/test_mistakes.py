"""Mistakes at `tts-run`: one line with rule, value and remedy, and nothing is drawn before."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from tts_verifier.cli.run import run_command
from tts_verifier.testing import FakeGenerator

FILES = {
    "p.txt": "",
    "empty.yaml": "",
    "tabs.yaml": "generator:\n\tname: fake\n",
    "list.yaml": "- a\n",
    "mine.yaml": "generator: {name: fake}\nverifier: {name: fake}\nprompts: [a]\n",
    "inner.yaml": "generator: {name: fake}\nverifier: {name: fake}\nprompts: [a]\n"
    "strategy: {name: adaptive, strategy: {name: best_of_n}}\n",
    "mine.py": """
from tts_verifier.types import Draw
class Mine:
    needs = frozenset({Draw})
    def __init__(self, n: int = 2):
        if n > 5:
            raise ValueError("n is too large")
    def propose(self, task, history): return []
class Other: pass
""",
    "broken.py": "x = 1\ny = 1 / 0\n",
    "ends.py": "raise SystemExit(3)\n",
    "needs.py": "import no_such_library\n",
}

MISTAKES = {
    # The recipe.
    "bestoffn": ["'bestoffn'", "Did you mean 'bestofn'", "Available: adaptive"],
    "mime.yaml": ["mime.yaml cannot be read", "Did you mean mine.yaml"],
    "recipes/bestofn.yaml": ["cannot be read", "A recipe of the package needs no path: bestofn"],
    "empty.yaml": ["empty.yaml: a recipe must be a table of keys and values"],
    "tabs.yaml": ["tabs.yaml:2: a recipe must be YAML"],
    "list.yaml": ["list.yaml: a recipe must be a table of keys and values"],
    "mine.yaml": ["mine.yaml: a recipe needs 'strategy'"],
    # The command.
    "": ["Missing argument 'RECIPE'. See tts-run -h."],
    "fake --outptu x": ["No such option '--outptu'", "--output", "See tts-run -h."],
    "fake --set 0": ["'--set': 0 is not in the range x>=1"],
    "fake --parallel many": ["Unknown engine 'many'", "dask, loky, ray"],
    "fake --parallel 0": ["workers must be a whole number, 1 or more, got 0"],
    "fake --rejudge nothing": ["needs a folder that tts-run has written", "nothing has no header"],
    "fake --output p.txt": ["p.txt", "choose another output folder"],
    # Overrides: each blames the override and not the recipe's file.
    "fake strategy.n": ["must look like strategy.n=16, got 'strategy.n'"],
    "fake n=4": ["override 'n=4': unknown key 'n'", "Did you mean 'strategy.n'?"],
    "fake strateggy.n=4": ["override 'strateggy.n=4'", "Did you mean 'strategy'?"],
    "fake strategy.m=4": ["override 'strategy.m=4': unknown key 'strategy.m'. Available: n."],
    "fake strategy.n=0": ["override 'strategy.n=0': n must be a positive integer, got 0"],
    "fake strategy.n=many": ["strategy.n must be a whole number, got 'many'"],
    "fake strategy.n=2.5": ["strategy.n must be a whole number, got 2.5"],
    "fake strategy=best_of_n": ["strategy must be a table of keys, got 'best_of_n'"],
    "fake strategy.name=best-of-n": ["Unknown strategy 'best-of-n'", "Did you mean 'best_of_n'?"],
    "fake strategy.name=adaptive": [
        "override 'strategy.name=adaptive': adaptive has no argument 'n', which ",
        "fake.yaml:11 gives",
        "Replace the section as a whole: 'strategy={name: adaptive}'",
    ],
    "fake strategy={name: adaptive}": ["needs strategy", "tts-run --explain strategy.adaptive"],
    "inner.yaml strategy.strategy.m=4": [
        "override 'strategy.strategy.m=4': strategy 'best_of_n' has no argument 'm'. Available: n."
    ],
    "fake strategy={name: adaptive, strategy: {name: best_of_n}, thresholds: {overal: 1}}": [
        "got 'overal'. Did you mean 'overall'?"
    ],
    "fake generator=": ["override 'generator=': a recipe needs 'generator'"],
    "fake verifier.name=shapes": ["Unknown verifier 'shapes'. Did you mean 'shapes-judge'"],
    "fake judge.name=fak": ["Unknown verifier 'fak'. Did you mean 'fake'?"],
    "fake seed=one": ["seed must be a whole number, got 'one'"],
    "fake prompts=nothing.txt": ["override 'prompts=nothing.txt'", "nothing.txt cannot be read"],
    "fake prompts=p.txt": ["A run needs at least one prompt, got none"],
    "fake prompts=cat": ["must be .txt or a table", "One prompt is a list too: [a cat]"],
    "fake objective.weights.overal=1": ["got 'overal'. Did you mean 'overall'?"],
    "fake objective.combine=mean": ["must be 'sum' or 'worst' or 'mean_rank'", "got 'mean'"],
    "fake budget.candidats=3": ["Did you mean 'candidates'"],
    "fake budget.candidates=0": ["override 'budget.candidates=0': Every limit", "positive"],
    "fake detail=full": ["detail must be 'score' or 'diagnose', got 'full'"],
    "fake looks=100": ["override 'looks=100': looks must be at most 4", "got 100"],
    "fake ties=1": ["override 'ties=1'", "0 or at least 2, got 1"],
    "simulated strategy={name: successive_halving}": [
        "needs a generator that can continue, SimulatedGenerator cannot. Choose another"
    ],
    # Parts of their own.
    "fake strategy.name=mine.py": ["Unknown strategy 'mine.py'", "FILE.py:CLASS"],
    "fake strategy.name=mein.py:Mine": ["must name a file that exists, and mein.py is in none of"],
    "fake strategy={name: mine.py:Mein}": ["which has no Mein. Did you mean 'Mine'?"],
    "fake strategy={name: mine.py:Other}": ["has no method propose. docs/plugins.md"],
    "fake strategy={name: mine.py:Mine, m: 1}": ["unknown key 'strategy.m'. Available: n."],
    "fake strategy={name: mine.py:Mine, n: 9}": [
        "'mine.py:Mine' cannot be built: ValueError: n is too large (",
        "mine.py, line 7)",
    ],
    "fake strategy={name: adaptive, strategy: {name: mine.py:Mine, n: 9}}": [
        "'mine.py:Mine' cannot be built: ValueError: n is too large"
    ],
    "fake strategy={name: broken.py:X}": ["ZeroDivisionError: division by zero", "line 2)"],
    "fake strategy={name: ends.py:X}": ["cannot be imported: SystemExit: 3"],
    "fake strategy={name: needs.py:X}": ["No module named 'no_such_library'", "needs.py, line 1)"],
    "fake strategy={name: mine.py:Mine.needs}": ["and is a frozenset. docs/plugins.md"],
    "fake strategy={name: no.such:X}": ["there is no 'no'. Install its package, or give a file"],
}


def test_there_are_thirty_and_more() -> None:
    assert len(MISTAKES) >= 30


@pytest.mark.parametrize("command", MISTAKES)
def test_a_mistake_is_one_line_and_costs_no_drawing(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[object] = []
    monkeypatch.setattr(FakeGenerator, "generate", lambda self, jobs: drawn.append(jobs))
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        Path(name).write_text(text)
    # An override with spaces is one word, as in quotes.
    words = command.partition(" strategy={")
    arguments = [*words[0].split(), *([f"strategy={{{words[2]}"] if words[1] else [])]
    done = CliRunner().invoke(run_command, arguments)
    assert done.exit_code == 2, done.output
    assert isinstance(done.exception, SystemExit), "no traceback"
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: ")
    for part in MISTAKES[command]:
        assert part in line
    assert drawn == []
