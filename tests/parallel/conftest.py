"""Most tests run their shards in their own process, under the name of the default engine."""

import pytest
from inline_engine import InlineEngine

from tts_verifier.recipe import parallel_options


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> type[InlineEngine]:
    """Replaces loky by an engine without processes; returns its class, which counts starts."""
    monkeypatch.setitem(parallel_options.ENGINES, "loky", "inline_engine:InlineEngine")
    monkeypatch.setattr(InlineEngine, "opened", 0)
    return InlineEngine
