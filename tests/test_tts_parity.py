"""T3 beside others: the released program's own T3 (kept as numbers), and transformers' Llama with the same weights."""
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from make_t3_golden import EMOTION, LAYERS, SPEECH, TEXT, made_condition, made_weights

from audiolab.tts.lora import torchaudio_or_empty
from audiolab.tts.packs import Utterance, make_pack
from audiolab.tts.rotary import rotary_speeds
from audiolab.tts.t3 import T3, init_t3, reference_logits
from audiolab.tts.t3_config import T3Config, tensor_shapes

GOLDEN = Path(__file__).parent/"data"/"t3_chatterbox.npz"


def sentence(heard):
    speaker, prompt = (torch.from_numpy(part) for part in made_condition())
    text, speech = torch.tensor(TEXT), torch.tensor(SPEECH[1:])
    return Utterance(text, speech, prompt if heard else None, speaker, EMOTION)


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as file: return dict(file)


@pytest.mark.parametrize("rows", [704, 2454])
def test_the_released_t3_says_the_same(golden, rows):
    "Specification 7.5.1: strict load of a state laid out as released, logits below 1e-4, packed and plain."
    config = T3Config(rows, layers=LAYERS)
    shapes = tensor_shapes(config)
    assert sorted(shapes) == golden[f"names_{rows}"].tolist()
    with torch.device("meta"): model = T3(config).eval()
    weights = {name: torch.from_numpy(value) for name, value in made_weights(shapes).items()}
    model.load_state_dict(weights, strict=True, assign=True)
    both = [sentence(heard) for heard in (True, False)]
    with torch.inference_mode(): text, speech = model(make_pack(both, config))
    for n, heard in enumerate(("prompt", "alone")):
        ours = text[n*len(TEXT):(n + 1)*len(TEXT)], speech[n*len(SPEECH):(n + 1)*len(SPEECH), ::3]
        for part, found in zip(("text", "speech"), ours):
            theirs = torch.from_numpy(golden[f"{part}_{rows}_{heard}"])
            assert theirs.std() > .3 and (found - theirs).abs().max() < 1e-4, (part, heard)
    with torch.inference_mode(): plain = reference_logits(model, both[0])[1][:, ::3]
    assert (plain - torch.from_numpy(golden[f"speech_{rows}_prompt"])).abs().max() < 1e-4


@pytest.mark.slow
def test_the_numbers_are_made_by_the_released_program(golden, tmp_path):
    "T3_PYTHON names a Python that has chatterbox-tts 0.1.7, torch, transformers and einops."
    python = os.environ.get("T3_PYTHON", sys.executable)
    ask = "import importlib.util as u; print(bool(u.find_spec('chatterbox')))"
    have = subprocess.run([python, "-c", ask], capture_output=True, text=True, timeout=60)
    if have.stdout.strip() != "True": pytest.skip("optional: T3_PYTHON has no chatterbox-tts")
    made, script = tmp_path/"made.npz", Path(__file__).parent/"make_t3_golden.py"
    subprocess.run([python, str(script), str(made)], check=True, capture_output=True, timeout=600)
    with np.load(made) as file: again = dict(file)
    assert set(again) == set(golden)
    for name, value in golden.items():
        if value.dtype.kind == "f": assert abs(value - again[name]).max() < 1e-4, name


@pytest.fixture(scope="module")
def llama():
    "transformers' Llama in eight lines, with the numbers of T3."
    with torchaudio_or_empty():
        pytest.importorskip("transformers", reason="optional: transformers is not installed")
        from transformers import LlamaConfig, LlamaModel
    config = T3Config.small(60, 100, width=128, heads=2, layers=3)
    scaling = dict(rope_type="llama3", factor=config.rope_factor, low_freq_factor=config.rope_low,
                   high_freq_factor=config.rope_high, rope_theta=config.rope_theta,
                   original_max_position_embeddings=int(config.rope_original))
    theirs = LlamaModel(LlamaConfig(
        vocab_size=8, hidden_size=128, intermediate_size=512, num_hidden_layers=3,
        num_attention_heads=2, num_key_value_heads=2, head_dim=64, rms_norm_eps=config.norm_eps,
        max_position_embeddings=131072, attention_bias=False, mlp_bias=False,
        tie_word_embeddings=False, hidden_act="silu",
        rope_theta=config.rope_theta, rope_scaling=scaling, attn_implementation="eager"))
    return config, theirs.eval()


def test_the_blocks_are_those_of_llama(llama):
    (config, theirs), generator = llama, torch.Generator().manual_seed(0)
    model = init_t3(config, 1).eval()
    with torch.no_grad():
        for value in model.tfmr.parameters():
            if value.ndim > 1: value.mul_(3)
            else: value.add_(.1*torch.randn(value.shape, generator=generator))
    theirs.load_state_dict(model.tfmr.state_dict(), strict=True)
    text, speaker = torch.tensor([59, 5, 6, 0]), torch.ones(256)/16
    one = Utterance(text, torch.arange(90), torch.arange(40), speaker)
    pack = make_pack([one], config)
    rows = model.joined(pack)
    hidden = theirs(inputs_embeds=rows[None], use_cache=False).last_hidden_state[0]
    text, speech = model.hidden(pack)
    assert (hidden[pack.layout.text_rows] - text).abs().max() < 1e-5
    assert (hidden[pack.layout.speech_rows] - speech).abs().max() < 1e-5
    weight = torch.randn(speech.shape, generator=generator)
    (speech*weight).sum().backward()
    trained = (item for item in model.tfmr.named_parameters() if item[1].grad is not None)
    found = {name: value.grad.clone() for name, value in trained}
    rows = model.joined(pack)
    hidden = theirs(inputs_embeds=rows[None], use_cache=False).last_hidden_state[0]
    (hidden[pack.layout.speech_rows]*weight).sum().backward()
    for name, value in theirs.named_parameters():
        if value.grad is None: continue
        size = max(1, float(value.grad.abs().max()))
        assert (found[name] - value.grad).abs().max() < 1e-5*size, name


def test_positions_turn_as_fast_as_theirs(llama):
    config, theirs = llama
    assert torch.allclose(theirs.rotary_emb.inv_freq, rotary_speeds(config), rtol=1e-6, atol=0)
