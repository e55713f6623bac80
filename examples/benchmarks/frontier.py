"""Every strategy against best-of-n at equal cost, on held-out captions of the miniature world.

    python examples/benchmarks/frontier.py runs/frontier --captions 300
    python examples/benchmarks/frontier.py runs/frontier --captions 1000 --only pool,adaptive@8
    python examples/benchmarks/frontier.py runs/frontier --tables     # no model: what is there

A case is a strategy at a size whose cost is about 2, 4, 8, 16 or 32 drawings. A case `looks_…` is
the same strategy in two tiers: all images get quick scores, of which only the digits are
generated, and the best one gets a look, with reasons and heatmaps (`looks: 1` of a run). The case
`pool` draws many images for every caption; the best of every n follows from it exactly
(`analysis.expected_best`). `best_of_n@` draws from other seeds and should gain nothing over the
pool. A drawing's seconds are those of the largest `best_of_n@`, or else the pool's.

The judge and the oracle of the miniature world, which no strategy sees, read the choices. A case
is compared, caption by caption, with the best of n at the network evaluations that the case took
on average, and at its seconds; n is interpolated between whole numbers. A case in two tiers is
also compared with the same strategy in one, and its looks with the quick scores of their images.
Intervals are 95 % bootstraps over captions. A finished case is a Parquet file and is not run
again; an interrupted one continues from its log. Of repaints, the judge reads every parent and
child as well.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from frontier_tables import BUDGETS, LOOKS, Row, tables, write_rows

from tts_verifier import Verifier, shapes
from tts_verifier.generators.diffusers import DiffusersGenerator
from tts_verifier.registry import builder
from tts_verifier.runner import run
from tts_verifier.shapes.grammar import parse_caption
from tts_verifier.strategies.best_of_n import BestOfN
from tts_verifier.strategies.inpaint_reroll import accepted
from tts_verifier.types import Compare, Look, Prompt, Repaint, Rewrite, Trial

SEED = 5_000_011
ENOUGH = {"semantic_alignment": 0.99}
RUN_OPTIONS = ("looks", "ties", "near")
"""Keys of a recipe that are options of the run, not arguments of its strategy."""


def cases(pool: int) -> dict[str, Row]:
    """Returns recipes of strategies by case; the first is `pool`, with `pool` drawings."""
    recipes: dict[str, Row] = {"pool": {"name": "best_of_n", "n": pool}}
    for b in BUDGETS:
        reroll = {"name": "inpaint_reroll", "n": max(b // 4, 1)}
        adaptive = {
            "name": "adaptive",
            "strategy": {"name": "best_of_n", "n": 4 * b},
            "thresholds": ENOUGH,
        }
        halving = {
            "name": "successive_halving", "n": 2 * b, "keep": 0.2, "stops": [0.35, 1.0],
        }  # fmt: skip
        some, few = max(b // 4, 1), max(b // 8, 1)
        reflection = {"name": "reflection", "width": 2, "rewriter": {"name": "shapes"}}
        recipes |= {
            f"best_of_n@{b}": {"name": "best_of_n", "n": b},
            f"adaptive@{b}": adaptive | {"at_once": 1},
            f"adaptive_pairs@{b}": adaptive | {"at_once": 2},
            f"reroll@{b}": reroll | {"rounds": few * 2},
            f"reroll_enough@{b}": reroll | {"rounds": b, "enough": 0.94},
            f"halving@{b}": halving,
            f"beam@{b}": {"name": "seed_beam", "n": b, "keep": some},
            f"zero_order@{b}": {
                "name": "zero_order", "neighbours": min(b - 1, 4), "rounds": some,
            },
            f"paths@{b}": {"name": "search_over_paths", "n": b, "keep": some},
            f"fk@{b}": {"name": "fk_steering", "n": b},
            # Twice the particles, of which 0.6 go on at every stop: 0.92 of the cost of `fk`.
            f"fk_funnel@{b}": {"name": "fk_steering", "n": 2 * b, "keep": 0.6},
            f"fk_ramp@{b}": {"name": "fk_steering", "n": b, "ramp": 1.0},
            f"fk_both@{b}": {"name": "fk_steering", "n": 2 * b, "keep": 0.6, "ramp": 1.0},
            f"reflection@{b}": reflection | {"n": max(b // 2, 1), "rounds": some},
            f"reflection_enough@{b}": reflection | {"n": 1, "rounds": b, "enough": 0.94},
            # Drafts in 16 of the 40 evaluations; `some` of them are refined.
            f"drafts@{b}": {
                "name": "drafts", "n": max(round((b - some) / 0.4), 1), "keep": some, "pace": 0.4,
            },
            # In 14 of the 40 evaluations: the network is evaluated in 7 of the 20 steps.
            f"drafts_cached@{b}": {
                "name": "drafts", "n": max(round((b - some) / 0.35), 1), "keep": some,
                "pace": 0.4, "cached": True,
            },
            f"drafts_cached_half@{b}": {
                "name": "drafts", "n": max(2 * (b - some), 1), "keep": some,
                "pace": 0.5, "cached": True,
            },
            f"ties_best_of_n@{b}": {"name": "best_of_n", "n": b, "ties": 4, "near": 0.03},
            f"spectral@{b}": {
                "name": "spectral", "population": max(some * 2, 3), "rounds": 2, "shape": [8, 4, 4],
            },
        }  # fmt: skip
    two_tiers = ("best_of_n", "adaptive", "adaptive_pairs", "reroll_enough", "halving")
    chosen = {case: recipe for case, recipe in recipes.items() if case.split("@")[0] in two_tiers}
    return recipes | {f"{LOOKS}{case}": recipe | {"looks": 1} for case, recipe in chosen.items()}


# -- running -------------------------------------------------------------------------------


class Models:
    """The generator and two verifiers, loaded once.

    `without_maps` decodes no heatmaps, which only repaints and comparisons need.
    """

    def __init__(self, device: str, batch: int) -> None:
        self.generator = DiffusersGenerator("shapes", device=device, batch_size=batch)
        load = partial(Verifier.from_pretrained, "shapes", device=device, batch_size=batch)
        self.without_maps, self.with_maps = load(heatmaps=False), load()
        self.two_tiers = load(answer_template=True)

    def verifier(self, case: str) -> Verifier:
        """Returns the cheapest that serves the case."""
        if case.startswith(LOOKS):
            return self.two_tiers
        maps = "reroll" in case or "ties" in case
        return self.with_maps if maps else self.without_maps

    def warm_up(self) -> None:
        """Runs everything once, so that the first case does not pay for starting up."""
        for verifier in (self.without_maps, self.with_maps, self.two_tiers):
            looks = int(verifier is self.two_tiers)
            run(["a red circle"], self.generator, verifier, BestOfN(2), looks=looks)


def run_case(case: str, recipe: Row, prompts: Sequence[Prompt], models: Models, out: Path) -> None:
    """Runs a case and writes its rows."""
    start = time.perf_counter()
    arguments = {key: value for key, value in recipe.items() if key not in ("name", *RUN_OPTIONS)}
    options = {key: recipe[key] for key in RUN_OPTIONS if key in recipe}
    result = run(
        prompts,
        models.generator,
        models.verifier(case),
        builder("strategy", recipe["name"])(**arguments),
        folder=out / "runs" / case,
        seed=int("best_of_n" in case),
        **options,
    )
    wall = time.perf_counter() - start
    with ProcessPoolExecutor() as pool:
        if case == "pool":
            rows = list(pool_rows(result.trials, pool))
        else:
            chosen = {name: choice.trial for name, choice in result.choices.items()}
            rows = list(chosen_rows(result.trials, chosen, pool))
            if repairs := list(repair_rows(result.trials, pool)):
                write_rows(repairs, out / f"repairs-{case}.parquet")
            if looks := list(look_rows(result.trials)):
                write_rows(looks, out / f"details-{case}.parquet")
    about = {"recipe": json.dumps(recipe), "wall_seconds": wall, "device": device_name()}
    write_rows([{"case": case, **row, **about} for row in rows], out / f"{case}.parquet")
    print(f"{case}: {len(result.trials)} trials in {wall:.0f} s", flush=True)


def read_image(case: tuple[Any, str]) -> Row:
    """Reads (image, prompt): whether judge and oracle pass it, and the judge's score."""
    torch.set_num_threads(1)
    judge, oracle = shapes.judge(*case), shapes.oracle(*case)
    return {
        "judge": float(judge.passed),
        "oracle": float(oracle.passed),
        "judge_score": judge.score,
    }


NO_IMAGE = {"judge": 0.0, "oracle": 0.0, "judge_score": 0.0}


def readings(trials: Sequence[Trial | None], pool: ProcessPoolExecutor) -> list[Row]:
    """Reads images in parallel; a trial without one counts as failed."""
    with_image = [t for t in trials if t is not None and t.image is not None]
    requests = [(t.image.load(), t.prompt.text) for t in with_image if t.image is not None]
    by_id = dict(zip(map(id, with_image), pool.map(read_image, requests, chunksize=8), strict=True))
    return [by_id.get(id(t), NO_IMAGE) for t in trials]


def pool_rows(trials: Sequence[Trial], pool: ProcessPoolExecutor) -> Iterator[Row]:
    """Yields a row a drawing."""
    for trial, reading in zip(trials, readings(trials, pool), strict=True):
        yield {**costs([trial]), "objective": trial.objective, **about(trial.prompt), **reading}


def chosen_rows(
    trials: Sequence[Trial], chosen: Mapping[str, Trial | None], pool: ProcessPoolExecutor
) -> Iterator[Row]:
    """Yields a row a caption."""
    by_prompt: dict[str, list[Trial]] = {}
    for trial in trials:
        by_prompt.setdefault(trial.prompt.id, []).append(trial)
    names = [*by_prompt]
    choice_readings = readings([chosen[name] for name in names], pool)
    for name, reading in zip(names, choice_readings, strict=True):
        best = chosen[name]
        objective = float("nan") if best is None else best.objective
        yield {
            **costs(by_prompt[name]),
            "objective": objective,
            **about(by_prompt[name][0].prompt),
            **reading,
        }


def repair_rows(trials: Sequence[Trial], pool: ProcessPoolExecutor) -> Iterator[Row]:
    """Yields a row a repaint: the judge's reading of parent and child, and whether it was kept."""
    by_id = {t.id: t for t in trials}
    pairs = [
        (trial, trial.proposal)
        for trial in trials
        if isinstance(trial.proposal, Repaint) and trial.image is not None
    ]
    children, parents = [t for t, _ in pairs], [by_id[repaint.parent] for _, repaint in pairs]
    both = readings([*parents, *children], pool)
    before, after = both[: len(children)], both[len(children) :]
    for (child, proposal), parent, one, two in zip(pairs, parents, before, after, strict=True):
        yield {
            **about(child.prompt),
            "strength": proposal.strength,
            "area": float(proposal.mask.array().mean()),
            "accepted": accepted(child, parent, 0.0),
            "parent_judge": one["judge"],
            "parent_score": one["judge_score"],
            "child_judge": two["judge"],
            "child_score": two["judge_score"],
        }


def look_rows(trials: Sequence[Trial]) -> Iterator[Row]:
    """Yields a row a look: the objective and the alignment, quick and diagnosed."""
    by_id = {t.id: t for t in trials}
    for look in trials:
        if isinstance(look.proposal, Look) and not look.error:
            quick = by_id[look.proposal.parent]
            yield {
                "prompt": look.prompt.text,
                "quick": quick.objective,
                "diagnosed": look.objective,
                "quick_alignment": quick.scores["semantic_alignment"],
                "diagnosed_alignment": look.scores["semantic_alignment"],
                "quick_seconds": quick.cost.verify_seconds,
                "diagnosed_seconds": look.cost.verify_seconds,
            }


def about(prompt: Prompt) -> Row:
    """Returns the columns about a caption."""
    return {"prompt": prompt.text, "category": parse_caption(prompt.text).category}


def costs(trials: Sequence[Trial]) -> Row:
    """Sums the costs of trials; the columns keep their names, because old tables have them."""
    return {
        "evaluations": sum(t.cost.network_evaluations for t in trials),
        "verifier_calls": sum(t.cost.verifier_calls for t in trials),
        "vae_passes": sum(t.cost.vae_passes for t in trials),
        "draw_seconds": sum(t.cost.generate_seconds for t in trials),
        "judge_seconds": sum(t.cost.verify_seconds for t in trials),
        "rewrites": sum(isinstance(t.proposal, Rewrite) for t in trials),
        "rewrite_seconds": sum(
            t.cost.generate_seconds for t in trials if isinstance(t.proposal, Rewrite)
        ),
        "comparisons": sum(isinstance(t.proposal, Compare) for t in trials),
        "compare_seconds": sum(
            t.cost.verify_seconds for t in trials if isinstance(t.proposal, Compare)
        ),
    }


def device_name() -> str:
    """Names the device that the case runs on."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--captions", type=int, default=300)
    parser.add_argument("--only", help="cases, or strategies, by name; default all")
    parser.add_argument("--pool", type=int, default=32, help="drawings of a caption in the pool")
    parser.add_argument("--minutes", type=float, default=1e9, help="no case starts after this")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, help="candidates at a time; default by device")
    parser.add_argument("--tables", action="store_true")
    options = parser.parse_args()
    if not options.tables:
        start = time.monotonic()
        texts = shapes.captions(options.captions, SEED, split="held_out")
        prompts = [Prompt(f"{i:04}", text) for i, text in enumerate(texts)]
        models = Models(options.device, options.batch or (128 if options.device == "cuda" else 8))
        models.warm_up()
        wanted = options.only.split(",") if options.only else None
        for case, recipe in cases(options.pool).items():
            selected = wanted is None or case in wanted or case.split("@")[0] in wanted
            late = time.monotonic() - start > 60 * options.minutes
            if selected and not late and not (options.out / f"{case}.parquet").exists():
                run_case(case, recipe, prompts, models, options.out)
    tables(options.out)


if __name__ == "__main__":
    main()
