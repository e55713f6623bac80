"""Runs a graph of the nodes in ComfyUI itself; `test_comfyui` starts it as a process.

python tests/comfyui_graph.py NODES OUTPUT
"""

import asyncio
import json
import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar
from unittest.mock import MagicMock

import transformers  # noqa: F401  It must not meet the stand-ins below.

NOT_USED = ("kornia", "spandrel", "torchaudio", "torchvision")
"""ComfyUI imports these for nodes that the graph does not have."""

PRIMITIVES = "comfy_extras/nodes_primitive.py"

LINKS = {
    "verifier": ("TTSLoadVerifier", {"name": "shapes", "device": "cpu"}),
    "red": ("EmptyImage", {"width": 64, "height": 64, "batch_size": 1, "color": 0xC02020}),
    "blue": ("EmptyImage", {"width": 64, "height": 64, "batch_size": 2, "color": 0x2020C0}),
    "images": ("ImageBatch", {"image1": ["red", 0], "image2": ["blue", 0]}),
    "scored": (
        "TTSScore",
        {"verifier": ["verifier", 0], "images": ["images", 0], "prompt": "a red circle"},
    ),
    "best": (
        "TTSPickBest",
        {"images": ["images", 0], "ranking": ["scored", 0], "count": 2},
    ),
    "mask": (
        "TTSFlawMask",
        {
            "images": ["best", 0],
            "ranking": ["best", 1],
            "threshold": "mass",
            "level": 0.5,
            "grow": 0.08,
            "without_a_place": "repaint all",
        },
    ),
    "latent": ("EmptyLatentImage", {"width": 64, "height": 64, "batch_size": 2}),
    "masked": ("SetLatentNoiseMask", {"samples": ["latent", 0], "mask": ["mask", 0]}),
    "save": ("SaveImage", {"images": ["mask", 1], "filename_prefix": "overlay"}),
    "repaint": ("Seen", {"latent": ["masked", 0]}),
}
PROMPT: dict[str, Any] = {
    name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in LINKS.items()
}


class StandIns:
    """Finds modules that are not installed."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.split(".")[0] in absent else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = MagicMock(spec=[], __spec__=spec, __path__=[], __name__=spec.name)
        return module

    def exec_module(self, module: ModuleType) -> None:
        pass


class Seen:
    """Keeps what a sampler would get."""

    CATEGORY, FUNCTION, OUTPUT_NODE = "test", "see", True
    RETURN_TYPES = ()
    latents: ClassVar[list[Any]] = []

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"latent": ("LATENT",)}}

    def see(self, latent: Any) -> tuple[()]:
        self.latents.append(latent)
        return ()


async def main(folder: str, output: str) -> None:
    import comfy.options

    comfy.options.enable_args_parsing()
    sys.argv = ["main.py", "--cpu", "--output-directory", output]
    import execution
    import folder_paths
    import nodes

    folder_paths.set_output_directory(output)
    assert await nodes.load_custom_node(folder)
    nodes.NODE_CLASS_MAPPINGS["Seen"] = Seen
    valid, error, outputs, node_errors = await execution.validate_prompt("id", PROMPT, None)
    assert valid, (error, node_errors)
    server = SimpleNamespace(client_id=None, last_node_id=None, send_sync=lambda *event: None)
    executor = execution.PromptExecutor(server, cache_args={"lru": 0, "ram": 0})
    await executor.execute_async(PROMPT, "id", {}, outputs)
    assert executor.success, executor.status_messages
    (latent,) = Seen.latents
    assert latent["noise_mask"].shape == (2, 1, 64, 64)
    await check_example(Path(folder) / "repaint.json")
    print("ran")


async def check_example(file: Path) -> None:
    """Lets ComfyUI check the links and values of the example, whose checkpoint is not there."""
    import execution
    import folder_paths
    import nodes

    assert await nodes.load_custom_node(str(Path(nodes.__file__).parent / PRIMITIVES))
    folder_paths.get_filename_list = lambda kind: ["sd_xl_base_1.0.safetensors"]
    valid, error, _, node_errors = await execution.validate_prompt(
        "id", json.loads(file.read_text()), None
    )
    assert valid, (error, node_errors)


if __name__ == "__main__":
    absent = [name for name in NOT_USED if find_spec(name) is None]
    sys.meta_path.append(StandIns())  # type: ignore[arg-type]
    asyncio.run(main(*sys.argv[1:]))
