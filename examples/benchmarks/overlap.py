"""Generating beside verifying at the released sizes: the gain of overlap, the memory of one GPU.

    python examples/benchmarks/overlap.py --out overlap.parquet       # all parts, two GPUs
    python examples/benchmarks/overlap.py --parts one,fits,wrap       # one GPU
    python examples/benchmarks/overlap.py --dry                       # tiny, on a CPU, seconds

Stable Diffusion 3.5 medium and the 3 B verifier have random weights (see `random_models`).
`two`, `one`: the verifier diagnoses, with both heatmaps, on another GPU or on the generator's own.
The script chooses the number of steps for which a batch takes about as long to generate as to
verify. Then it times both alone, in turns, and overlapped by the runner.
`fits`: peak memory of a best-of-16 at 1024 x 1024 with all three text encoders, by phase.
`turns`: a best-of-16 during which the two change places on the GPU, as if both did not fit.
`wrap`: best-of-1 of a wrapped pipeline against the bare one, without the verifier's time.
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
from verifier_bench import write

from tts_verifier import BestOfN, run, wrap
from tts_verifier.generators.diffusers import DiffusersGenerator
from tts_verifier.log import read_header
from tts_verifier.log.environment import environment
from tts_verifier.testing import FakeVerifier
from tts_verifier.types import Draw, Job, Prompt

PARTS = ("two", "one", "wrap", "fits", "turns")
PROMPTS = tuple(f"{count} red foxes asleep under an umbrella" for count in ("two", "three"))
GENERATE_OVER_VERIFY = 1.1
"""How much longer a batch is generated than verified, since the first and last do not overlap."""
GIB = 2**30
Row = dict[str, Any]


@dataclass(eq=False)
class Bench:
    """The models, and the settings of the benchmark."""

    args: argparse.Namespace
    pipe: Any
    model: Any
    verifier: Any
    steps: int = 0

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> Bench:
        """Makes both models; the verifier goes to the second GPU if a part needs it there."""
        second = "cuda:1" if "two" in args.parts else "cuda:0"
        devices = ("cpu", "cpu") if args.dry else ("cuda:0", second)
        model = image_doctor_model(devices[1], tiny=args.dry)
        verifier = image_doctor(model, tokens=args.tokens, tiny=args.dry)
        return cls(args, sd35(devices[0], tiny=args.dry), model, verifier)

    @property
    def cuda(self) -> bool:
        """Whether there are GPUs."""
        return not self.args.dry

    @property
    def size(self) -> dict[str, int]:
        """Height and width of the images generated beside verifying."""
        side = 16 if self.args.dry else 512
        return {"height": side, "width": side}

    def generator(self, steps: int) -> DiffusersGenerator:
        """Returns a generator with so many steps, and guidance."""
        settings = {"guidance": 4.5, "batch_size": self.args.batch, **self.size}
        return DiffusersGenerator(self.pipe, steps=steps, **settings)

    def verifier_of_long_replies(self) -> Any:
        """Returns a verifier on the generator's device, with capacity for replies of 2048 tokens.

        Its replies end at once. The buffers of the other verifier are freed.
        """
        if self.verifier is not None:
            self.verifier.to(self.pipe.device)
        self.verifier = None
        return image_doctor(self.model, tokens=2048, ends=True, tiny=self.args.dry)

    def timed(self, work: Callable[[], Any]) -> float:
        """Returns the seconds that work takes, until all GPUs are idle again."""
        self.wait()
        began = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - began

    def wait(self) -> None:
        """Waits until all GPUs are idle."""
        for device in range(torch.cuda.device_count() if self.cuda else 0):
            torch.cuda.synchronize(device)

    def run(self, batches: int, verifier: Any = None, *, overlap: bool = False) -> Row:
        """Runs a search of so many full batches with a log.

        Returns:
            From its header: `seconds` of the loop, and the busy fractions of "draw" and
            "judge". The time for the header itself and the final table is not included.
        """
        count = batches * self.args.batch // len(PROMPTS)
        parts = (self.generator(self.steps), verifier or self.verifier, BestOfN(count))
        with tempfile.TemporaryDirectory() as folder:
            work = partial(run, PROMPTS, *parts, folder=folder, overlap=overlap)
            self.timed(lambda: check_images(work()))
            session = read_header(Path(folder))["sessions"][-1]
            return {"seconds": session["seconds"], **session["busy"]}


def check_images(result: Any) -> None:
    """Raises RuntimeError when a candidate has no image, and so was not verified."""
    if errors := [trial.error for trial in result.trials if trial.image is None]:
        raise RuntimeError(f"{len(errors)} candidates have no image: {errors[0]}")


# -- overlap ---------------------------------------------------------------------------------


def jobs(count: int) -> list[Job]:
    return [Job(Prompt("0", PROMPTS[0]), Draw(seed)) for seed in range(count)]


def seconds_to_verify(bench: Bench, batches: int) -> float:
    """Returns the seconds that the verifier takes for so many batches, with nothing beside it."""
    count = bench.args.batch
    noise = torch.randint(0, 256, (count, 512, 512, 3), dtype=torch.uint8).numpy()
    images = [Image.fromarray(array) for array in noise]
    return bench.timed(
        lambda: [bench.verifier.verify(images, [PROMPTS[0]] * count) for _ in range(batches)]
    )


def choose_steps(bench: Bench) -> None:
    """Chooses the number of steps, from the times of two batches generated and one verified."""
    few, many = 3, 9
    bench.generator(few).generate(jobs(bench.args.batch))
    seconds = [
        bench.timed(lambda n=n: bench.generator(n).generate(jobs(bench.args.batch)))
        for n in (few, many)
    ]
    seconds_to_verify(bench, 2)
    per_step, verify = (seconds[1] - seconds[0]) / (many - few), seconds_to_verify(bench, 2) / 2
    bench.steps = min(
        max(round((GENERATE_OVER_VERIFY * verify - seconds[0]) / max(per_step, 1e-9)) + few, 1), 200
    )
    print(
        f"a batch of {bench.args.batch}: {per_step * 1e3:.1f} ms a step and "
        f"{seconds[0] - few * per_step:.3f} s besides, verified in {verify:.3f} s; "
        f"{bench.steps} steps",
        flush=True,
    )


def overlap(bench: Bench, part: str) -> list[Row]:
    """Times generating and verifying alone, in turns, and overlapped."""
    bench.steps, count = 4, bench.args.batches
    bench.run(3, overlap=True)  # captures the verifier's CUDA graphs while the generator works
    choose_steps(bench)
    # The share of generating, without the time of the fake verifier.
    fake = bench.run(count, FakeVerifier())
    alone = {"draw": fake["seconds"] * fake["draw"], "judge": seconds_to_verify(bench, count)}
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
    """Peak memory of the first GPU, by phase."""

    def __init__(self, cuda: bool) -> None:
        self.cuda, self.allocated, self.taken = cuda, dict[str, float](), 0.0
        self.mark("")

    def mark(self, phase: str) -> None:
        """Ends a phase, and notes its peak."""
        if not self.cuda:
            self.allocated[phase] = 0.0
            return
        peak = torch.cuda.max_memory_allocated() / GIB
        self.allocated[phase] = max(self.allocated.get(phase, 0.0), peak)
        free, total = torch.cuda.mem_get_info()
        self.taken = max(self.taken, (total - free) / GIB)
        torch.cuda.reset_peak_memory_stats()

    @contextmanager
    def around(self, owner: Any, name: str, phase: str) -> Iterator[None]:
        """Counts a method as a phase of its own, and the time before it as drawing."""
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
    verifier = bench.verifier_of_long_replies()
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
            seconds = bench.timed(lambda work=work: check_images(work()))
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
    verifier = bench.verifier_of_long_replies()
    settings = {"steps": 6, "guidance": 4.5, "batch_size": bench.args.batch, **bench.size}
    generator = DiffusersGenerator(bench.pipe, **settings)
    peaks = Peaks(bench.cuda)
    full = mock.patch("tts_verifier.runner.devices.plan_placement", return_value="in turns")
    with tempfile.TemporaryDirectory() as folder, full:
        work = partial(run, PROMPTS[:1], generator, verifier, BestOfN(16), folder=folder)
        seconds = bench.timed(lambda: check_images(work()))
        session = read_header(Path(folder))["sessions"][-1]
    peaks.mark("in turns")
    row = {"part": "turns", "plan": session["plan"], "moves": session["moves"], "seconds": seconds}
    row |= {"moving_s": seconds - session["seconds"] * sum(session["busy"].values())}
    return [row | {f"{name}_gib": peak for name, peak in peaks.allocated.items() if name}]


# -- overhead --------------------------------------------------------------------------------


def overhead(bench: Bench) -> list[Row]:
    """Times the bare pipeline and best-of-1 of a wrapped one, in turns."""
    call = {"num_inference_steps": 2 if bench.args.dry else 20, "guidance_scale": 4.5, **bench.size}
    verified = wrap(bench.pipe, FakeVerifier(), strategy=BestOfN(1))
    bare, wrapped = [], []
    for seed in range(bench.args.runs + 1):
        generator = torch.Generator().manual_seed(seed)
        bare.append(bench.timed(lambda g=generator: bench.pipe(PROMPTS[0], generator=g, **call)))
        outs: list[Any] = []
        seconds = bench.timed(lambda s=seed, o=outs: o.append(verified(PROMPTS[0], seed=s, **call)))
        wrapped.append(seconds - sum(trial.cost.verify_seconds for trial in outs[0].trials))
    # The first run of each is a warm-up.
    bare_s, wrapped_s = (statistics.median(times[1:]) for times in (bare, wrapped))
    row = {"bare_s": bare_s, "wrapped_s": wrapped_s, "overhead_ms": 1e3 * (wrapped_s - bare_s)}
    share = wrapped_s / bare_s - 1
    return [{"part": "wrap", **row, "overhead_share": share, "runs": bench.args.runs}]


# -- all -------------------------------------------------------------------------------------


def as_tables(rows: list[Row]) -> str:
    """Returns each row as a table, with one figure a line."""
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
    parser.add_argument("--batch", type=int, default=8, help="candidates generated at a time")
    parser.add_argument("--batches", type=int, default=24, help="of every timed run")
    parser.add_argument("--tokens", type=int, default=256, help="of every reply")
    parser.add_argument("--runs", type=int, default=10, help="of `wrap`")
    parser.add_argument("--seconds", type=float, default=300, help="no part starts after this")
    parser.add_argument("--out", type=Path, help="a Parquet file")
    args = parser.parse_args()
    args.parts = args.parts.split(",")
    began = time.perf_counter()
    bench = Bench.from_args(args)
    bench.wait()
    passed = time.perf_counter() - began
    print(f"{environment()['device']}; models ready after {passed:.1f} s", flush=True)
    functions = dict(zip(PARTS, (two, one, overhead, fits, turns), strict=True))
    rows: list[Row] = []
    for part in args.parts:
        if (passed := time.perf_counter() - began) > args.seconds:
            print(f"{part} is left out: {passed:.0f} s have passed", flush=True)
            continue
        try:
            new_rows = functions[part](bench)
        except Exception as error:  # the other parts still run
            new_rows = [{"part": part, "error": f"{type(error).__name__}: {error}"[:2000]}]
        for row in new_rows:
            print(json.dumps(row), flush=True)
        rows += new_rows
        print(f"{part} ended after {time.perf_counter() - began:.1f} s", flush=True)
        if args.out:
            write(rows, args.out)
    print(as_tables(rows))


if __name__ == "__main__":
    main()
