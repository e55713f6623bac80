"""Reads the prompts of a run from strings, mappings, a text file or a file of JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from tts_verifier.errors import InputError
from tts_verifier.images import as_list
from tts_verifier.types import Prompt


def as_prompts(items: Iterable[Prompt | str | Mapping[str, object]]) -> tuple[Prompt, ...]:
    """Returns prompts with ids. A prompt without an id gets its position: "0000", "0001", ...

    Args:
        items: prompts, texts, or mappings with `prompt` (or `text`) and perhaps `id` and
            `category` (or `tag`), a word by which reports group prompts.

    Raises:
        InputError: there is no prompt, one is empty, or two have the same id or the same text
            (and would give the same images).
    """
    prompts = tuple(_as_prompt(i, item) for i, item in enumerate(as_list(items, "prompts")))
    if not prompts:
        raise InputError("A run needs at least one prompt, got none.")
    for field in ("id", "text"):
        positions: dict[str, int] = {}
        for i, prompt in enumerate(prompts):
            value = getattr(prompt, field)
            if value in positions:
                raise InputError(
                    f"Prompts {positions[value]} and {i} have the same {field}, {value[:60]!r}; "
                    "each must have its own."
                )
            positions[value] = i
    return prompts


def read_prompts(path: Path) -> tuple[Prompt, ...]:
    """Reads a .txt file (one prompt a line, blank lines skipped) or a .jsonl file.

    Raises:
        InputError: the file cannot be read, or a line is not a prompt.
    """
    if path.suffix not in (".txt", ".jsonl"):
        raise InputError(f"A file of prompts must be .txt or .jsonl, got {path}.")
    try:
        # Editors on Windows write a byte order mark, which "utf-8-sig" drops.
        content = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The prompts {path} cannot be read: {error}") from error
    if path.suffix == ".txt":
        items: list[object] = [line.strip() for line in content.splitlines() if line.strip()]
    else:
        # Not `splitlines`: a JSON string may hold U+2028 and other separators as they are.
        lines = enumerate(content.split("\n"), 1)
        items = [_parse_json_line(path, i, line) for i, line in lines if line.strip()]
    try:
        return as_prompts(items)  # type: ignore[arg-type]
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _parse_json_line(path: Path, number: int, line: str) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}:{number} must be JSON: {error}.") from error


def _as_prompt(index: int, item: object) -> Prompt:
    if isinstance(item, Prompt):
        prompt = item
    elif isinstance(item, Mapping):
        prompt = _prompt_of_mapping(index, item)
    else:
        prompt = Prompt(f"{index:04d}", item if isinstance(item, str) else "")
    if not prompt.text.strip() or not prompt.id:
        raise InputError(
            f"Prompt {index} must be a text that is not empty, or have one as `prompt`: {item!r}."
        )
    # A lone surrogate, which JSON can express, would fail much later: in a hash or in the log.
    try:
        (prompt.text + prompt.id + prompt.category).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"Prompt {index} must be valid Unicode: {error.reason}.") from error
    return prompt


def _prompt_of_mapping(index: int, item: Mapping[str, object]) -> Prompt:
    text = item.get("prompt", item.get("text"))
    prompt_id = item.get("id", f"{index:04d}")
    if isinstance(prompt_id, bool) or not isinstance(prompt_id, (str, int)):
        raise InputError(f"Prompt {index} must have a string or a number as id: {prompt_id!r}.")
    category = item.get("category", item.get("tag", ""))
    if not isinstance(category, str):
        raise InputError(f"Prompt {index} must have a word as category, got {category!r}.")
    return Prompt(str(prompt_id), text if isinstance(text, str) else "", category)
