"""Nodes for ComfyUI: score images, pick the best, and mask what is flawed.

Link or copy this folder into ComfyUI's `custom_nodes`; README.md has the steps.
"""

from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
