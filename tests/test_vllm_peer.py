"""vLLM's part of the benchmark, with a stand-in for vLLM: what it asks for, and what it reports."""

from __future__ import annotations

import importlib.machinery
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from transformers import AutoConfig, AutoTokenizer

sys.path.append(str(Path(__file__).parents[1] / "examples" / "benchmarks"))
import vllm_peer


class Stub(ModuleType):
    """Answers every prompt with zeros, and repeats its image token as vLLM does."""

    __version__ = "0.26.0"

    def __init__(self) -> None:
        super().__init__("vllm")
        self.__spec__ = importlib.machinery.ModuleSpec("vllm", None)
        self.made: dict[str, Any] = {}
        self.asked: list[list[dict[str, Any]]] = []
        self.short_by = 0
        self.SamplingParams = SimpleNamespace

    def LLM(self, model: str, **options: Any) -> Stub:
        self.made = options
        self.config = AutoConfig.from_pretrained(model)
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        return self

    def generate(self, prompts: Any, params: Any, *, use_tqdm: bool) -> list[Any]:
        assert params.ignore_eos
        self.asked.append(prompts)
        reply = SimpleNamespace(token_ids=[0] * (params.max_tokens - self.short_by))
        return [
            SimpleNamespace(prompt_token_ids=p["prompt_token_ids"] + [0] * 323, outputs=[reply])
            for p in prompts
        ]


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Stub:
    made = Stub()
    monkeypatch.setitem(sys.modules, "vllm", made)
    monkeypatch.setattr(vllm_peer, "processor_ms", lambda *_: 2.2)
    return made


def test_it_asks_for_the_released_size_with_prompts_and_pictures_of_its_own(stub: Stub) -> None:
    rows = vllm_peer.measure((3, 1), tokens=5, text=366)
    assert stub.made["load_format"] == "dummy"
    assert (stub.made["max_num_seqs"], stub.made["max_num_batched_tokens"]) == (256, 16384)
    assert stub.made["dtype"] == "bfloat16"
    assert stub.config.architectures == ["Qwen2_5_VLForConditionalGeneration"]
    text = stub.config.get_text_config()
    assert (text.num_hidden_layers, text.vocab_size) == (36, 151_936)
    assert stub.config.tie_word_embeddings
    assert text.tie_word_embeddings
    assert [len(prompts) for prompts in stub.asked] == [32, 3, 3, 3, 1, 1, 1]
    image = stub.config.image_token_id
    assert stub.tokenizer.encode("<|image_pad|>") == [image]
    texts = set()
    for prompt in (p for prompts in stub.asked for p in prompts):
        assert prompt["prompt_token_ids"].count(image) == 1
        assert prompt["multi_modal_data"]["image"].size == (504, 504)
        texts.add(tuple(prompt["prompt_token_ids"]))
    # vLLM would not read again what it has read before.
    assert len(texts) == 32 + 9 + 3
    assert [row["part"] for row in rows] == ["vllm, queue of 3", "vllm, queue of 1"]
    for row in rows:
        assert row["prompt_tokens"] == 690
        assert row["processor_ms"] == 2.2
        assert row["note"] == "vLLM 0.26.0, text only"
        assert row["fastest_s"] <= row["seconds"] <= row["slowest_s"]
        assert row["images_per_s"] == pytest.approx(row["images"] / row["seconds"])


def test_replies_of_another_length_are_an_error(stub: Stub) -> None:
    stub.short_by = 1
    with pytest.raises(RuntimeError, match=r"1 replies of \{4\} tokens came back"):
        vllm_peer.measure((1,), tokens=5, text=20)


def test_without_vllm_there_is_a_sentence(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert vllm_peer.missing() is None
    monkeypatch.setattr(vllm_peer, "find_spec", lambda _: None)
    assert vllm_peer.missing() == "vLLM is not installed here; `pip install vllm` adds it."
    monkeypatch.setattr(sys, "argv", ["vllm_peer.py"])
    with pytest.raises(SystemExit, match="vllm is left out: vLLM is not installed here"):
        vllm_peer.main()


def test_the_command_prints_rows_that_the_benchmark_reads(
    stub: Stub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["vllm_peer.py", "--queues", "2,1", "--tokens", "4"])
    vllm_peer.main()
    printed = "INFO vLLM says something\n" + capsys.readouterr().out
    done = subprocess.CompletedProcess([], 0, printed, "")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    rows = vllm_peer.rows_of_process(tokens=4, text=366)
    assert [row["images"] for row in rows] == [2, 1]
    assert rows == [json.loads(line) for line in printed.splitlines()[1:]]
    done.returncode, done.stderr = 1, "out of memory"
    with pytest.raises(RuntimeError, match="--tokens 4 --text 366: out of memory"):
        vllm_peer.rows_of_process(tokens=4, text=366)
