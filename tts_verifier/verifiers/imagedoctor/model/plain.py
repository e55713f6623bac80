"""Checks that a model is no more than its weights, where nothing else of it is read."""

from __future__ import annotations

from typing import Any, Final

from torch import nn

from tts_verifier.errors import InputError
from tts_verifier.verifiers.imagedoctor.ops.fp8 import Fp8Linear

MERGE: Final = "Merge adapters into the weights first (peft: `model = model.merge_and_unload()`)."
OWN_HOOK: Final = "_tts_verifier_moves_inputs"
"""Attribute of the hooks that this package adds to move inputs between devices."""
_LINEAR = {"weight", "bias"}
_MLP = ("gate_proj", "up_proj", "down_proj")
_PRODUCTS = {
    "model.layers.": ("q_proj", "k_proj", "v_proj", "o_proj", *_MLP),
    "visual.blocks.": ("qkv", "proj", *_MLP),
}


def check_plain(model: nn.Module) -> None:
    """Refuses a model that computes something else than its weights say.

    The engine multiplies by the weights itself, several at a time, so it would ignore an adapter
    beside a layer, a hook, a parametrization, or another layer in the place of a linear one.
    Adapters that peft has merged (`merge_adapter`) or disabled change no result, and may stay.

    Raises:
        InputError: the model has such a part; the message names the first.
    """
    # The class, because a wrapper's instance passes on the names of the model inside.
    if not hasattr(type(model), "heatmap_logits"):
        raise InputError(
            "The engine runs an ImageDoctorModel and would ignore what is wrapped around it, got "
            f"{type(model).__name__}. {MERGE} Of other wrappers pass the module inside."
        )
    modules = dict(model.named_modules())
    for name, module in modules.items():
        if (fault := _fault_of(module, root=module is model)) is not None:
            raise InputError(f"The engine would ignore that {name or 'the model'} {fault}")
    for name, module in modules.items():
        if is_product(name):
            check_linear(module, name)


def is_product(name: str) -> bool:
    """Says whether a module is a product of the layers: only its weight and bias are read.

    Args:
        name: of the module in an `ImageDoctorModel`.
    """
    part = name.rpartition(".")[2]
    return any(name.startswith(where) and part in parts for where, parts in _PRODUCTS.items())


def check_linear(layer: nn.Module, name: str) -> None:
    """Refuses a layer that is not the product with its weight and the sum with its bias.

    Raises:
        InputError: it is another layer, or has an adapter.
    """
    if (fault := _adapter_fault(layer)) is not None:
        raise InputError(f"Of linear layers only the weights are read, but {name} {fault}")
    plain: Any = layer._modules.get("base_layer", layer)
    if (
        type(plain) not in (nn.Linear, Fp8Linear)
        or plain._modules
        or {*plain._parameters} - _LINEAR
    ):
        raise InputError(
            f"Of linear layers only the weights are read, but {name} is "
            f"{type(plain).__module__}.{type(plain).__qualname__} with "
            f"{', '.join(n for n, _ in plain.named_parameters()) or 'no parameters'}. {MERGE} "
            "Load weights that another library has quantised in bf16."
        )


def _adapter_fault(module: nn.Module) -> str | None:
    # `_modules`, because `hasattr` takes long on a module that lacks the name.
    if "base_layer" in module._modules:
        # Both at once is no state to compute in: peft would take the adapter out of the weights.
        if bool(getattr(module, "merged", False)) == bool(getattr(module, "disable_adapters", 0)):
            return f"has an adapter that is not merged ({type(module).__name__}). {MERGE}"
    elif {"modules_to_save", "original_module"} <= module._modules.keys():
        return f"has a trained copy beside it ({type(module).__name__}). {MERGE}"
    return None


def _fault_of(module: nn.Module, *, root: bool) -> str | None:
    """Says what a module does that its weights do not tell, or None."""
    if (fault := _adapter_fault(module)) is not None:
        return fault
    if "parametrizations" in module._modules:
        names = ", ".join(module.parametrizations)  # type: ignore[arg-type]
        return (
            f"is parametrized ({names}). Make the values permanent first: "
            "torch.nn.utils.parametrize.remove_parametrizations."
        )
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    if foreign := [hook for hook in hooks if not hasattr(hook, OWN_HOOK)]:
        return f"has a forward hook ({foreign[0]!r}). Remove it first."
    # The whole model's may be another one: accelerate casts in it for training.
    if "forward" in vars(module) and not root:
        return "has another `forward` than its class. Remove it, or load the weights alone."
    return None
