"""Prompts of a run: from strings, from a text file with one a line, from JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from tts_verifier.errors import InputError
from tts_verifier.types import Prompt


def as_prompts(items: Iterable[Prompt | str | Mapping[str, object]]) -> tuple[Prompt, ...]:
    """Returns prompts with ids: a string's is its place, "0000" on.

    Args:
        items: prompts, texts, or mappings with `prompt` (or `text`) and perhaps `id` and
            `category` (or `tag`), a word by which reports group prompts.

    Raises:
        InputError: no prompt, an empty one, or two with the same id or the same text (which
            would draw the same pictures).
    """
    if isinstance(items, (str, Mapping)):
        raise InputError(f"Prompts must be a list, got {items!r}. Put it into a list.")
    prompts = tuple(_prompt(i, item) for i, item in enumerate(items))
    if not prompts:
        raise InputError("A run needs at least one prompt, got none.")
    for field in ("id", "text"):
        seen: dict[str, int] = {}
        for i, prompt in enumerate(prompts):
            value = getattr(prompt, field)
            if value in seen:
                raise InputError(
                    f"Prompts {seen[value]} and {i} have the same {field}, {value[:60]!r}; each "
                    "must have its own."
                )
            seen[value] = i
    return prompts


def read_prompts(path: Path) -> tuple[Prompt, ...]:
    """Reads a .txt file (one prompt a line, blank lines skipped) or a .jsonl file.

    Raises:
        InputError: the file cannot be read, or a line is not a prompt.
    """
    if path.suffix not in (".txt", ".jsonl"):
        raise InputError(f"A file of prompts must be .txt or .jsonl, got {path}.")
    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The prompts {path} cannot be read: {error}") from error
    if path.suffix == ".txt":
        items: list[object] = [line for line in lines if line]
    else:
        items = [_parse(path, i, line) for i, line in enumerate(lines, 1) if line]
    try:
        return as_prompts(items)  # type: ignore[arg-type]
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _parse(path: Path, number: int, line: str) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}:{number} must be JSON: {error}.") from error


def _prompt(index: int, item: object) -> Prompt:
    name = f"{index:04d}"
    if isinstance(item, Prompt):
        prompt = item
    elif isinstance(item, Mapping):
        text = item.get("prompt", item.get("text"))
        given = item.get("id", name)
        if isinstance(given, bool) or not isinstance(given, (str, int)):
            raise InputError(f"Prompt {index} must have a string or a number as id: {given!r}.")
        category = item.get("category", item.get("tag", ""))
        if not isinstance(category, str):
            raise InputError(f"Prompt {index} must have a word as category, got {category!r}.")
        prompt = Prompt(str(given), text if isinstance(text, str) else "", category)
    else:
        prompt = Prompt(name, item if isinstance(item, str) else "")
    if not prompt.text.strip() or not prompt.id:
        raise InputError(
            f"Prompt {index} must be a text that is not empty, or have one as `prompt`: {item!r}."
        )
    try:
        (prompt.text + prompt.id + prompt.category).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"Prompt {index} must be valid Unicode: {error.reason}.") from error
    return prompt
