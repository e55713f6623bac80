"""mypy finds a misspelt or wrong option in a user's file, and nothing in a correct one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

USER_FILE = '''
"""What a user types; every line that ends in `# wrong` has a mistake."""

from pathlib import Path

import numpy as np
import tts_verifier
from PIL import Image
from tts_verifier import *
from tts_verifier.images import ImageLike
from tts_verifier.reward.flow_grpo import multi_score, scorer
from tts_verifier.testing import FakeGenerator, FakeVerifier, check_verifier

pipe: object = None
verifier = Verifier.from_pretrained("shapes", fit="pad", device="cpu")
images: list[ImageLike] = [Image.new("RGB", (8, 8)), np.zeros((8, 8, 3)), "a.png", Path("b.png")]

wrapped = wrap(pipe, "shapes", strategy=BestOfN(4), objective={"overall": 1.0}, judge=None)
wrap(pipe, verifier, budget=Budget(candidates=8), detail="score", looks=2, ties=2, near=0.1)
wrap(pipe, verifier, objektive={"overall": 1.0})  # wrong
wrap(pipe, verifier, strategie=BestOfN(4))  # wrong
wrap(pipe, verifier, objective="overall")  # wrong
wrap(pipe, verifier, budget=8)  # wrong
wrap(pipe, verifier, folder="runs")  # wrong
VerifiedPipeline(pipe, verifier, inpainting=None)  # wrong

result = run(["a"], FakeGenerator(), FakeVerifier(), BestOfN(2), seed=1, folder="x", progress=True)
chosen: Image.Image = result.images["0000"]
run(["a"], FakeGenerator(), FakeVerifier(), BestOfN(2), buget=Budget())  # wrong
run(["a"], FakeGenerator(), FakeVerifier(), BestOfN(2), budget=Budget(candidate=2))  # wrong
run(["a"], FakeGenerator(), FakeVerifier(), BestOfN(2), seeds=3)  # wrong
run(["a"], FakeGenerator(), FakeVerifier(), BestOfN(2), detail="scores")  # wrong
run(["a"], FakeGenerator(), FakeVerifier(), BestOfN)  # wrong
run(["a"], FakeVerifier(), FakeGenerator(), BestOfN(2))  # wrong

verifier.verify(images, ["a"] * 4, detail="score")[0].scores["overall"]
verifier.rerank(images, "a", looks=2, ties=2, near=0.02).best.image.save("best.png")
verifier.rerank(images, "a", objectiv={"overall": 1.0})  # wrong
verifier.rerank(images, "a", objective="overall")  # wrong
verifier.verify(images, ["a"] * 4, details="score")  # wrong
check_verifier(FakeVerifier())
check_verifier(FakeVerifier(), image=images)  # wrong

Verifier.from_pretrained("shapes", batchsize=2)  # wrong
ImageDoctor.from_pretrained("shapes", precision="fp8", heatmaps=True, max_new_tokens=9)
ImageDoctor.from_pretrained("shapes", fit="sqash")  # wrong
HPSv3.from_pretrained("a/b", dtype="bfloat16", revision="main")
HPSv3.from_pretrained("a/b", dtpe="bfloat16")  # wrong
PickScore.from_pretrained("a/b", device="cuda:0", batch_size=8)
PickScore.from_pretrained("a/b", devise="cuda:0")  # wrong
DetectorVerifier.from_pretrained("a/b", devise="cuda:0")  # wrong
load_verifier("clip", options={"model": "a/b"}, devise="cuda:0")  # wrong

HPSv3(base="a/b", local_files_only=True)
HPSv3(bases="a/b")  # wrong
UnifiedReward(max_tokens=3)  # wrong
VisualQuality(think=True)  # wrong
VQAScore(questions="?")  # wrong
SoftTIFA(atom=None)  # wrong
ClipScore(clip=True)  # wrong
PickScore(soft_max=True)  # wrong
HPSv2(antialiasing=True)  # wrong
ImageReward(tokeniser="a/b")  # wrong
Aesthetic(heads="a/b")  # wrong
DetectorVerifier(thresholds=0.3)  # wrong
OCRVerifier(casesensitive=True)  # wrong
OpenAIVerifier("gpt", baseurl="http://localhost")  # wrong
Remote("http://localhost", time_out=3)  # wrong
Ensemble(member={})  # wrong

Adaptive(BestOfN(8), {"overall": 0.9}, cost=0.01, least=4, at_once=2)
Adaptive(BestOfN(8), threshold={"overall": 0.9})  # wrong
BestOfN(N=8)  # wrong
Drafting(pase=0.4)  # wrong
FKSteering(potencial="max")  # wrong
FKSteering(potential="maximum")  # wrong
InpaintReroll(round=2)  # wrong
Reflection(rewriter=ShapesRewriter(), widths=2)  # wrong
SearchOverPaths(begin=0.4)  # wrong
SeedBeam(branch=2)  # wrong
Spectral(elites=2)  # wrong
SuccessiveHalving(stop=(0.3, 1.0))  # wrong
ZeroOrder(radios=0.4)  # wrong
ChatRewriter("gpt", temperatur=1.0)  # wrong
Objective({"overall": 1.0}, combine="worst", missing="skip")
Objective({"overall": 1.0}, combin="worst")  # wrong
Objective({"overall": 1.0}, "best")  # wrong
DiffusersGenerator("a/b", batchsize=2)  # wrong
SimulatedGenerator(biased=1)  # wrong

scorer("shapes", fill=0.0, objective={"overall": 1.0}, grid=(8, 8))
scorer("shapes", objektive={"overall": 1.0})  # wrong
multi_score("shapes", detial="score")  # wrong
tts_verifier.Adaptve  # wrong
'''


@pytest.mark.slow
def test_mypy_finds_every_mistake_in_a_users_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text(USER_FILE)
    options = ("--strict", "--follow-imports=silent", "--no-error-summary", "--hide-error-context")
    found = subprocess.run(
        [sys.executable, "-m", "mypy", *options, "--cache-dir", ".cache", "user.py"],
        cwd=tmp_path,
        env=os.environ | {"MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = dict.fromkeys(map(int, re.findall(r"^user.py:(\d+): error", found.stdout, re.M)))
    text = USER_FILE.splitlines()
    assert [text[line - 1] for line in lines] == [t for t in text if t.endswith("# wrong")]
