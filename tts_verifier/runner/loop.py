"""The loop over prompts, rounds and batches; nobody else has it.

A prompt is asked for proposals when its own last ones are judged and a batch is not full yet,
so that batches fill from whatever prompts are open and no slow prompt holds the others. Those
under way come before new ones, and of the new ones those of which the log has least, so that
few are open at a time and a continued run draws at once. A strategy sees whole rounds only, in
the order of its proposals: what is in the log is served from there, and the search goes on as
if it had never stopped.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypedDict, Unpack

from tts_verifier.choice.objective import Objective
from tts_verifier.interfaces import Generator, Strategy, Verifier
from tts_verifier.log import RunLog, open_log
from tts_verifier.runner.batch import Drawn, draw, judge
from tts_verifier.runner.devices import HELD, Seats
from tts_verifier.runner.jobs import bind, share_of, within
from tts_verifier.runner.progress import Progress, shown_as
from tts_verifier.runner.prompts import as_prompts
from tts_verifier.runner.result import Ended, RunResult
from tts_verifier.runner.setup import Search
from tts_verifier.types import (
    KINDS,
    Budget,
    Cost,
    Detail,
    Draw,
    Job,
    Look,
    Prompt,
    Sample,
    Task,
    Trial,
    kind_of,
)

_AHEAD: Final = 2
"""Batches drawn but not judged, at most, where the two overlap."""


class Options(TypedDict, total=False):
    """What a run may be told besides its parts; every key may be absent.

    `objective`, `judge`, `seed`, `budget`, `detail`, `overlap`: see `Search`. `folder`: where
    to write the log, and what to continue; None = nowhere. `progress`: show how it goes.
    """

    objective: Objective
    judge: Verifier | None
    seed: int
    budget: Budget
    detail: Detail
    folder: str | Path | None
    progress: bool
    overlap: bool | None


def run(
    prompts: Iterable[Prompt | str],
    generator: Generator,
    verifier: Verifier,
    strategy: Strategy,
    **options: Unpack[Options],
) -> RunResult:
    """Searches for a good picture for every prompt; `Options` says what else can be set.

    Raises:
        InputError: a prompt or a limit is not usable, or the strategy proposed nonsense.
        UnsupportedError: the generator cannot draw what the strategy needs.
        RunError: the folder belongs to another run, or cannot be written.
    """
    folder, progress = options.pop("folder", None), options.pop("progress", False)
    search = Search(generator, verifier, strategy, **options)  # type: ignore[misc]
    shown = shown_as("auto") if progress else None
    return execute(search, as_prompts(prompts), folder=folder, progress=shown)


def execute(
    search: Search,
    prompts: Sequence[Prompt],
    *,
    folder: str | Path | None = None,
    progress: Progress | None = None,
    recipe: Mapping[str, Any] | None = None,
) -> RunResult:
    """Runs a search to its end, continuing what the folder holds.

    Args:
        search: the parts.
        prompts: from `as_prompts`.
        folder: the run folder; None = no log.
        progress: what shows how it goes; None = nothing.
        recipe: JSON values for the header, which tell this run from others.
    """
    search.check()
    path = None if folder is None else Path(folder).absolute()
    with ExitStack() as stack:
        log = None
        if path is not None:
            about = {"recipe": recipe, **search.about(prompts)}
            grows = getattr(search.strategy, "grows", ())
            log = stack.enter_context(open_log(path, about, search.generator.settings, grows=grows))
        bar = stack.enter_context(progress or Progress())
        loop = _Loop(search, prompts, log=log, bar=bar)
        # What had to leave its device is back when the run ends, however it ends.
        stack.callback(loop.seats.restore)
        began = time.perf_counter()
        loop.run()
        wall = max(time.perf_counter() - began, 1e-9)
        busy = {name: seconds / wall for name, seconds in loop.spent.items()}
        ended = [loop.ended[prompt.id] for prompt in prompts]
        if log is not None:
            bar.phase("finish")
            chosen = {one.chosen for one in ended if one.chosen}
            # A process that found everything judged has nothing to tell.
            told = {"seconds": wall, "busy": busy, **loop.placed()}
            log.finish(chosen, told if any(busy.values()) else None)
    return RunResult(ended, path, busy)


@dataclass(eq=False)
class _Open:
    """Where the search for one prompt stands; `history` holds whole rounds only.

    `known`: what the log had of it at the start, by id.
    `promised`: shares of a drawing that were handed out and are not judged yet, by id.
    `over`: nothing of the last round fitted into the budget.
    """

    prompt: Prompt
    known: Mapping[str, Callable[[Job], Trial | None]]
    history: list[Trial] = field(default_factory=list)
    round: dict[str, Job] = field(default_factory=dict)
    judged: dict[str, Trial] = field(default_factory=dict)
    waiting: set[str] = field(default_factory=set)
    promised: dict[str, float] = field(default_factory=dict)
    over: bool = False
    rounds: int = 0
    candidates: int = 0
    cost: Cost = field(default_factory=Cost)

    def add(self, trial: Trial) -> None:
        """Takes a judged trial of the open round."""
        self.judged[trial.id] = trial
        self.candidates += not isinstance(trial.proposal, Look)
        self.cost += trial.cost

    def close_round(self) -> None:
        """Moves the judged trials of the round to the history."""
        self.history += [self.judged[i] for i in self.round if i in self.judged]
        self.over = bool(self.round) and not self.judged
        self.round, self.judged = {}, {}


class _Loop:
    """Asks, serves and notes, until no prompt has anything left to do."""

    def __init__(
        self, search: Search, prompts: Sequence[Prompt], *, log: RunLog | None, bar: Progress
    ) -> None:
        self.search, self.log, self.bar = search, log, bar
        known = Counter[str]() if log is None else log.found.rows()
        self._new = deque(sorted(prompts, key=lambda prompt: known[prompt.id]))
        self._idle = deque[_Open]()
        self.ended: dict[str, Ended] = {}
        """By prompt id."""
        bar.begin(len(prompts), known.total())
        self.spent = {"draw": 0.0, "judge": 0.0}
        self.seats = Seats(search)
        self._judging: deque[Future[list[Trial]]] = deque()
        self._held: list[tuple[Drawn, Mapping[str, int]]] = []
        """What was drawn while the verifier had to be elsewhere."""
        self._owner: dict[str, _Open] = {}
        self._whole: float | None = None
        """Network evaluations of a whole drawing; None until the first one tells."""
        self._queues: dict[str, dict[str, Job]] = {kind: {} for kind in KINDS}

    def run(self) -> None:
        with ThreadPoolExecutor(1, "judge") as thread:
            while True:
                self._fill()
                batch = self._next_batch()
                if batch:
                    self._serve(batch, thread)
                elif not (self._pending or self._asks or any(self._queues.values())):
                    return
                self._collect(wait=not batch)

    def placed(self) -> dict[str, Any]:
        """Returns how the parts shared their devices, for the header."""
        seats = self.seats
        return {
            "plan": seats.plan,
            "devices": seats.devices,
            "overlap": seats.overlap,
            "moves": seats.moves,
        }

    @property
    def _pending(self) -> bool:
        return bool(self._judging or self._held)

    @property
    def _asks(self) -> bool:
        return bool(self._idle or self._new)

    @property
    def _holds(self) -> int:
        return sum(len(drawn) for drawn, _ in self._held)

    def _fill(self) -> None:
        """Asks prompts until a whole batch of a kind is waiting."""
        whole = self.search.generator.batch_size
        while self._asks and max(map(len, self._queues.values())) < whole:
            prompt = self._idle.popleft() if self._idle else self._opened(self._new.popleft())
            while not prompt.waiting and self._ask(prompt):
                pass

    def _opened(self, prompt: Prompt) -> _Open:
        return _Open(prompt, {} if self.log is None else self.log.found.of(prompt.id))

    def _left(self, prompt: _Open) -> Budget:
        return self.search.budget.left(prompt.candidates, prompt.cost)

    def _ask(self, prompt: _Open) -> bool:
        """Closes the last round and opens the next; False when the search is over."""
        prompt.close_round()
        prompt.round = self._proposed(prompt)
        if not prompt.round:
            self._end(prompt)
            return False
        self.bar.expect(len(prompt.round), new=not prompt.rounds)
        known: list[Trial] = []
        for name, job in prompt.round.items():
            trial = prompt.known[name](job) if name in prompt.known else None
            if trial is not None:
                self._learn(job, trial)
                prompt.add(trial)
                known.append(trial)
            else:
                prompt.waiting.add(name)
                self._owner[name] = prompt
                self._queues[kind_of(job.proposal)][name] = job
        self.bar.done(known, known=True)
        prompt.rounds += 1
        return True

    def _end(self, prompt: _Open) -> None:
        logged = self.log is not None
        if self.log is not None:
            self.log.forget_states(prompt.history)
        name, history = prompt.prompt.id, prompt.history
        self.ended[name] = Ended.of(prompt.prompt, history, logged=logged)

    def _proposed(self, prompt: _Open) -> dict[str, Job]:
        left, search = self._left(prompt), self.search
        if left.spent or prompt.over:
            return {}
        supports = frozenset(search.generator.supports | {Look})
        task = Task(prompt.prompt, search.seed, supports, left, search.objective)
        history = tuple(prompt.history)
        jobs = bind(
            search.strategy.propose(task, history),
            task,
            history=history,
            settings=search.generator.settings,
            strategy=type(search.strategy).__name__,
        )
        return within(jobs, left)

    def _next_batch(self) -> dict[str, Job]:
        """Takes jobs of one kind, that of which most are waiting, across prompts."""
        batch: dict[str, Job] = {}
        queue = max(self._queues.values(), key=len)
        for name in list(queue):
            if len(batch) == self.search.generator.batch_size:
                break
            owner, share = self._owner[name], share_of(queue[name])
            fits = self._fits(owner, share)
            if fits:
                batch[name] = queue.pop(name)
                owner.promised[name] = share
            elif fits is not None:
                del queue[name]
                self._settle(owner, name)
        return batch

    def _fits(self, owner: _Open, share: float) -> bool | None:
        """Says whether the budget left has room for a share of a drawing; None = not known yet.

        Where evaluations are limited, a prompt's first drawing goes alone until one was drawn.
        """
        left = self._left(owner)
        if left.spent:
            return False
        if left.network_evaluations is None:
            return True
        if self._whole is None:
            return None if owner.promised else True
        asked = share + sum(owner.promised.values())
        # Sums of floats are not exact: 0.3 + 0.7 is to be one drawing.
        return asked * self._whole <= left.network_evaluations + 1e-6

    def _learn(self, job: Job, trial: Trial) -> None:
        """Takes from a trial how many network evaluations a whole drawing has."""
        spent = trial.cost.network_evaluations
        share = trial.progress if isinstance(job.proposal, Draw) else share_of(job)
        if share > 0 and (spent or not trial.error):
            self._whole = max(self._whole or 0.0, spent / share)

    def _serve(self, batch: Mapping[str, Job], thread: ThreadPoolExecutor) -> None:
        kind = kind_of(next(iter(batch.values())).proposal)
        self.bar.phase(kind)
        waiting: Mapping[str, Sample] = {}
        if self.log is not None:
            # What was drawn and judged is on the disk before more is: a kill costs one batch.
            self.log.flush()
            waiting = self.log.waiting(batch)
        if kind != "look" and len(waiting) < len(batch):
            self.seats.to_draw()
        drawn = draw(self.search, batch, waiting)
        if self.log is not None:
            self.log.drawn(drawn.samples, noted=self.seats.waits)
        rounds = {name: self._owner[name].rounds - 1 for name in batch}
        if self.seats.overlap:
            self.seats.to_judge()
            self._judging.append(thread.submit(self._judged, drawn, rounds))
        else:
            self._held.append((drawn, rounds))

    def _judged(self, drawn: Drawn, rounds: Mapping[str, int]) -> list[Trial]:
        """Judges and logs a batch; where that overlaps drawing, in the thread that judges."""
        trials = [replace(t, round=rounds[t.id]) for t in judge(self.search, drawn)]
        if self.log is None:
            return trials
        return self.log.append(trials, wait=self.seats.waits)

    def _collect(self, wait: bool) -> None:
        """Notes what was judged meanwhile; waits for a batch if told to, or if many are open."""
        if wait or self.seats.plan != "in turns" or self._holds >= HELD:
            self._judge_held()
        wait = wait or len(self._judging) > _AHEAD
        while self._judging and (wait or self._judging[0].done()):
            self._note(self._judging.popleft().result())
            wait = False

    def _judge_held(self) -> None:
        while self._held:
            self.seats.to_judge()
            self._note(self._judged(*self._held.pop(0)))

    def _note(self, trials: list[Trial]) -> None:
        self.spent["draw"] += sum(trial.cost.draw_seconds for trial in trials)
        self.spent["judge"] += sum(trial.cost.judge_seconds for trial in trials)
        for trial in trials:
            owner = self._owner[trial.id]
            self._learn(owner.round[trial.id], trial)
            owner.add(trial)
            self._settle(owner, trial.id)
        self.bar.done(trials)

    def _settle(self, owner: _Open, name: str) -> None:
        owner.waiting.discard(name)
        owner.promised.pop(name, None)
        del self._owner[name]
        if not owner.waiting:
            self._idle.appendleft(owner)
