"""The templates of all reports, with what they use."""

from __future__ import annotations

import base64
import hashlib
import math
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tts_verifier.analysis.report.snippets import (
    facts,
    format_duration,
    format_figure,
    format_number,
    format_percent,
    format_signed,
    judge_tag,
    picture,
    sheet_entry,
    thumb,
)
from tts_verifier.analysis.svg import STYLE

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES: Final = Path(__file__).parent / "templates"


def _compact(code: str) -> str:
    """Returns a script or a style without indents and without lines that are comments."""
    lines = [line.strip() for line in code.splitlines()]
    return "\n".join(line for line in lines if line and not line.startswith(("//", "/*")))


@cache
def template_environment() -> Environment:
    """Returns the templates with their filters, styles and script; compiled once a process."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    script = _compact((TEMPLATES / "page.js").read_text("utf-8"))
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": format_number,
        "figure": format_figure,
        "duration": format_duration,
        "signed": format_signed,
        "percent": format_percent,
        "svg": Markup,
    }
    environment.tests["finite"] = math.isfinite
    environment.globals |= {
        "nan": math.nan,
        "facts": facts,
        "judge_tag": judge_tag,
        "pic": picture,
        "sheet_entry": sheet_entry,
        "thumb": thumb,
        "style": Markup(STYLE + _compact((TEMPLATES / "page.css").read_text("utf-8"))),
        "script": Markup(script),
        "digest": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }
    return environment
