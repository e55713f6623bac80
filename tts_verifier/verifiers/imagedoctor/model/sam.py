"""Segment Anything's two-way transformer and prompt encoder, imported without torchvision.

`import segment_anything` needs torchvision, for a resize that we never call. Its `modeling`
folder does not. So only that folder is imported, under a private name; a user's own
`import segment_anything` works as before.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType

from torch import nn

from tts_verifier.errors import UnsupportedError

ALIAS = "_tts_verifier_segment_anything"


def _import_modeling(name: str) -> ModuleType:
    """Imports segment_anything.modeling.`name` without running segment_anything's __init__."""
    if ALIAS not in sys.modules:
        spec = importlib.util.find_spec("segment_anything")
        if spec is None or spec.submodule_search_locations is None:
            raise UnsupportedError(
                "ImageDoctor's heads need the package segment-anything, which is not installed; "
                "run: pip install segment-anything"
            )
        # An empty package with the right path: imports below it find the real files.
        alias = ModuleType(ALIAS)
        alias.__path__ = list(spec.submodule_search_locations)
        sys.modules[ALIAS] = alias
    return importlib.import_module(f"{ALIAS}.modeling.{name}")


PromptEncoder: type[nn.Module] = _import_modeling("prompt_encoder").PromptEncoder
TwoWayTransformer: type[nn.Module] = _import_modeling("transformer").TwoWayTransformer
