"""Scores a Parquet data set of pictures inside a Ray Data pipeline.

    pip install "ray[data]"
    python examples/score_with_ray_data.py "pictures/*.parquet" SCORES --verifier FOLDER

For those who have such a pipeline; `tts-score "pictures/*.parquet" --output SCORES` needs none. The
input has the columns `image` (bytes of a picture file), `prompt` and perhaps others, which the
output has too, beside the scores. An actor loads the verifier once and keeps it.

With `--checkpoint FOLDER` and a column of ids, a job that was killed continues. Ray commits what it
has written block by block: `--block` says how many pictures of each block under way are judged
again at most. Its other limits, beside `tts-score`: without ids a killed job starts anew; a picture
that is there twice is judged twice; the order of rows is not that of the input; and a picture that
was changed under the same id is not judged again.
"""

from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

COLUMNS = ("image", "prompt")


class Scorer:
    """Scores the rows of a batch; Ray makes one in each actor.

    Args:
        verifier: as `tts-score --verifier`.
        detail: "score" or "diagnose".
    """

    def __init__(self, verifier: str, detail: Any) -> None:
        # Imported here, because actors may run on machines other than the driver's.
        from tts_verifier.scoring import PairScorer
        from tts_verifier.verifiers.load import load_verifier

        self._scorer = PairScorer(load_verifier(verifier), detail)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Returns the columns of a batch without the pictures, and those of the scores."""
        pairs = map(_pair, batch["image"], batch["prompt"])
        pictures = [self._scorer.read(pair) for pair in pairs]
        rows = self._scorer.rows(pictures)
        # All blocks need the same columns, also one in which nothing could be scored.
        names = ["objective", *(self._scorer.verifier.score_names or ())]
        scores = {name: np.array([_number(row.get(name)) for row in rows]) for name in names}
        texts = {name: np.array([row.get(name, "") for row in rows]) for name in ("reply", "error")}
        return {k: v for k, v in batch.items() if k != "image"} | scores | texts


def _pair(image: Any, prompt: Any) -> Any:
    """Returns what is scored; with an error where a cell is null or empty."""
    from tts_verifier.scoring import Pair
    from tts_verifier.tables import as_cell

    if isinstance(image, dict):
        # As data sets of the Hugging Face hub have them.
        image = image.get("bytes")
    text = as_cell(prompt, "A prompt must be a text or a number") or ""
    error = "" if text.strip() else "The prompt must be a text that is not empty."
    error = error or ("" if image else "There is no picture.")
    return Pair("picture", text, error, partial(bytes, image or b""))


def _number(value: float | None) -> float:
    return np.nan if value is None else value


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {number}")
    return number


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures", help="a Parquet file, a folder or a glob")
    parser.add_argument("scores", help="a folder to write Parquet to")
    parser.add_argument("--verifier", default="shapes")
    parser.add_argument("--detail", choices=("score", "diagnose"), default="score")
    parser.add_argument(
        "--batch", type=_positive, default=256, help="pictures in a call of the verifier"
    )
    parser.add_argument("--block", type=_positive, default=1024, help="pictures in a block")
    parser.add_argument("--checkpoint", help="a folder that all machines see")
    parser.add_argument("--id", default="id", help="the column of ids, for checkpoints")
    parser.add_argument("--actors", type=_positive, default=1)
    parser.add_argument("--gpus", type=float, default=0, help="of an actor")
    parser.add_argument("--address", default="local", help="auto, or HOST:PORT: a running cluster")
    options = parser.parse_args()
    if not options.checkpoint and any(Path(options.scores).glob("*.parquet")):
        parser.error(f"{options.scores} has scores, to which Ray would add all again; name another")
    import ray
    from ray.data.checkpoint import CheckpointConfig

    # A checkpoint's filter and each actor keep a core, and with no core left Ray waits for ever.
    cores = max(os.cpu_count() or 1, options.actors + 3)
    ray.init(options.address, num_cpus=cores if options.address == "local" else None)
    if options.checkpoint:
        ray.data.DataContext.get_current().checkpoint_config = CheckpointConfig(
            id_column=options.id,
            checkpoint_path=str(Path(options.checkpoint).absolute()),
            delete_checkpoint_on_success=False,
        )
    data = ray.data.read_parquet(options.pictures)
    needed = [*COLUMNS, *([options.id] if options.checkpoint else [])]
    if missing := [name for name in needed if name not in data.schema().names]:
        parser.error(
            f"{options.pictures} must have the columns {needed}, {missing[0]!r} is not there"
        )
    data = data.repartition(target_num_rows_per_block=options.block)
    scored = data.map_batches(
        Scorer,
        fn_constructor_args=(options.verifier, options.detail),
        batch_size=options.batch,
        compute=ray.data.ActorPoolStrategy(size=options.actors),
        num_gpus=options.gpus,
    )
    scored.write_parquet(options.scores)


if __name__ == "__main__":
    main()
