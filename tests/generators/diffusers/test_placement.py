"""Where a pipeline computes, how large it is, and whether it may be moved: see `traits`."""

import pytest
import torch
from tiny_pipelines import sd3, sd15

from tts_verifier.generators.diffusers import DiffusersGenerator
from tts_verifier.interfaces import is_movable
from tts_verifier.types import Draw, Job, Prompt


@pytest.fixture
def pipe(tmp_path):
    return sd15(tmp_path)


def bytes_of(*modules):
    return sum(t.nbytes for m in modules for t in (*m.parameters(), *m.buffers()))


def test_a_run_may_move_it(pipe):
    assert is_movable(DiffusersGenerator(pipe))


def test_its_size_is_that_of_all_weights_and_buffers(pipe):
    generator = DiffusersGenerator(pipe)
    assert generator.nbytes == bytes_of(pipe.unet, pipe.vae, pipe.text_encoder)
    assert generator.device == "cpu"


def test_weights_shared_with_what_repaints_count_once(pipe, tmp_path):
    other = sd3(tmp_path)
    alone = DiffusersGenerator(pipe).nbytes
    assert DiffusersGenerator(pipe, inpaint=pipe).nbytes == alone
    parts = (other.transformer, other.vae, other.text_encoder, other.text_encoder_2)
    assert DiffusersGenerator(pipe, inpaint=other).nbytes == alone + bytes_of(*parts)


def test_it_moves_with_what_repaints(pipe, tmp_path):
    other = sd3(tmp_path)
    generator = DiffusersGenerator(pipe, inpaint=other)
    generator.to("meta")
    assert {pipe.unet.device.type, other.transformer.device.type} == {"meta"}
    assert generator.device == "meta"


def test_moving_sixteen_bits_away_is_not_warned_of(pipe, caplog):
    DiffusersGenerator(pipe.to(torch.float16)).to("cpu")
    assert "cannot run with `cpu` device" not in caplog.text


def offloaded(pipe):
    pipe.enable_model_cpu_offload(device="cpu")


def one_by_one(pipe):
    pipe.enable_sequential_cpu_offload(device="cpu")


def in_groups(pipe):
    cpu = torch.device("cpu")
    pipe.unet.enable_group_offload(cpu, cpu, offload_type="leaf_level")


def spread(pipe):
    pipe.hf_device_map = {"unet": 0, "vae": 1}


def quantised(pipe):
    pipe.unet.is_quantized = True


@pytest.mark.parametrize("place", [offloaded, one_by_one, in_groups, spread, quantised])
def test_weights_that_the_user_placed_must_stay(pipe, place):
    place(pipe)
    assert DiffusersGenerator(pipe).nbytes is None


def test_layers_cast_as_they_run_may_be_moved(pipe):
    pipe.unet.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    generator = DiffusersGenerator(pipe, steps=1, batch_size=1)
    assert generator.nbytes is not None
    assert generator.generate([Job(Prompt("0", "a"), Draw(1))])[0].image is not None
