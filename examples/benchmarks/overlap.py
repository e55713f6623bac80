"""Drawing beside judging at the released sizes: what overlap gains, what fits on one GPU.

    python examples/benchmarks/overlap.py --out overlap.parquet       # all parts, two GPUs
    python examples/benchmarks/overlap.py --parts one,fits,wrap       # one GPU
    python examples/benchmarks/overlap.py --dry                       # tiny, on a CPU, seconds

Stable Diffusion 3.5 medium and the 3 B verifier have random weights (see `random_models`).
`two`, `one`: the verifier diagnoses, with both maps, on another GPU or on the generator's own.
The number of steps is chosen so that a batch takes about as long to draw as to judge; then
both are timed alone, in turns, and overlapped by the runner.
`fits`: peak memory of a best-of-16 at 1024 x 1024 with all three text encoders, by what was
going on. `turns`: a best-of-16 during which the two change places, as if both did not fit.
`wrap`: what best-of-1 costs beside the bare pipeline, judging excluded.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from PIL import Image
from random_models import add_t5, image_doctor, image_doctor_model, sd35
from verifier_throughput import write

from tts_verifier import BestOfN, run, wrap
from tts_verifier.generators.diffusers import DiffusersGenerator
from tts_verifier.log import read_header
from tts_verifier.log.environment import environment
from tts_verifier.testing import FakeVerifier
from tts_verifier.types import Draw, Job, Prompt

PARTS = ("two", "one", "wrap", "fits", "turns")
PROMPTS = tuple(f"{count} red foxes asleep under an umbrella" for count in ("two", "three"))
ASIDE = 1.1
"""How much longer a batch is to be drawn than judged: the first and last overlap nothing."""
GIB = 2**30
Row = dict[str, Any]


@dataclass(eq=False)
class Bench:
    """The models, and what is asked of them."""

    args: argparse.Namespace
    pipe: Any
    model: Any
    verifier: Any
    steps: int = 0

    @classmethod
    def of(cls, args: argparse.Namespace) -> Bench:
        """Makes both models; the verifier on the second GPU if a part wants it there."""
        second = "cuda:1" if "two" in args.parts else "cuda:0"
        at = ("cpu", "cpu") if args.dry else ("cuda:0", second)
        model = image_doctor_model(at[1], tiny=args.dry)
        verifier = image_doctor(model, tokens=args.tokens, tiny=args.dry)
        return cls(args, sd35(at[0], tiny=args.dry), model, verifier)

    @property
    def cuda(self) -> bool:
        """Whether there are GPUs."""
        return not self.args.dry

    @property
    def size(self) -> dict[str, int]:
        """Height and width of what is drawn beside judging."""
        side = 16 if self.args.dry else 512
        return {"height": side, "width": side}

    def generator(self, steps: int) -> DiffusersGenerator:
        """Returns one that draws so many steps, with guidance."""
        told = {"guidance": 4.5, "batch_size": self.args.batch, **self.size}
        return DiffusersGenerator(self.pipe, steps=steps, **told)

    def alone(self) -> Any:
        """Returns a verifier on the generator's device with room for replies of 2048 tokens.

        Replies end at once. Buffers of the other verifier are given back.
        """
        if self.verifier is not None:
            self.verifier.to(self.pipe.device)
        self.verifier = None
        return image_doctor(self.model, tokens=2048, ends=True, tiny=self.args.dry)

    def timed(self, work: Callable[[], Any]) -> float:
        """Returns seconds; what was asked of all GPUs before and meanwhile is done."""
        self.wait()
        began = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - began

    def wait(self) -> None:
        """Returns when all GPUs are idle."""
        for device in range(torch.cuda.device_count() if self.cuda else 0):
            torch.cuda.synchronize(device)

    def run(self, batches: int, verifier: Any = None, *, overlap: bool = False) -> Row:
        """Runs a search of so many full batches with a log.

        Returns:
            What its header tells: `seconds` of the loop, and the busy fractions of "draw" and
            "judge". The header itself and the table at the end are not counted.
        """
        count = batches * self.args.batch // len(PROMPTS)
        parts = (self.generator(self.steps), verifier or self.verifier, BestOfN(count))
        with tempfile.TemporaryDirectory() as folder:
            work = partial(run, PROMPTS, *parts, folder=folder, overlap=overlap)
            self.timed(lambda: undrawn(work()))
            session = read_header(Path(folder))["sessions"][-1]
            return {"seconds": session["seconds"], **session["busy"]}


def undrawn(result: Any) -> None:
    """Raises RuntimeError when a candidate has no picture, and so was not judged."""
    if lost := [trial.error for trial in result.trials if trial.image is None]:
        raise RuntimeError(f"{len(lost)} candidates were not drawn: {lost[0]}")


# -- overlap ---------------------------------------------------------------------------------


def jobs(count: int) -> list[Job]:
    return [Job(Prompt("0", PROMPTS[0]), Draw(seed)) for seed in range(count)]


def judged_alone(bench: Bench, batches: int) -> float:
    """Returns seconds of judging so many batches, nothing being drawn."""
    count = bench.args.batch
    noise = torch.randint(0, 256, (count, 512, 512, 3), dtype=torch.uint8).numpy()
    images = [Image.fromarray(array) for array in noise]
    return bench.timed(
        lambda: [bench.verifier.verify(images, [PROMPTS[0]] * count) for _ in range(batches)]
    )


def choose_steps(bench: Bench) -> None:
    """Chooses how many steps to draw, from what two drawings and one judging took."""
    few, many = 3, 9
    bench.generator(few).generate(jobs(bench.args.batch))
    took = [
        bench.timed(lambda n=n: bench.generator(n).generate(jobs(bench.args.batch)))
        for n in (few, many)
    ]
    judged_alone(bench, 2)
    each, judging = (took[1] - took[0]) / (many - few), judged_alone(bench, 2) / 2
    bench.steps = min(max(round((ASIDE * judging - took[0]) / max(each, 1e-9)) + few, 1), 200)
    print(
        f"a batch of {bench.args.batch}: {each * 1e3:.1f} ms a step and "
        f"{took[0] - few * each:.3f} s beside, judged in {judging:.3f} s; {bench.steps} steps",
        flush=True,
    )


def overlap(bench: Bench, part: str) -> list[Row]:
    """Times drawing and judging alone, in turns, and overlapped."""
    bench.steps, count = 4, bench.args.batches
    bench.run(3, overlap=True)  # records what the verifier replays, beside drawing
    choose_steps(bench)
    fake = bench.run(count, FakeVerifier())  # its own time is not drawing
    alone = {"draw": fake["seconds"] * fake["draw"], "judge": judged_alone(bench, count)}
    turns, both = bench.run(count), bench.run(count, overlap=True)
    return [
        {
            "part": part,
            "generator_on": str(bench.pipe.device),
            "verifier_on": str(bench.verifier.device),
            "batch": bench.args.batch,
            "batches": count,
            "steps": bench.steps,
            "reply_tokens": bench.args.tokens,
            "draw_alone_s": alone["draw"],
            "judge_alone_s": alone["judge"],
            "shorter_over_longer": min(alone.values()) / max(alone.values()),
            "in_turns_s": turns["seconds"],
            "overlapped_s": both["seconds"],
            "over_longer": both["seconds"] / max(alone.values()),
            "over_in_turns": both["seconds"] / turns["seconds"],
            "busy_in_turns": f"{turns['draw']:.3f} + {turns['judge']:.3f}",
            "busy_overlapped": f"{both['draw']:.3f} + {both['judge']:.3f}",
        }
    ]


def two(bench: Bench) -> list[Row]:
    """Overlaps on two GPUs."""
    return overlap(bench, "two")


def one(bench: Bench) -> list[Row]:
    """Overlaps on one GPU."""
    bench.verifier.to(bench.pipe.device)
    return overlap(bench, "one")


# -- memory ----------------------------------------------------------------------------------


class Peaks:
    """Peak memory of the first GPU, by what was going on."""

    def __init__(self, cuda: bool) -> None:
        self.cuda, self.allocated, self.taken = cuda, dict[str, float](), 0.0
        self.mark("")

    def mark(self, phase: str) -> None:
        """Ends a phase."""
        if not self.cuda:
            self.allocated[phase] = 0.0
            return
        most = torch.cuda.max_memory_allocated() / GIB
        self.allocated[phase] = max(self.allocated.get(phase, 0.0), most)
        free, total = torch.cuda.mem_get_info()
        self.taken = max(self.taken, (total - free) / GIB)
        torch.cuda.reset_peak_memory_stats()

    @contextmanager
    def around(self, owner: Any, name: str, phase: str) -> Iterator[None]:
        """Counts a method as a phase of its own, and what came before it as drawing."""
        own = getattr(owner, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            self.mark("drawing")
            result = own(*args, **kwargs)
            self.mark(phase)
            return result

        with mock.patch.object(owner, name, watched):
            yield


def fits(bench: Bench) -> list[Row]:
    """Measures a best-of-16 at 1024 x 1024 with everything on one GPU."""
    if bench.pipe.text_encoder_3 is None:
        add_t5(bench.pipe, tiny=bench.args.dry)
    verifier = bench.alone()
    side = 16 if bench.args.dry else 1024
    rows = []
    for batch, both in ((4, False), (16, False), (4, True)):
        if bench.cuda:
            torch.cuda.empty_cache()
        peaks = Peaks(bench.cuda)
        weights = torch.cuda.memory_allocated() / GIB if bench.cuda else 0.0
        generator = DiffusersGenerator(
            bench.pipe, steps=6, guidance=4.5, batch_size=batch, height=side, width=side
        )
        with (
            peaks.around(bench.pipe.vae, "decode", "decoding"),
            peaks.around(verifier, "verify", "judging"),
        ):
            work = partial(run, PROMPTS[:1], generator, verifier, BestOfN(16), overlap=both)
            seconds = bench.timed(lambda work=work: undrawn(work()))
        peaks.mark("drawing")
        rows.append(
            {
                "part": f"fits, {batch} at a time{', overlapped' if both else ''}",
                "seconds": seconds,
                "before_gib": weights,
                **{f"{n}_gib": v for n, v in peaks.allocated.items() if n},
                "reserved_gib": torch.cuda.max_memory_reserved() / GIB if bench.cuda else 0.0,
                "taken_from_the_gpu_gib": peaks.taken,
            }
        )
    return rows


def turns(bench: Bench) -> list[Row]:
    """Runs a best-of-16 whose parts change places, as if they did not fit together."""
    if bench.pipe.text_encoder_3 is None:
        add_t5(bench.pipe, tiny=bench.args.dry)
    verifier = bench.alone()
    told = {"steps": 6, "guidance": 4.5, "batch_size": bench.args.batch, **bench.size}
    generator = DiffusersGenerator(bench.pipe, **told)
    peaks = Peaks(bench.cuda)
    full = mock.patch("tts_verifier.runner.devices.plan", return_value="in turns")
    with tempfile.TemporaryDirectory() as folder, full:
        work = partial(run, PROMPTS[:1], generator, verifier, BestOfN(16), folder=folder)
        seconds = bench.timed(lambda: undrawn(work()))
        session = read_header(Path(folder))["sessions"][-1]
    peaks.mark("in turns")
    row = {"part": "turns", "plan": session["plan"], "moves": session["moves"], "seconds": seconds}
    row |= {"moving_s": seconds - session["seconds"] * sum(session["busy"].values())}
    return [row | {f"{name}_gib": most for name, most in peaks.allocated.items() if name}]


# -- overhead --------------------------------------------------------------------------------


def overhead(bench: Bench) -> list[Row]:
    """Times the bare pipeline and best-of-1 of a wrapped one, in turns."""
    call = {"num_inference_steps": 2 if bench.args.dry else 20, "guidance_scale": 4.5, **bench.size}
    verified = wrap(bench.pipe, FakeVerifier(), strategy=BestOfN(1))
    bare, wrapped = [], []
    for number in range(bench.args.runs + 1):
        generator = torch.Generator().manual_seed(number)
        bare.append(bench.timed(lambda g=generator: bench.pipe(PROMPTS[0], generator=g, **call)))
        outs: list[Any] = []
        took = bench.timed(lambda n=number, o=outs: o.append(verified(PROMPTS[0], seed=n, **call)))
        wrapped.append(took - sum(trial.cost.verify_seconds for trial in outs[0].trials))
    # The first of each is a warm-up.
    one, other = (statistics.median(times[1:]) for times in (bare, wrapped))
    row = {"bare_s": one, "wrapped_s": other, "overhead_ms": 1e3 * (other - one)}
    return [{"part": "wrap", **row, "overhead_share": other / one - 1, "runs": bench.args.runs}]


# -- all -------------------------------------------------------------------------------------


def shown(rows: list[Row]) -> str:
    """Returns rows as a table, a figure a line."""
    lines = []
    for row in rows:
        lines += ["", f"| {row['part']} | |", "|---|---|"]
        for key, value in row.items():
            text = f"{value:.3f}" if isinstance(value, float) else value
            lines += [f"| {key} | {text} |"] if key != "part" else []
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default=",".join(PARTS), help="in order")
    parser.add_argument("--dry", action="store_true", help="tiny models on the CPU")
    parser.add_argument("--batch", type=int, default=8, help="candidates drawn at a time")
    parser.add_argument("--batches", type=int, default=24, help="of every timed run")
    parser.add_argument("--tokens", type=int, default=256, help="of every reply")
    parser.add_argument("--runs", type=int, default=10, help="of `wrap`")
    parser.add_argument("--seconds", type=float, default=300, help="no part starts after this")
    parser.add_argument("--out", type=Path, help="a Parquet file")
    args = parser.parse_args()
    args.parts = args.parts.split(",")
    began = time.perf_counter()
    bench = Bench.of(args)
    bench.wait()
    passed = time.perf_counter() - began
    print(f"{environment()['device']}; models ready after {passed:.1f} s", flush=True)
    known = dict(zip(PARTS, (two, one, overhead, fits, turns), strict=True))
    rows: list[Row] = []
    for part in args.parts:
        if (passed := time.perf_counter() - began) > args.seconds:
            print(f"{part} is left out: {passed:.0f} s are over", flush=True)
            continue
        try:
            made = known[part](bench)
        except Exception as error:  # the other parts still count
            made = [{"part": part, "error": f"{type(error).__name__}: {error}"[:2000]}]
        for row in made:
            print(json.dumps(row), flush=True)
        rows += made
        print(f"{part} ended after {time.perf_counter() - began:.1f} s", flush=True)
        if args.out:
            write(rows, args.out)
    print(shown(rows))


if __name__ == "__main__":
    main()
