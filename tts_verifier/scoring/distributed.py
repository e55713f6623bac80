"""Scores a collection with many processes: one hands out pictures and writes, the others judge.

An engine calls `score_chunk` in its workers. A chunk is as many pairs as a batch of a worker has.
Workers read pictures that are files; pictures inside of tables and shards travel with the chunk. A
worker that dies costs its chunk; the process that writes costs the chunks under way.
"""

from __future__ import annotations

import faulthandler
import os
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from tts_verifier.choice.objective import Objective
from tts_verifier.errors import RunError, readable_name
from tts_verifier.interfaces import Verifier
from tts_verifier.scoring.batches import batches, images_at_once, with_content
from tts_verifier.scoring.parts import Parts, open_parts
from tts_verifier.scoring.rows import ScoreRow
from tts_verifier.scoring.score import PairScorer
from tts_verifier.scoring.sources.pairs import Pair
from tts_verifier.scoring.thresholds import check_names
from tts_verifier.types import Detail, Setting, Verdict


@dataclass(frozen=True, slots=True)
class Chunk:
    """What a worker judges together. It pickles."""

    call: str
    """The id of the call of `score_with_workers`; a worker loads the verifier once for each."""
    load: Callable[[str], Verifier]
    """Loads a verifier by its name; a function at the top of a module."""
    verifier: str
    """The verifier's name."""
    detail: Detail
    """What to ask for."""
    pairs: Sequence[Pair]
    """From `batches.with_content`."""
    place: str = ""
    """The working folder to which paths are relative; "" = the worker's own."""
    timeout: int | None = None
    """Seconds for a batch after which the worker ends itself; loading is not limited."""

    def __str__(self) -> str:
        # For messages of engines.
        if not self.pairs:
            return f"loading the verifier {self.verifier}"
        first, last = readable_name(self.pairs[0].image), readable_name(self.pairs[-1].image)
        limit = "" if self.timeout is None else f", at most {self.timeout} s for a batch"
        return f"{len(self.pairs)} pictures, {first} to {last}{limit}"


@dataclass(frozen=True, slots=True)
class JudgedChunk:
    """What a worker returns. It pickles."""

    settings: Mapping[str, Setting]
    """The verifier's settings."""
    score_names: Collection[str] | None
    """The names of its scores."""
    objective: Objective | None
    """Its own objective, such as a recipe's; None = that of its class."""
    at_once: int
    """How many images its calls are best given."""
    keys: Sequence[tuple[str, str]]
    """Each pair's version and key."""
    rows: Mapping[str, ScoreRow]
    """By key."""


class _Elsewhere(Verifier):
    """Describes a verifier that only workers have."""

    def __init__(self, judged: JudgedChunk) -> None:
        self.settings, self.score_names = judged.settings, judged.score_names
        if judged.objective is not None:
            # What the rows of this objective are stamped with.
            self.objective = judged.objective

    def verify(self, *arguments: Any, **options: Any) -> list[Verdict]:
        raise NotImplementedError


Judge = Callable[[Iterable[Chunk]], Iterator[tuple[Chunk, JudgedChunk]]]
"""Yields chunks with what `score_chunk` returned for them, in any order; takes few ahead."""


def score_with_workers(
    folder: Path,
    judge: Judge,
    load: Callable[[str], Verifier],
    verifier: str,
    pairs: Iterable[Pair],
    *,
    detail: Detail = "diagnose",
    at_once: int | None = None,
    timeout: int | None = None,
    names: Collection[str] = (),
) -> Parts:
    """Scores pairs into a folder of parts, as `score_into_parts` does, by the workers of an engine.

    Unlike there, what only changed its place is judged again: no worker knows the folder's keys.

    Args:
        folder: made if its parent exists; `~` is the home folder.
        judge: has the workers judge.
        load: loads a verifier in a worker, once for each process.
        verifier: its name.
        pairs: taken one after the other.
        detail: what to ask for.
        at_once: pairs that a worker gets at a time; None = as many as its verifier's batches have.
        timeout: seconds for a batch after which a worker ends itself, as if it had died; None = no
            limit.
        names: of scores that the rows must have, or `objective`.

    Raises:
        InputError: the verifier gives no score of one of the names.
        RunError: as `score_into_parts`; or a worker has another verifier than the first one.
        Exception: whatever a worker raised.
    """
    # Only a worker knows the verifier's settings: this process loads no weights.
    order = Chunk(uuid.uuid4().hex, load, verifier, detail, (), os.getcwd(), timeout)
    ((_, about),) = judge([order])
    check_names(names, about.score_names)
    with open_parts(folder, PairScorer(_Elsewhere(about), detail, prompts=True)) as parts:
        missing = map(with_content, parts.missing(pairs))
        size = at_once or about.at_once
        chunks = iter(lambda: list(islice(missing, size)), [])
        for chunk, judged in judge(replace(order, pairs=chunk) for chunk in chunks):
            _check_same(judged, about)
            keyed = [
                (replace(pair, version=version), key)
                for pair, (version, key) in zip(chunk.pairs, judged.keys, strict=True)
            ]
            parts.write(keyed, judged.rows)
    return parts


def _check_same(judged: JudgedChunk, about: JudgedChunk) -> None:
    mine, first = dict(judged.settings), dict(about.settings)
    if judged.objective is not None or about.objective is not None:
        mine["objective"], first["objective"] = repr(judged.objective), repr(about.objective)
    if mine != first:
        differ = sorted(k for k in {*mine, *first} if mine.get(k) != first.get(k))
        raise RunError(
            f"All workers must have the same verifier, and they differ in {', '.join(differ)}. "
            "Give them the same files and packages, and the same command again."
        )


def score_chunk(chunk: Chunk) -> JudgedChunk:
    """Judges a chunk in a worker, in as many calls as memory asks for.

    Raises:
        RunError: the verifier ends its process, which an engine would take for its own end.
    """
    # The workers of a cluster were started elsewhere.
    here = chdir(chunk.place) if os.access(chunk.place, os.X_OK) else nullcontext()
    try:
        with here:
            return _judged(chunk)
    except (SystemExit, KeyboardInterrupt) as error:
        raise RunError(
            f"A verifier must not end its process, and {chunk.verifier} did: {error!r}. Mend it; "
            "the same command goes on from there."
        ) from error


def _judged(chunk: Chunk) -> JudgedChunk:
    scorer = _scorer(chunk.call, chunk.load, chunk.verifier, chunk.detail)
    keys: list[tuple[str, str]] = []
    rows: dict[str, ScoreRow] = {}
    with _limited(chunk.timeout) as restart:
        for batch in batches(chunk.pairs, scorer.read, scorer.verifier):
            keys += [(picture.pair.version, picture.key) for picture in batch]
            rows |= scorer.rows_by_key(picture for picture in batch if picture.key not in rows)
            restart()
    verifier = scorer.verifier
    at_once, _ = images_at_once(verifier)
    own = vars(verifier).get("objective")
    return JudgedChunk(dict(verifier.settings), verifier.score_names, own, at_once, keys, rows)


@contextmanager
def _limited(seconds: int | None) -> Iterator[Callable[[], None]]:
    """Ends this process when a block takes too long; yields what starts the time anew."""

    def restart() -> None:
        # It prints where every thread is, and works also where Python itself is stuck.
        if seconds is not None:
            faulthandler.dump_traceback_later(seconds, exit=True)

    restart()
    try:
        yield restart
    finally:
        if seconds is not None:
            faulthandler.cancel_dump_traceback_later()


# A worker of a cluster outlives the call: a recipe or weights of the same name may be others by
# then, and the earlier verifier must not keep its memory.
@lru_cache(1)
def _scorer(
    call: str, load: Callable[[str], Verifier], verifier: str, detail: Detail
) -> PairScorer:
    return PairScorer(load(verifier), detail, prompts=True)
