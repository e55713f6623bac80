"""A device that this machine does not have is one line that names those it has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from tts_verifier.cli.run import run_command
from tts_verifier.errors import InputError
from tts_verifier.generators.diffusers import DiffusersGenerator
from tts_verifier.interfaces import Verifier
from tts_verifier.loading.devices import (
    available_devices,
    check_device,
    check_devices,
    check_dtype,
)
from tts_verifier.verifiers.imagedoctor.checkpoint.device_map import LayerDevices

ABSENT = [
    "gpu",
    "",
    "cuda:",
    "cuda:-1",
    "cuda:99",
    "CUDA",
    "cpu ",
    "mars",
    "meta",
    99,
    -1,
    True,
    1.5,
]
RULE = r"device must be a device of this machine, one of cpu.*; got '"


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)


@pytest.mark.parametrize("device", ABSENT)
def test_what_is_no_device_here_is_refused(device: Any) -> None:
    with pytest.raises(InputError, match=RULE) as caught:
        check_device(device)
    assert "\n" not in str(caught.value)
    assert caught.value.argument == "device"


def test_without_a_gpu_cuda_is_refused_with_what_there_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for device in ("cuda", "cuda:0", torch.device("cuda"), 0):
        with pytest.raises(InputError, match=r"one of cpu; got 'c?u?d?a?:?0?', and torch finds no"):
            check_device(device)
    with pytest.raises(InputError, match=r"one of cpu; got 'mps', and torch cannot use it here"):
        check_device("mps")
    assert available_devices() == ["cpu"]


@pytest.mark.usefixtures("two_gpus")
def test_of_two_gpus_there_is_no_seventh() -> None:
    assert check_device("cuda:1") == torch.device("cuda:1")
    assert check_device(1) == torch.device("cuda:1")
    with pytest.raises(InputError, match=r"cuda:0, cuda:1.*got 'cuda:7', and there are 2 GPUs"):
        check_device("cuda:7")


def test_what_is_here_is_returned_and_none_stays_none() -> None:
    assert check_device("cpu") == torch.device("cpu")
    assert check_device(torch.device("cpu")) == torch.device("cpu")
    assert check_device(None) is None


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("named", "found"),
    [
        ("cuda:0,1", ["cuda:0", "cuda:1"]),
        ("cuda:1, 0", ["cuda:1", "cuda:0"]),
        ("cuda:0,cuda:1", ["cuda:0", "cuda:1"]),
        ("cuda:all", ["cuda:0", "cuda:1"]),
        ([1, "cuda:0"], ["cuda:1", "cuda:0"]),
        (("cuda:0", torch.device("cuda")), ["cuda:0", "cuda:1"]),
        (["cuda:1"], ["cuda:1"]),
        ("cuda", ["cuda"]),
        ("cpu", ["cpu"]),
        (["cpu"], ["cpu"]),
        (None, []),
    ],
    ids=str,
)
def test_several_gpus_are_a_list_or_a_text(named: Any, found: list[str]) -> None:
    assert check_devices(named) == [torch.device(name) for name in found]


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("cuda:0,2", r"one of cpu, cuda:0, cuda:1.*; got 'cuda:2', and there are 2 GPUs"),
        ("cuda:0,", r"got '', and that is no device"),
        ("cuda:0,-1", r"got '-1', and that is no device"),
        ("0,1", r"got '0', and that is no device"),
        ("cuda:0,mars", r"got 'mars', and that is no device"),
        (["cuda:0", None], r"got '', and that is no device"),
        (["cuda:0", ["cuda:1"]], r"and only a verifier is loaded onto several"),
        ([], r"device must name at least one device; got \[\]"),
        ("cuda:0,cpu", r"Several devices must be GPUs.* got cuda:0, cpu\. Name GPUs only, such as"),
        (["cpu", "cpu"], r"Several devices must be GPUs.* got cpu, cpu"),
        ("cuda:1,1", r"Several devices must differ.* got cuda:1, cuda:1\. Name each of them once"),
        (["cuda", 1], r"Several devices must differ.* got cuda:1, cuda:1"),
    ],
    ids=str,
)
def test_several_devices_must_be_different_gpus_of_this_machine(named: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        check_devices(named, argument="device")
    assert caught.value.argument == "device"


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("named", ["cuda:0,1", "cuda:all", ["cuda:0", "cuda:1"]])
def test_several_devices_are_for_a_verifier_only(named: Any) -> None:
    with pytest.raises(InputError, match="and only a verifier is loaded onto several"):
        check_device(named)
    with pytest.raises(InputError, match="and only a verifier is loaded onto several"):
        DiffusersGenerator("no-such/pipeline", device=named)


def test_without_a_gpu_all_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"one of cpu.*; got 'cuda', and torch finds no GPU here"):
        check_devices("cuda:all")


@pytest.mark.parametrize(
    "dtype", ["int8", "float8", "", "torch", "nn", 16, torch.int64, ["float32"]]
)
def test_a_dtype_is_one_to_compute_in(dtype: Any) -> None:
    with pytest.raises(InputError, match="dtype must be float32, bfloat16, float16 or float64"):
        check_dtype(dtype)


def test_names_and_dtypes_of_torch_are_dtypes() -> None:
    assert check_dtype("bfloat16") is check_dtype(torch.bfloat16) is torch.bfloat16
    assert check_dtype(None) is None


def test_every_entry_point_checks_the_device_before_it_loads_or_downloads() -> None:
    # The names are no checkpoints: they are not even looked for.
    with pytest.raises(InputError, match=RULE):
        Verifier.from_pretrained("no-such/verifier", device="gpu")
    with pytest.raises(InputError, match=RULE):
        DiffusersGenerator("no-such/pipeline", device="gpu")
    with pytest.raises(InputError, match="dtype must be"):
        DiffusersGenerator("no-such/pipeline", dtype="int8")
    with pytest.raises(InputError, match="device_map must be a device of this machine"):
        LayerDevices(torch.device("cpu"), 2, {"model.layers.1": "gpu"})


@pytest.mark.parametrize("device", ["gpu", "cpu,gpu", "[cpu, gpu]"])
def test_a_recipe_names_the_line_of_the_device(tmp_path: Path, device: str) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "generator: {name: fake}\nverifier:\n  name: imagedoctor\n  model: shapes\n"
        f"  device: {device}\nstrategy: {{name: best_of_n}}\nprompts: [a red circle]\n"
    )
    result = CliRunner().invoke(run_command, [str(recipe), "--quiet"])
    assert result.exit_code == 2
    assert "mine.yaml:5: device must be a device of this machine, one of cpu" in result.output
    assert "got 'gpu'" in result.output
