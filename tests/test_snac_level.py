"One quality at every level: a gain that goes with the codes of models that have learnt at one level"
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from snac_runs import fit, in_one_thread, last, make_corpus, settings, TINY, tone

from audiolab.files import inspect_checkpoint, read_checkpoint, write_checkpoint
from audiolab.snac import (
    as_config, code_recording, Codec, Codes, from_pretrained, load_codes, make_generator,
    save_codes, save_pretrained, SNAC, SnacError, StreamDecoder,
)

one_thread = pytest.fixture(autouse=True)(in_one_thread)


def model(loudness=None):
    torch.manual_seed(3)
    found = SNAC(**TINY, attn_window_size=None, vq_strides=[4, 2, 1]).eval()
    found.loudness = loudness
    return found


def levels(codes): return [level.tolist() for level in codes.codes]


@pytest.mark.parametrize("dB", [6, -12, -24, -36, -48])
def test_codes_do_not_depend_on_the_level_and_the_sound_has_it_again(dB):
    codec, x, factor = Codec(model(-16.)), tone(1), 10**(dB/20)
    one, other = codec.encode(x), codec.encode(x*np.float32(factor))
    assert levels(one) == levels(other)
    assert other.gain == pytest.approx(one.gain*factor, rel=1e-3)
    made = [codec.decode(codes, seed=0) for codes in (one, other)]
    assert torch.allclose(made[1], made[0]*factor, atol=1e-3*factor)
    whole = code_recording(codec.model, x*np.float32(factor))  # as eval measures it
    assert np.allclose(whole.audio, made[1].numpy(), atol=1e-4*factor)


def test_published_weights_stay_exact_to_the_token():
    codec, x = Codec(model()), tone(1)*.05
    codes = codec.encode(x)
    assert codes.gain == 1
    plain = codec.model.encode(torch.from_numpy(x)[None, None])
    assert levels(codes) == [level[0].tolist() for level in plain]


def test_silence_and_streams_and_pieces():
    codec, x = Codec(model(-16.)), tone(2)*.05
    assert codec.encode(np.zeros(4000, np.float32)).gain == 1
    codes, short = codec.encode(x), codec.encode(x[:5000])
    whole = codec.decode(codes, seed=4)
    assert torch.allclose(torch.cat([*codec.decode_stream(codes, .2, seed=4)]), whole, atol=1e-6)
    stream, parts = StreamDecoder(codec, seed=4, length=codes.length), []
    for begin in range(0, len(codes), 3): parts.append(stream.push(codes.cut(begin, begin+3)))
    assert torch.allclose(torch.cat([*parts, stream.finish()]), whole, atol=1e-6)
    both = codec.decode_batch([codes, short], seed=4)
    assert torch.allclose(both[0], whole, atol=1e-6) and short.gain != codes.gain


def test_a_file_of_codes_keeps_the_gain_and_old_files_still_open(tmp_path):
    codes = Codec(model(-16.)).encode(tone(1)*.03)
    again = load_codes(save_codes(tmp_path/"a.snac", codes))
    assert again == codes and again.gain == codes.gain != 1
    assert replace(codes, gain=1.) != codes
    plain = save_codes(tmp_path/"b.snac", replace(codes, gain=1.))
    notes = inspect_checkpoint(plain).metadata
    assert notes["snac.version"] == "1" and "snac.gain" not in notes  # as before; old readers too
    assert inspect_checkpoint(tmp_path/"a.snac").metadata["snac.version"] == "2"
    for gain in (3e-5, 12345.678): assert load_codes(save_codes(
        tmp_path/"c.snac", replace(codes, gain=gain))).gain == gain


@pytest.mark.parametrize("wrong", ["", "nan", "-1", "0.0", "1e99", "9999999", "1; 2"])
def test_a_gain_that_is_none(tmp_path, wrong):
    path = save_codes(tmp_path/"a.snac", Codec(model(-16.)).encode(tone(1)*.03))
    notes = {k: v for k, v in inspect_checkpoint(path).metadata.items() if k.startswith("snac.")}
    write_checkpoint(path, read_checkpoint(path)[0], notes | {"snac.gain": wrong})
    with pytest.raises(SnacError, match="gain"): load_codes(path)
    for bad in (0., float("nan"), "1"):
        with pytest.raises(SnacError, match="gain"): Codes([[1], [1, 2], [1]*4], gain=bad)


def test_the_level_goes_with_the_weights(tmp_path):
    folder = save_pretrained(model(-16.), tmp_path/"own", safetensors=True)
    assert from_pretrained(folder).loudness == -16
    assert from_pretrained(folder/"model.safetensors").loudness == -16
    assert Codec.load(str(folder)).model.loudness == -16
    assert json.loads((folder/"config.json").read_text()).keys() == model().config.keys()
    save_pretrained(model(), folder)  # as published, in its place
    assert from_pretrained(folder).loudness is None
    for text in ("{}", "[1]", "nothing", '{"loudness": "loud"}', '{"loudness": 30}', "1"*2000):
        (folder/"level.json").write_text(text)
        with pytest.raises(SnacError, match="level"): from_pretrained(folder)


def test_a_run_gives_its_level_on_but_not_to_tokens_that_are_kept(tmp_path):
    given = settings(tmp_path/"run", make_corpus(tmp_path/"data"), {"training": {"steps": 1}})
    fit(given)
    found = [from_pretrained(place).loudness for place in (tmp_path/"run", last(tmp_path/"run"))]
    assert found == [-16, -16]
    published = str(save_pretrained(model(), tmp_path/"published"))
    for tuning, loudness in (({"weights": published, "freeze_tokens": True}, None),
                             ({"weights": published}, -16)):
        tuned, _ = make_generator(as_config({"fine_tuning": tuning}))
        assert tuned.loudness == loudness


@pytest.mark.parametrize("shape", [(4000,), (1, 4000), (1, 2, 4000), (1, 1, 1, 4000)])
def test_sound_of_another_shape_is_told_which_one_is_wanted(shape):
    for call in (model(), model().encode):
        with pytest.raises(SnacError, match=r"\[B, 1, T\].*x\[None, None\]"):
            call(torch.zeros(shape))
