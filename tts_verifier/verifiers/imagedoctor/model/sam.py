"""Segment Anything's two-way transformer and prompt encoder, without its torchvision.

`import segment_anything` needs torchvision for a resize that we never call, while its
`modeling` folder does not. So that folder alone is imported, under a private name; a user's
own `import segment_anything` stays untouched.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType

from torch import nn

from tts_verifier.errors import UnsupportedError

ALIAS = "_tts_verifier_segment_anything"


def _load(name: str) -> ModuleType:
    if ALIAS not in sys.modules:
        spec = importlib.util.find_spec("segment_anything")
        if spec is None or spec.submodule_search_locations is None:
            raise UnsupportedError(
                "ImageDoctor's heads need the package segment-anything, which is not installed; "
                "run: pip install segment-anything"
            )
        alias = ModuleType(ALIAS)
        alias.__path__ = list(spec.submodule_search_locations)
        sys.modules[ALIAS] = alias
    return importlib.import_module(f"{ALIAS}.modeling.{name}")


PromptEncoder: type[nn.Module] = _load("prompt_encoder").PromptEncoder
TwoWayTransformer: type[nn.Module] = _load("transformer").TwoWayTransformer
