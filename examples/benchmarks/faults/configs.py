"""Damaged and hostile checkpoint folders: a config with the stated sizes, or an error by name.

A case changes the config.json of a checkpoint, in one of its two forms, in one to three places, or
another of its JSON files, or the header of its weights. The config is read; one folder in ten of a
tiny checkpoint is loaded. Reading takes less than a second, whatever the sizes are, no file outside
the folder is read as weights, and nothing of the folder runs as code.
"""

from __future__ import annotations

import copy
import json
import math
import pickle
import random
import shutil
import struct
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from faults.decoy import Decoy
from faults.harness import Result, expect, of_kind
from tts_verifier.errors import CheckpointError, TTSError
from tts_verifier.verifiers.imagedoctor.config import ImageDoctorConfig

DEFAULT_CASES = 15_000
LIMIT = 30.0
MEMORY = 16 * 2**30
SLOW = 1.0
"""Seconds of processor time."""
_ODD = (
    None, True, False, 0, -1, 1, 3, 7, 10**7, 10**12, 10**30, -(10**30), 0.5, 2.0, 1e308, math.inf,
    math.nan, "", "x", "16", "silu", [], [1], [[]], [None], ["a", "b"], {}, {"a": 1}, [10**9] * 3,
    "../../x", "a" * 10_000, {"rope_type": []}, {"mrope_section": "abc"}, {"mrope_section": [1, 2]},
    {"mrope_section": [16, 24, 24], "rope_theta": "x"}, [16, 24, 24], list(range(9)), "\u2028",
)  # fmt: skip
_TEXTS = (
    "", "null", "[]", "1", "{", "[" * 100_000, '{"a":' * 100_000, '{"model_type": ', "NaN",
    "\ufeff{}", '{"hidden_size": 1e999}', '{"hidden_size": ' + "9" * 5000 + "}", "{}",
    '{"a": "\\ud800"}', "\x00",
    '{"auto_map": {"AutoModel": "evil.Evil"}, "trust_remote_code": true}',
)  # fmt: skip
_MORE = (
    "text_config", "vision_config", "rope_scaling", "heatmap_config", "tie_word_embeddings",
    "num_hidden_layers", "eos_token_id", "use_sliding_window", "heatmap_weight",
)  # fmt: skip
"""Keys that the tiny config need not have."""

_shared: dict[str, Any] = {}


def prepare(home: Path) -> None:
    """Makes a tiny checkpoint once, and imports what loading needs."""
    import importlib.util

    path = Path(__file__).parents[2] / "make_checkpoint.py"
    spec = importlib.util.spec_from_file_location("make_checkpoint", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = home / "checkpoint"
    shutil.rmtree(folder, ignore_errors=True)
    module.make(folder)
    _shared["folder"] = folder
    _shared["config"] = json.loads((folder / "config.json").read_text())
    _shared["decoy"] = Decoy(home / "decoy")
    from tts_verifier.verifiers.imagedoctor.checkpoint.loading import load_checkpoint

    _shared["load"] = load_checkpoint
    load_checkpoint(folder, device="cpu")


def case(number: int, dice: random.Random, home: Path) -> Result:
    """Damages one checkpoint and reads it."""
    load = number % 10 == 0
    name = dice.choice(list(_KINDS if load else {k: _KINDS[k] for k in _READ_ONLY}))
    folder = home / "case"
    shutil.rmtree(folder, ignore_errors=True)
    if load:
        shutil.copytree(_shared["folder"], folder)
    else:
        folder.mkdir()
    with of_kind(f"{name}, loaded" if load else name):
        stated = _KINDS[name](folder, dice)
        began = time.thread_time()
        outcome, detail = "right", ""
        try:
            if load:
                checkpoint = _shared["load"](folder, device="cpu")
                config = checkpoint.model.config
            else:
                config = ImageDoctorConfig.from_folder(folder)
                expect(config.layers > 0 and config.merged_patch_size > 0, "sizes of nothing")
                expect(all(isinstance(i, int) for i in config.eos_token_ids), "odd end tokens")
            if stated is not None:
                _check_stated(stated, config)
        except TTSError as error:
            expect(isinstance(error, CheckpointError), f"{type(error).__name__}: {error}"[:200])
            outcome, detail = "refused", str(error)[:200]
        seconds = time.thread_time() - began
        if seconds > SLOW:
            outcome, detail = "slow", f"{seconds:.1f} s; {detail}"
    return Result(f"{name}, loaded" if load else name, outcome, detail, seconds=seconds)


def _check_stated(stated: Mapping[str, Any], config: ImageDoctorConfig) -> None:
    """Raises WrongError where a config that was taken has other sizes than its file."""
    source = {**stated, **(stated.get("text_config") or {})}
    for name in ("hidden_size", "num_hidden_layers", "vocab_size", "num_attention_heads"):
        if name in source:
            same = type(source[name]) is int and config.text[name] == source[name]
            expect(same, f"{name} is {source[name]!r}, read as {config.text[name]!r}"[:200])


# -- kinds of damage ------------------------------------------------------------------------------


def _places(table: Mapping[str, Any], path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for key, value in table.items():
        found.append((*path, key))
        if isinstance(value, dict):
            found += _places(value, (*path, key))
    return found


def _odd_values(folder: Path, dice: random.Random) -> Mapping[str, Any]:
    config = copy.deepcopy(_shared["config"])
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        path = dice.choice([*_places(config), *((name,) for name in _MORE)])
        table: Any = config
        for key in path[:-1]:
            table = table.get(key) if isinstance(table, dict) else None
        if isinstance(table, dict):
            table[path[-1]] = copy.deepcopy(dice.choice(_ODD))
    (folder / "config.json").write_text(json.dumps(config))
    return config


def _large(folder: Path, dice: random.Random) -> Mapping[str, Any]:
    """Sizes that are numbers, and that no memory holds."""
    config = copy.deepcopy(_shared["config"])
    places = [p for p in _places(config) if _is_size(config, p)]
    for path in dice.sample(places, dice.randint(1, 3)):
        table = config
        for key in path[:-1]:
            table = table[key]
        factor = dice.choice((2, 1000, 10**6, 10**9))
        table[path[-1]] = table[path[-1]] * factor
    (folder / "config.json").write_text(json.dumps(config))
    return config


def _is_size(config: Mapping[str, Any], path: tuple[str, ...]) -> bool:
    value: Any = config
    for key in path:
        value = value[key]
    return type(value) is int and value > 0 and not path[-1].endswith("_id")


def _odd_text(folder: Path, dice: random.Random) -> None:
    text = dice.choice(_TEXTS)
    if dice.random() < 0.3:
        whole = json.dumps(_shared["config"])
        text = whole[: dice.randrange(len(whole))]
    (folder / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))


def _other_file(folder: Path, dice: random.Random) -> None:
    names = ("generation_config.json", "preprocessor_config.json", "tokenizer.json",
             "tokenizer_config.json", "model.safetensors.index.json")  # fmt: skip
    path = folder / dice.choice(names)
    table = json.loads(path.read_text()) if path.exists() else {}
    if dice.random() < 0.4 or not table:
        path.write_text(dice.choice(_TEXTS))
        return
    table[dice.choice(list(table))] = dice.choice(_ODD)
    path.write_text(json.dumps(table))


def _weight_map(folder: Path, dice: random.Random) -> None:
    outside = ("../../decoy/letter.txt", str(_shared["decoy"].root / "letter.txt"), "/dev/zero")
    inside = ("config.json", ".", "", "a\0b", 3, None, [], "x.bin", "x.py", "../x.safetensors")
    files = (*outside, *inside)
    table = {f"name{i}": dice.choice(files) for i in range(dice.randint(1, 3))}
    weight_map = dice.choice((table, table, table, [], 3, None, "x", {"a": {}}))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    if dice.random() < 0.7:
        for path in folder.glob("*.safetensors"):
            path.unlink()


def _weights(folder: Path, dice: random.Random) -> None:
    for path in folder.glob("*.safetensors"):
        content = bytearray(path.read_bytes())
        action = dice.randrange(5)
        if action == 0:
            del content[dice.randrange(len(content)) :]
        elif action == 1:
            content[:8] = struct.pack("<Q", dice.choice((0, 1, 10**12, 2**64 - 1)))
        elif action == 2:
            place = dice.randrange(8, 600)
            content[place] ^= 1 << dice.randrange(8)
        elif action == 3:
            content[8:12] = b"[[[["
        else:
            header = dice.choice(_TEXTS).encode("utf-8", "surrogatepass")
            content = bytearray(struct.pack("<Q", len(header)) + header)
        path.write_bytes(content)


class _Evil:
    """Unpickled, it touches a file."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (_shared["decoy"].root / "unpickled",)


def _pickles(folder: Path, dice: random.Random) -> None:
    """Weights that are pickles, and Python files, in the place of safetensors or beside them."""
    if dice.random() < 0.7:
        for path in folder.glob("*.safetensors"):
            path.unlink()
    name = dice.choice(("pytorch_model.bin", "model.pt", "model.safetensors", "tokenizer.pkl"))
    (folder / name).write_bytes(pickle.dumps(_Evil()))
    (folder / "modeling_evil.py").write_text(f"open({str(_shared['decoy'].root / 'ran')!r}, 'w')")
    config = {**_shared["config"], "auto_map": {"AutoModel": "modeling_evil.Evil"}}
    (folder / "config.json").write_text(json.dumps(config))


_READ_ONLY = ("odd values", "too large", "odd text")
_KINDS: Mapping[str, Callable[[Path, random.Random], Mapping[str, Any] | None]] = {
    "odd values": _odd_values,
    "too large": _large,
    "odd text": _odd_text,
    "another file": _other_file,
    "weight map": _weight_map,
    "weights": _weights,
    "pickles and code": _pickles,
}
"""Kind -> what damages a folder and returns the config that it has, if that is known."""
