"""Checkpoints of judges that are missing, damaged, dangerous, or do not fit together."""

import json
import shutil

import pytest
import tiny_contrastive
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessorPil, CLIPProcessor, CLIPTokenizer

from tts_verifier.errors import CheckpointError
from tts_verifier.verifiers.contrastive.aesthetic import Aesthetic
from tts_verifier.verifiers.contrastive.clip import ClipScore, PickScore
from tts_verifier.verifiers.contrastive.hpsv2 import HPSv2
from tts_verifier.verifiers.contrastive.imagereward import ImageReward


def change_json(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_config(folder, part, **values):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config[part] |= values
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: shutil.rmtree(f), "is none of them"),
        (lambda f: (f / "config.json").unlink(), "needs a config.json"),
        (lambda f: (f / "config.json").write_text("{"), "must be a JSON object"),
        (lambda f: change_json(f / "config.json", model_type="siglip"), "must be a CLIP.*'siglip'"),
        (lambda f: change_json(f / "config.json", text_config=[]), "not CLIP's"),
        (lambda f: change_config(f, "vision_config", num_hidden_layers=10**9), "must fit the weig"),
        (lambda f: change_config(f, "vision_config", hidden_size=64), "mis-shaped"),
        (lambda f: change_config(f, "text_config", num_attention_heads=5), "not CLIP's"),
        (lambda f: (f / "model.safetensors").unlink(), "has no weights"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x" * 99), "must be a file of weights"),
        (lambda f: (f / "preprocessor_config.json").unlink(), "must have the processor of a CLIP"),
        (lambda f: (f / "vocab.json").unlink(), "must have the processor of a CLIP"),
    ],
)
def test_a_clip_with_a_fault_is_refused(clip_folder, damage, message):
    damage(clip_folder)
    with pytest.raises(CheckpointError, match=message):
        ClipScore(clip_folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda f: tiny_contrastive.write_clip_processor(f, side=56),
            "makes pictures of 56 x 56 pixels",
        ),
        (
            lambda f: change_json(f / "preprocessor_config.json", do_center_crop=False),
            "makes pictures of None x None",
        ),
        (
            lambda f: change_json(
                f / "preprocessor_config.json",
                image_processor_type="SiglipImageProcessor",
            ),
            "must be CLIP's.*'SiglipImageProcessor'",
        ),
        (
            lambda f: change_json(f / "tokenizer_config.json", tokenizer_class="T5Tokenizer"),
            "must be CLIP's.*'T5Tokenizer'",
        ),
        (lambda f: change_vocabulary(f, more=40), "has tokens up to 558"),
        (lambda f: change_config(f, "text_config", eos_token_id=7), "looks for 7"),
    ],
)
def test_a_processor_that_does_not_fit_its_model_is_refused(clip_folder, damage, message):
    damage(clip_folder)
    with pytest.raises(CheckpointError, match=message):
        ClipScore(clip_folder)


def change_vocabulary(folder, more):
    vocabulary = json.loads((folder / "vocab.json").read_text())
    start = len(vocabulary)
    vocabulary |= {f"extra{i}": start + i for i in range(more)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))


def test_a_processor_may_come_from_another_folder(clip_folder, tmp_path):
    expected = ClipScore(clip_folder).verify(tiny_contrastive.pictures()[2:3], ["red"])[0].scores
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(clip_folder / name, bare / name)
    judge = ClipScore(bare, processor=clip_folder)
    assert judge.settings["processor"] == str(clip_folder)
    assert judge.verify(tiny_contrastive.pictures()[2:3], ["red"])[0].scores == expected


@pytest.fixture
def hub(monkeypatch):
    """A hub of folders by name; a list of what was asked for."""
    folders, asked = {}, []

    def snapshot_download(repo, *, revision, allow_patterns, local_files_only):
        asked.append((repo, revision, allow_patterns))
        if repo not in folders:
            raise OSError("no network")
        return str(folders[repo])

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    return folders, asked


def test_a_pickscore_without_a_processor_takes_the_official_one(clip_folder, hub):
    (clip_folder / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"laion.CLIP-ViT-H-14-laion2B-s32B-b79K.*OSErr"):
        PickScore(clip_folder)
    assert not any("*.safetensors" in pattern for _, _, patterns in hub[1] for pattern in patterns)


def test_a_clip_of_the_hub_without_safetensors_is_read_as_a_pickle(clip_folder, hub):
    folders, asked = hub
    folders["someone/clip"] = clip_folder
    safe = clip_folder / "model.safetensors"
    torch.save(load_file(safe), clip_folder / "pytorch_model.bin")
    safe.unlink()
    judge = ClipScore("someone/clip", revision="v1")
    assert judge.settings["revision"] == "v1"
    assert [(revision, patterns[-1]) for _, revision, patterns in asked] == [
        ("v1", "model*.safetensors"),
        ("v1", "pytorch_model.bin"),
    ]


class Runs:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return (print, ("code of the pickle",))


def test_no_code_of_a_pickle_runs(tmp_path, capsys):
    for name in ("ImageReward.pt", "HPS_v2.1_compressed.pt", "aesthetic-model.pth"):
        torch.save({"state_dict": Runs()}, tmp_path / name)
    (tmp_path / "base").mkdir()
    makers = [
        lambda: ImageReward(tmp_path),
        lambda: HPSv2(tmp_path, base=tmp_path / "base"),
        lambda: Aesthetic(head=tmp_path),
    ]
    for make in makers:
        with pytest.raises(CheckpointError, match="must hold tensors alone"):
            make()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([torch.zeros(1)], "must hold tensors by name"),
        ({"state_dict": {"a": 1}}, "must hold tensors by name"),
        ({"a": torch.zeros(1)}, "must be those of a CLIP of open_clip; visual.proj"),
    ],
)
def test_other_pickles_are_refused(tmp_path, hpsv2_files, value, message):
    _, base = hpsv2_files
    torch.save(value, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=message):
        HPSv2(tmp_path / "weights.pt", base=base)


def test_a_damaged_pickle_is_refused(tmp_path, hpsv2_files):
    (tmp_path / "weights.pt").write_bytes(b"not weights")
    with pytest.raises(CheckpointError, match=r"weights.pt (holds more|must be a file)|damaged"):
        HPSv2(tmp_path / "weights.pt", base=hpsv2_files[1])


def test_hpsv2_names_what_is_missing(tmp_path, golden, hpsv2_files):
    _, base = hpsv2_files
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"has neither HPS_v2.1_compressed.pt nor HPS_v2.1_c"):
        HPSv2(tmp_path / "empty", base=base)
    tensors = golden.tensors("hpsv2")
    del tensors["ln_final.bias"]
    torch.save(tensors, tmp_path / "less.pt")
    with pytest.raises(CheckpointError, match=r"1 missing: text_model.final_layer_norm.bias"):
        HPSv2(tmp_path / "less.pt", base=base)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("blip.visual_encoder.cls_token"), "visual_encoder.cls_token is missing"),
        (lambda t: t.pop("mlp.layers.7.bias"), "1 missing: 7.bias"),
        (lambda t: t.update({"other.weight": torch.zeros(1)}), "also has other.weight"),
    ],
)
def test_imagereward_with_other_weights_is_refused(imagereward_files, golden, change, message):
    model, tokenizer = imagereward_files
    tensors = golden.tensors("imagereward")
    change(tensors)
    torch.save(tensors, model)
    with pytest.raises(CheckpointError, match=message):
        ImageReward(model, tokenizer=tokenizer)


def test_a_tokenizer_that_does_not_fit_imagereward_is_refused(imagereward_files):
    model, tokenizer = imagereward_files
    vocabulary = tokenizer / "vocab.txt"
    vocabulary.write_text(vocabulary.read_text() + "one\ntwo\nthree\n")
    with pytest.raises(CheckpointError, match="The tokenizer does not fit the model"):
        ImageReward(model, tokenizer=tokenizer)
    (tokenizer / "tokenizer.json").write_text("[]")
    with pytest.raises(CheckpointError, match="BERT's tokenizer; transformers says"):
        ImageReward(model, tokenizer=tokenizer)
    shutil.rmtree(tokenizer)
    tokenizer.mkdir()
    with pytest.raises(CheckpointError, match=r"neither tokenizer.json nor vocab.txt"):
        ImageReward(model, tokenizer=tokenizer)


def test_weights_in_several_files_are_read(clip_folder):
    tensors = load_file(clip_folder / "model.safetensors")
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, clip_folder / file)
    weight_map = {name: file for file, part in parts.items() for name in part}
    index = {"metadata": {}, "weight_map": weight_map}
    expected = ClipScore(clip_folder).model.state_dict()
    (clip_folder / "model.safetensors").unlink()
    (clip_folder / "model.safetensors.index.json").write_text(json.dumps(index))
    got = ClipScore(clip_folder).model.state_dict()
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_a_folder_as_transformers_5_saves_it_is_read(clip_folder, tmp_path):
    expected = ClipScore(clip_folder, clamp=False)
    saved = tmp_path / "saved"
    expected.model.save_pretrained(saved)
    CLIPProcessor(
        image_processor=CLIPImageProcessorPil.from_pretrained(clip_folder),
        tokenizer=CLIPTokenizer.from_pretrained(clip_folder),
    ).save_pretrained(saved)
    assert not (saved / "preprocessor_config.json").exists()
    pictures, prompts = tiny_contrastive.pictures(), tiny_contrastive.PROMPTS[:3] * 3
    got = ClipScore(saved, clamp=False).verify(pictures, prompts[:8])
    assert [v.scores for v in got] == [v.scores for v in expected.verify(pictures, prompts[:8])]
    config = json.loads((saved / "processor_config.json").read_text())
    config["image_processor"]["crop_size"] = {"height": 56, "width": 56}
    (saved / "processor_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="makes pictures of 56 x 56"):
        ClipScore(saved)
