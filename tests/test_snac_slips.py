"Slips of settings, and what users of the package snac and of the earlier trainer write"
import copy
import json
import pickle
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from snac_runs import in_one_thread, TINY

from audiolab.apps import program as cli
from audiolab.config import ConfigError, load_config
from audiolab.files import CheckpointError, write_checkpoint
from audiolab.snac import (
    as_config, create_training_config, from_pretrained, save_pretrained, SNAC, SnacError,
    TrainConfig,
)
from audiolab.training import read_run

one_thread = pytest.fixture(autouse=True)(in_one_thread)


@pytest.fixture
def model():
    torch.manual_seed(3)
    return SNAC(**TINY, attn_window_size=None, vq_strides=[4, 2, 1]).eval()


# ---- settings

@pytest.mark.parametrize("key, words", [
    ("num_iteration", "Did you mean 'num_iterations'?"), ("lr", "Did you mean 'learning_rate'?"),
    ("log_intervall", "Did you mean 'log_interval'?"), ("segmentlength", "'data.segment_length'"),
    ("xyzzy", "processes, learning_rate, betas, weight_decay, num_iterations, lr_decay")])
def test_mistyped_keys_are_led_to_own_and_other_names(tmp_path, key, words):
    (tmp_path/"run.json").write_text(json.dumps({"training": {key: 3}}))
    with pytest.raises(ConfigError, match=f"run.json:1:15: training.{key}: unknown key") as error:
        load_config(TrainConfig, tmp_path/"run.json")
    assert words in str(error.value)


def test_a_wrong_word_in_a_file_is_told_with_the_file(tmp_path):
    (tmp_path/"run.json").write_text('{\n "model": "24kz"}')
    with pytest.raises(ConfigError) as error: load_config(TrainConfig, tmp_path/"run.json")
    assert str(error.value).startswith(f"{tmp_path/'run.json'}:2:11: model: ")
    assert "Did you mean '24khz'?" in str(error.value)


@pytest.mark.parametrize("words, said", [
    (["--model.decoder-rates", "8", "8", "8", "2"], "mirror the rates"),
    (["--model.vq-strides", "4", "3", "1"], "from coarse to fine"),
    (["--model.decoder-dim", "100"], "multiple of 16"),
    (["--model.attn-window-size", "32", "--model.encoder-dim", "5"], "heads of 64"),
    (["--model.latent-dim", "100"], "leave it out"),
    (["--freeze_tokens"], "give weights, too")])
def test_a_dry_run_refuses_what_cannot_be_built(capsys, words, said):
    assert cli.main(["snac", "train", *words, "--dry-run"]) == 2
    told = capsys.readouterr().err
    assert said in told and told.startswith("audiolab: error: ") and told.count("\n") == 1


def test_a_dry_run_with_weights_takes_their_size(capsys):
    words = ["--model.vq-strides", "4", "3", "1", "--weights", "x", "--freeze_tokens"]
    assert cli.main(["snac", "train", *words, "--dry-run"]) == 0
    assert "fine-tune x" in capsys.readouterr().out


# ---- the model

def test_the_attributes_and_the_quantiser_of_the_package(model):
    theirs = pytest.importorskip("snac", reason="optional: needs the package snac")
    theirs = theirs.SNAC(**model.config).eval()
    theirs.load_state_dict(model.state_dict())
    names = ("sampling_rate encoder_dim encoder_rates latent_dim decoder_dim decoder_rates hop_length "
             "attn_window_size codebook_size codebook_dim vq_strides n_codebooks").split()
    for name in names: assert getattr(model, name) == getattr(theirs, name), name
    latent = torch.randn(2, model.latent_dim, 8)
    with torch.no_grad():
        (sums, codes), (other, expected) = model.quantizer(latent), theirs.quantizer(latent)
        one, told = model.quantizer.quantizers[0](latent)
    assert torch.allclose(sums, other, atol=1e-6) and torch.equal(told, expected[0])
    assert all(map(torch.equal, codes, expected)) and one.shape == latent.shape


@pytest.mark.parametrize("again", [lambda x: pickle.loads(pickle.dumps(x)), copy.deepcopy])
@pytest.mark.parametrize("folded", [False, True])
def test_a_model_is_pickled_and_copied(model, again, folded):
    model.quantizer.requires_grad_(False)
    model.loudness = -16.
    if folded: model = model.fold_weight_norm()
    other, sound = again(model.double()), torch.randn(1, 1, 2000).double()
    assert other.state_dict().keys() == model.state_dict().keys() and not other.training
    assert (other.loudness, other.normed) == (-16., not folded)
    learning = [[name for name, p in m.named_parameters() if p.requires_grad]
                for m in (model, other)]
    assert learning[0] == learning[1] and bool(learning[0]) != folded
    codes, expected = other.encode(sound), model.encode(sound)
    assert all(map(torch.equal, codes, expected))
    assert torch.equal(other.decode(codes, seed=1), model.decode(codes, seed=1))
    with torch.no_grad(): next(other.parameters()).zero_()
    assert next(model.parameters()).any()  # nothing is shared


class Voice(SNAC):
    "A codec with something of its own."
    def greet(self): return "hello"


def test_a_copy_is_what_pytorch_copies():
    "It came back as a plain codec, without hooks, apart from its optimizer."
    model = Voice(**TINY, attn_window_size=None, vq_strides=[4, 2, 1])
    optimizer, heard = torch.optim.SGD(model.parameters(), lr=.1), []
    model.encoder.register_forward_hook(lambda *_: heard.append(1))
    model(torch.zeros(1, 1, 400))
    twin, other = copy.deepcopy((model, optimizer))
    mine, theirs = list(model.parameters()), list(twin.parameters())
    assert all(a is b for a, b in zip(theirs, other.param_groups[0]["params"], strict=True))
    assert all(a is not b and torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    twin(torch.zeros(1, 1, 400))
    assert len(heard) == 2 and twin.greet() == "hello"
    flat = copy.copy(model)
    assert all(a is b for a, b in zip(mine, flat.parameters(), strict=True))
    assert pickle.loads(pickle.dumps(model)).greet() == "hello"


@pytest.mark.parametrize("wrap", [
    lambda state: {f"module.{name}": value for name, value in state.items()},
    lambda state: {"state_dict": state, "epoch": 3},
    lambda state: {"model": {f"module._orig_mod.{name}": v for name, v in state.items()}},
    lambda state: {"model_state_dict": {f"generator.{name}": v for name, v in state.items()}}])
def test_weights_in_the_wrappings_of_other_trainers(model, tmp_path, wrap):
    save_pretrained(model, tmp_path)
    torch.save(wrap(model.state_dict()), tmp_path/"pytorch_model.bin")
    found = from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(found[name], value) for name, value in model.state_dict().items())


def test_what_is_still_another_model_is_refused(model, tmp_path):
    save_pretrained(model, tmp_path)
    other = {f"student.{name}": value for name, value in model.state_dict().items()}
    torch.save(other, tmp_path/"pytorch_model.bin")
    with pytest.raises(SnacError, match="is not of this model"): from_pretrained(tmp_path)


# ---- runs

def test_weights_alone_are_no_run_to_go_on_with(tmp_path):
    path = write_checkpoint(tmp_path/"best_model.safetensors", {"w": torch.zeros(2)})
    with pytest.raises(CheckpointError, match="weights only.*resume \"auto\" takes the newest"):
        read_run(path, "snac")


def test_the_small_recipe_loses_little_to_a_kill():
    assert as_config(create_training_config(model="small")).training.save_every == "2 minutes"
