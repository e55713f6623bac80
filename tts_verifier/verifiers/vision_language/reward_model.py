"""HPSv3's network: Qwen2-VL without its language head, and a head that reads one hidden state."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from tts_verifier.errors import CheckpointError

REWARD_TOKEN: Final = "<|Reward|>"
"""The token whose hidden state the head reads; it stands in the instruction."""
_RENAMES: Final = (
    (re.compile(r"^(model\.)?visual\."), "backbone.visual."),
    (re.compile(r"^model\.(language_model\.)?"), "backbone.language_model."),
)
"""Names of tensors in the file, and here; Qwen2-VL had other ones before transformers 4.52."""
_EMBEDDING: Final = "backbone.language_model.embed_tokens.weight"


class RewardModel(nn.Module):
    """Gives the mean and the logarithm of the deviation of a preference.

    Args:
        config: of a Qwen2-VL whose vocabulary has the reward token.
        reward_id: the id of that token.
    """

    def __init__(self, config: Any, reward_id: int) -> None:
        from transformers import Qwen2VLModel

        super().__init__()
        self.config, self.reward_id = config, reward_id
        self.backbone = Qwen2VLModel(config)
        width = config.get_text_config().hidden_size
        self.rm_head = nn.Sequential(
            nn.Linear(width, 1024), nn.ReLU(), nn.Dropout(0.05),
            nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 2),
        )  # fmt: skip

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the backbone; the head computes in float32."""
        dtype: torch.dtype = self.backbone.dtype
        return dtype

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **images: Tensor) -> Tensor:
        """Returns (N, 2) float32 for N rows, each with one reward token."""
        # The official forward gives the backbone no positions, and so an image's tokens are
        # numbered like words. By itself, Qwen2-VL would number them by rows and columns.
        positions = (attention_mask.cumsum(-1) - 1).clamp(min=0).expand(3, -1, -1)
        hidden = self.backbone(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=positions,
            use_cache=False,
            **images,
        ).last_hidden_state
        rewards: Tensor = self.rm_head(hidden[input_ids == self.reward_id].float())
        return rewards


def load_reward_model(folder: Path, config: Any, tokenizer: Any, dtype: torch.dtype) -> RewardModel:
    """Loads the weights of HPSv3, and adds the reward token to a tokenizer.

    Args:
        folder: has the .safetensors of HPSv3.
        config: of the Qwen2-VL that it was trained from; its vocabulary becomes the file's.
        tokenizer: of the same Qwen2-VL.
        dtype: of the backbone.

    Raises:
        CheckpointError: there is no such file, or its tensors do not fit the config or tokenizer.
    """
    from accelerate import init_empty_weights
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{folder} must hold a .safetensors file of HPSv3; it has none.")
    try:
        stored = {_renamed(k): t for file in files for k, t in load_file(file).items()}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder} must hold readable safetensors: {error}") from error
    # The official code drops the unused rows of the vocabulary and then adds the token.
    tokenizer.add_tokens([REWARD_TOKEN], special_tokens=True)
    reward_id = int(tokenizer.convert_tokens_to_ids(REWARD_TOKEN))
    rows = len(stored[_EMBEDDING]) if _EMBEDDING in stored else 0
    if reward_id >= rows:
        raise CheckpointError(
            f"The weights of {folder} must know the token {REWARD_TOKEN}, which has id {reward_id} "
            f"in the base's tokenizer; they know {rows} tokens. Give the base that HPSv3 was "
            "trained from."
        )
    config.get_text_config().vocab_size = rows
    # Buffers get real memory: they are small, and the file does not hold them.
    with init_empty_weights(include_buffers=False):
        model = RewardModel(config, reward_id)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    wrong = [n for n, shape in expected.items() if n not in stored or stored[n].shape != shape]
    if wrong:
        raise CheckpointError(
            f"{folder} must hold all weights of HPSv3 for its base; {len(wrong)} are missing or "
            f"have another shape: {', '.join(wrong[:5])}."
        )
    kept = {name: stored[name] for name in expected}
    model.load_state_dict({name: _cast(name, t, dtype) for name, t in kept.items()}, assign=True)
    return model.requires_grad_(False).eval()


def _renamed(name: str) -> str:
    for pattern, new in _RENAMES:
        if pattern.match(name):
            return pattern.sub(new, name, count=1)
    return name


def _cast(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(torch.float32 if name.startswith("rm_head.") else dtype)
