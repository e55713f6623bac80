"""Mutated recipes and overrides: a checked recipe with the stated values, or an error with a place.

A case is one recipe text with its overrides. Unless it is mutilated, its values are known: what the
loader returns must hold them. Parts without weights are built, too, and small runs on the fakes are
carried out. No text makes code run or takes longer than a second.
"""

from __future__ import annotations

import copy
import math
import random
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from faults.decoy import Decoy
from faults.harness import Result, WrongError, expect, of_kind
from tts_verifier.errors import RecipeError, TTSError
from tts_verifier.recipe import Recipe, load_recipe, recipe_folder
from tts_verifier.recipe import recipe as recipe_module
from tts_verifier.runner import execute

DEFAULT_CASES = 20_000
LIMIT = 20.0
SLOW = 1.0
"""Seconds of processor time, the least of three measurements."""
LIGHT = ("strategy", "objective", "budget")
"""Sections whose builders need no weights."""
_ODD_VALUES = (
    None, True, False, 0, -1, 1, 2, 10**9, 10**30, -(10**30), 0.0, -0.0, 0.5, 1.5, 1e308, 1e-320,
    math.inf, -math.inf, math.nan, "", " ", "x", "16", "1e3", "nan", "on", "é\u2028", "../x", "~/x",
    "\x1b[31m", "a" * 5000, [], [1], [None], ["a", 2], [0.1, 0.5, 1.0], [[1, 2]], {}, {"a": 1},
    {"name": "x"}, {"a": {"b": {}}}, "2020-01-01",
)  # fmt: skip
_TEXTS = (
    "!!python/object/apply:os.system ['touch {mark}']",
    "!!python/object/new:type ['x', [], {{}}]",
    "!!python/name:os.system",
    "!!python/module:os",
    "!!binary x", "!!set {{a, b}}", "!!omap [a: 1]", "!!timestamp x", "!!int ''", "!!float ''",
    "!!bool maybe", "!!null x", "!unknown 3", "&a [1]", "*a", "<<: *a", "? [1, 2]\n: 3",
    "2020-13-45",
    "2020-01-01 25:61:61", "0b", "0x", "0o9", "1__0", "190:20:30", "1:1:1:1:1:1.5", ".inf", ".NaN",
    "|\n  text", ">-\n  text", "'", '"', '"\\ud800"', '"\\x00"', "{{", "[", "}}", "]", "%YAML 9.9",
    "---", "...", "@", "`", "- - 1", "? ", ": ", "\t", "\x00", "\x85", "\u2028", "\ufeff", "\x07",
)  # fmt: skip


def prepare(home: Path) -> None:
    """Reads the packaged recipes once, and writes the decoy."""
    _shared["texts"] = [p.read_text("utf-8") for p in sorted(recipe_folder().glob("*.yaml"))]
    _shared["decoy"] = Decoy(home / "decoy")
    # Models' builders are imported for their signatures; no case should pay for that.
    for text in _shared["texts"]:
        with suppress(TTSError):
            _load(home, text)
    # Its file of prompts is read by some.
    (home / "prompts.txt").write_text("a red circle\na blue square\n")


_shared: dict[str, Any] = {}


def case(number: int, dice: random.Random, home: Path) -> Result:
    """Writes one recipe and reads it."""
    name = dice.choices(list(_KINDS), [weight for weight, _ in _KINDS.values()])[0]
    state, least = dice.getstate(), math.inf
    with of_kind(name):
        # A busy machine makes one measurement long, but hardly three.
        for _ in range(3):
            dice.setstate(state)
            began = time.thread_time()
            outcome, detail = _carry_out(name, dice, home)
            least = min(least, time.thread_time() - began)
            if least <= SLOW or least > 5 * SLOW:
                break
    if least > SLOW:
        return Result(name, "slow", f"{least:.1f} s; {detail}", seconds=least)
    return Result(name, outcome, detail, seconds=least)


def _carry_out(name: str, dice: random.Random, home: Path) -> tuple[str, str]:
    """Returns how a case ended, and the message if there is one."""
    try:
        _KINDS[name][1](dice, home)
    except TTSError as error:
        if isinstance(error, RecipeError):
            _check_message(str(error))
        return "refused", str(error)[:200]
    return "right", ""


def _check_message(message: str) -> None:
    """Raises WrongError unless a message names the place of the mistake."""
    place = "mine.yaml" in message or "override" in message.lower()
    expect(place, f"no place in: {message[:200]}")


def _load(home: Path, text: str, overrides: tuple[str, ...] = ()) -> Recipe:
    path = home / "mine.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    return load_recipe(path, overrides)


class _Dumper(yaml.SafeDumper):
    """Quotes the texts that recipes, but not YAML 1.1, read as numbers."""


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9.]+[eE][-+]?[0-9]+$"), list("-+.0123456789")
)


def dump(values: object, *, ascii_only: bool = True) -> str:
    """Returns the YAML text of plain values."""
    return yaml.dump(values, Dumper=_Dumper, allow_unicode=not ascii_only)


def _values(dice: random.Random) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(dice.choice(_shared["texts"]))
    return values


def _keys(values: Mapping[str, Any], path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for key, value in values.items():
        found.append((*path, key))
        if isinstance(value, dict):
            found += _keys(value, (*path, key))
    return found


def _set(values: dict[str, Any], path: tuple[str, ...], value: object) -> None:
    for key in path[:-1]:
        values = values[key]
    values[path[-1]] = value


def _check_same(recipe: Recipe, values: Mapping[str, Any]) -> None:
    """Raises WrongError where a recipe has another value than its text."""
    resolved = recipe.resolved()
    for path in _keys(values):
        if path[0] in ("output", "prompts"):
            continue
        stated: Any = values
        read: Any = resolved
        for key in path:
            stated, read = stated[key], read.get(key) if isinstance(read, dict) else None
        # A section or a value that is null may as well be absent.
        if stated is not None and repr(stated) != repr(read) and not isinstance(stated, dict):
            raise WrongError(f"{'.'.join(path)} is {stated!r}, read as {read!r}")


def _build_light(recipe: Recipe) -> None:
    for name in LIGHT:
        if name in recipe.sections:
            recipe.sections[name].build()


# -- kinds of cases -------------------------------------------------------------------------------


def _odd_value(dice: random.Random, home: Path) -> None:
    values = _values(dice)
    _set(values, dice.choice(_keys(values)), copy.deepcopy(dice.choice(_ODD_VALUES)))
    recipe = _load(home, dump(values, ascii_only=dice.random() < 0.5))
    _check_same(recipe, values)
    _build_light(recipe)


def _odd_argument(dice: random.Random, home: Path) -> None:
    """An argument of a part without weights, which the recipe need not have stated."""
    values, section = _values(dice), dice.choice(LIGHT)
    before = recipe_module.read_recipe(
        recipe_module.parse_document(dump(values), "mine.yaml"), folder=home, stem="x"
    )
    arguments = {
        "strategy": list(before.resolved()["strategy"]),
        "objective": ["weights"],
        "budget": ["network_evaluations", "seconds", "verifier_calls", "candidates", "images"],
    }[section]
    table = values.setdefault(section, {})
    value = dice.choice((*_ODD_VALUES, {"overall": dice.random()}, {"overall": math.nan}))
    if section == "objective" and dice.random() < 0.7:
        value = {dice.choice(("overall", "aesthetics", "", "x")): value}
    table[dice.choice(arguments)] = copy.deepcopy(value)
    recipe = _load(home, dump(values))
    _check_same(recipe, values)
    _build_light(recipe)


def _override(dice: random.Random, home: Path) -> None:
    values = _values(dice)
    path = dice.choice(_keys(values))
    if dice.random() < 0.3:
        path = (*path, dice.choice(("x", "", "n", "name", "é", "a b", "__class__")))
    shown = yaml.safe_dump(dice.choice(_ODD_VALUES), default_flow_style=True).strip()
    if dice.random() < 0.4:
        shown = dice.choice(_TEXTS).format(mark=_shared["decoy"].root / "mark")
    equals = dice.choice(("=", "=", "=", "==", "", ":", "= "))
    recipe = _load(home, dump(values), (f"{'.'.join(path)}{equals}{shown}",))
    _build_light(recipe)


def _misspelt(dice: random.Random, home: Path) -> None:
    values = _values(dice)
    *above, last = dice.choice([p for p in _keys(values) if "masks" not in p and len(p[-1]) > 2])
    place = dice.randrange(len(last))
    wrong = last[:place] + last[place + 1 :] if dice.random() < 0.5 else f"{last}s"
    table = values
    for key in above:
        table = table[key]
    table[wrong] = table.pop(last)
    # What a pipeline's call takes, and which scores a verifier gives, is known once it is loaded.
    free = above and above[-1] in ("weights", "enough", "thresholds", "call")
    try:
        _build_light(_load(home, dump(values)))
    except RecipeError as error:
        expect(wrong in str(error) or last in str(error), f"{wrong} is not named: {error}")
        raise
    expect(free, f"{'.'.join([*above, wrong])} was taken without a word")


def _mutilated(dice: random.Random, home: Path) -> None:
    text = list(dice.choice(_shared["texts"]))
    for _ in range(dice.randint(1, 6)):
        place = dice.randrange(len(text) + 1)
        action = dice.randrange(4)
        if action == 0:
            text[place:place] = dice.choice(_TEXTS).format(mark=_shared["decoy"].root / "mark")
        elif action == 1:
            del text[place : place + dice.choice((1, 5, 80))]
        elif action == 2:
            text[place:place] = text[dice.randrange(len(text) + 1) :][:80]
        else:
            text[place:place] = dice.choice("\t\n :-[]{}#&*!|>'\"%@`,?\x00\x1b\ud800é\u2028 ")
    _build_light(_load(home, "".join(text)))


def _tagged(dice: random.Random, home: Path) -> None:
    lines = dice.choice(_shared["texts"]).splitlines()
    places = [i for i, line in enumerate(lines) if ": " in line and not line.startswith("#")]
    place = dice.choice(places)
    value = dice.choice(_TEXTS).format(mark=_shared["decoy"].root / "mark")
    lines[place] = lines[place].partition(": ")[0] + ": " + value
    _build_light(_load(home, "\n".join(lines)))


def _exploding(dice: random.Random, home: Path) -> None:
    """Few letters that could become many values, or deep ones."""
    depth = dice.choice((30, 200, 2_000, 50_000))
    base = dice.choice(_shared["texts"])
    texts: tuple[Callable[[], str], ...] = (
        lambda: "[" * depth,
        lambda: "[" * depth + "]" * depth,
        lambda: "{a: " * depth + "1" + "}" * depth,
        lambda: "- " * depth + "1",
        lambda: "? " * depth,
        lambda: "\n".join(" " * i + "a:" for i in range(min(depth, 2_000))),
        lambda: "\n".join([f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 40)]),
        lambda: "a: &a\n  b: *a",
        lambda: "\n".join([f"a{i}: &a{i}\n  <<: [*a{i - 1}, *a{i - 1}]" for i in range(1, 40)]),
        lambda: "9" * depth,
        lambda: "1:" * depth + "1",
        lambda: "0x" + "f" * depth,
        lambda: "1e" + "9" * depth,
        lambda: "!" * depth,
        lambda: "&" * depth,
        lambda: "'" * depth,
        lambda: '"' + "\\" * depth,
        lambda: "#" * depth,
        lambda: "\n" * depth,
        lambda: "%TAG ! " * depth,
        lambda: "".join(f"k{i}: {i}\n" for i in range(min(depth, 5_000))),
    )
    text = dice.choice(texts)()
    where = dice.randrange(4)
    if where == 0:
        _load(home, text)
    elif where == 1:
        _load(home, base, (f"strategy.n={text}",))
    elif where == 2:
        _load(home, f"{base}\nobjective: {text}")
    else:
        _load(home, f"{base}\nx: {text}")


def _round_trip(dice: random.Random, home: Path) -> None:
    values = _values(dice)
    values["prompts"] = dice.choice(
        (
            ["é", "no", "1"],
            [{"prompt": "a: b", "id": "#1"}],
            "prompts.txt",
            ["- x", "\u2028y", "null"],
        )
    )
    first = _load(home, dump(values))
    try:
        # As `tts-run` prints it.
        again = _load(home, yaml.safe_dump(first.resolved(), allow_unicode=True))
    except RecipeError as error:
        raise WrongError(f"a resolved recipe cannot be read again: {error}") from error
    expect(first.prompts == again.prompts, f"prompts {again.prompts}")
    expect(first.resolved() == again.resolved(), "a resolved recipe is another one when read again")


def _small_run(dice: random.Random, home: Path) -> None:
    """A run on the fakes with values that users may well choose."""
    values = _values(dice)
    # Their sections name models' arguments; the strategy is the recipe's own.
    values |= {"generator": {"name": "fake"}, "verifier": {"name": "fake"}, "prompts": ["a", "b"]}
    values["judge"] = dice.choice(({"name": "fake"}, None))
    values["overlap"] = dice.choice((True, False))
    values["seed"] = dice.randrange(2**31)
    if dice.random() < 0.3:
        values["objective"] = {"weights": {dice.choice(("overall", "aesthetics", "overal")): 1.0}}
    strategy = values["strategy"]
    if "n" in strategy:
        strategy["n"] = dice.choice((1, 2, 4))
    if "rounds" in strategy:
        strategy["rounds"] = 2
    setup = (recipe := _load(home, dump(values))).build()
    results = execute(setup, recipe.prompts)
    misspelt = "overal" in values.get("objective", {}).get("weights", {})
    expect(not misspelt, "objective.weights.overal was ranked without a word")
    expect(len({t.id for t in results.trials}) == len(results.trials), "a trial twice")
    for name, choice in results.choices.items():
        expect(choice.trial is not None, f"nothing chosen for {name}")
        best = max(t.objective for t in choice.order if not math.isnan(t.objective))
        expect(choice.trial.objective == best, f"chosen {choice.trial.objective}, best {best}")


_KINDS: Mapping[str, tuple[float, Callable[[random.Random, Path], None]]] = {
    "odd value": (25, _odd_value),
    "odd argument": (20, _odd_argument),
    "override": (15, _override),
    "misspelt key": (10, _misspelt),
    "mutilated": (15, _mutilated),
    "tags and odd scalars": (8, _tagged),
    "exploding": (3, _exploding),
    "round trip": (3, _round_trip),
    "small run": (1, _small_run),
}
"""Kind -> how often, and what carries it out."""
