"Codecs behind one face: addresses, checks, SNAC in one row, S3 tokens."
import sys

import numpy as np
import pytest
import torch

from audiolab.files import CheckpointError, write_checkpoint
from audiolab.snac import SNAC, Codec, save_pretrained
from audiolab.tts import (
    S3Codec, SnacCodec, SpeechCodec, TTSError, checked_ids, codec_sound, open_codec, s3_weights,
    weights_digest,
)

try:
    from audiolab.tts import import_s3tokenizer
    S3 = import_s3tokenizer()
except ImportError: S3 = None
needs_s3 = pytest.mark.skipif(S3 is None, reason="optional: s3tokenizer is not installed")


@pytest.mark.parametrize("address, says", [
    ("mel", "mel:FILE"), ("", "mel:FILE"), ("mel:", "mel:FILE"), ("smac:x", "snac"),
    ("wav:x", "s3:FILE")])
def test_a_wrong_address_is_told_the_right_ones(address, says):
    with pytest.raises(TTSError, match=says): open_codec(address)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(TTSError, match="nothing.safetensors: no such file"):
        open_codec(f"mel:{tmp_path/'nothing.safetensors'}")


def test_sounds_are_checked_and_converted():
    x = np.random.default_rng(0).standard_normal(4800)*.1
    assert codec_sound(x, 48000, 24000).dtype == np.float32
    assert codec_sound(torch.from_numpy(x), 24000, 24000).shape == (4800,)
    with pytest.raises(TTSError, match="sample rate"): codec_sound(x, 3, 24000)


def test_numbers_are_checked():
    assert checked_ids(torch.tensor([1, 2]), 3).tolist() == [1, 2]
    assert checked_ids(np.array([2], np.int16), 3).dtype == np.int64
    for wrong in ([3], [-1], [True, False], [1.], "12"):
        with pytest.raises(TTSError): checked_ids(wrong, 3)


def test_a_digest_is_of_values_names_and_settings():
    base = weights_digest({"a": torch.ones(2)}, {"n": 1})
    assert base == weights_digest({"a": np.ones(2, np.float32)}, {"n": 1})
    doubles = torch.ones(2, dtype=torch.float64)
    others = [({"b": torch.ones(2)}, {"n": 1}), ({"a": torch.zeros(2)}, {"n": 1}),
              ({"a": torch.ones(2)}, {"n": 2}), ({"a": doubles}, {"n": 1})]
    assert base not in [weights_digest(*other) for other in others]


@pytest.fixture(scope="module")
def snac_model():
    torch.manual_seed(0)
    return SNAC(16000, encoder_dim=8, encoder_rates=(2, 4), decoder_dim=32, decoder_rates=(4, 2),
                attn_window_size=None, codebook_size=32, vq_strides=(4, 2, 1))


@pytest.fixture(scope="module")
def noise(): return (.1*np.random.default_rng(0).standard_normal(4000)).astype(np.float32)


def test_snac_in_one_row_is_the_order_of_orpheus(snac_model, noise):
    codec = SnacCodec(Codec(snac_model))
    assert isinstance(codec, SpeechCodec) and codec.codes == 7*32
    ids = codec.encode(noise, 16000)
    levels = codec.codec.encode(noise, 16000).codes
    frame = [levels[0][0], levels[1][0], levels[2][0], levels[2][1], levels[1][1], levels[2][2],
             levels[2][3]]
    assert ids[:7].tolist() == [int(c)+32*place for place, c in enumerate(frame)]
    assert len(ids) == 7*len(levels[0])
    assert codec.rate == pytest.approx(7*16000/32)


def test_snac_comes_back_whole_and_the_same(snac_model, noise):
    codec = SnacCodec(Codec(snac_model))
    ids = codec.encode(noise, 16000)
    made = codec.decode(ids)
    assert len(made) >= 4000 and np.array_equal(made, codec.decode(ids))
    assert np.array_equal(codec.decode(ids[:-1]), codec.decode(ids[:-7]))


@pytest.mark.parametrize("change, says", [
    (lambda ids: ids[1:], "token 0"), (lambda ids: ids[:3], "whole frame"),
    (lambda ids: ids+500, "outside")])
def test_snac_names_what_is_out_of_place(snac_model, noise, change, says):
    codec = SnacCodec(Codec(snac_model))
    ids = codec.encode(noise, 16000)
    with pytest.raises(TTSError, match=says): codec.decode(change(ids))


def test_snac_opens_by_address(snac_model, noise, tmp_path):
    save_pretrained(snac_model, tmp_path/"model")
    codec = open_codec(f"snac:{tmp_path/'model'}")
    own = SnacCodec(Codec(snac_model))
    assert codec.fingerprint() == own.fingerprint() and codec.voice(noise, 16000) is None
    assert np.array_equal(codec.encode(noise, 16000), own.encode(noise, 16000))


def random_s3(layers=2):
    from s3tokenizer.model_v2 import ModelConfig, S3TokenizerV2
    torch.manual_seed(0)
    config = ModelConfig(n_audio_state=128, n_audio_head=2, n_audio_layer=layers)
    return S3TokenizerV2("speech_tokenizer_v2_25hz", config).eval()


@pytest.fixture(scope="module")
def s3_files(tmp_path_factory):
    folder, theirs = tmp_path_factory.mktemp("s3"), random_s3()
    alone = dict(theirs.state_dict())
    inside = {f"tokenizer.{name}": t for name, t in alone.items()}
    inside |= {"flow.encoder.conv1.weight": torch.zeros(2), "tokenizer.window": torch.zeros(4)}
    write_checkpoint(folder/"alone.safetensors", alone, {})
    write_checkpoint(folder/"s3gen.safetensors", inside, {})
    torch.save(inside, folder/"s3gen.pt")
    torch.save({"model": inside}, folder/"nested.pt")
    return folder, theirs


@needs_s3
@pytest.mark.parametrize("name", [
    "alone.safetensors", "s3gen.safetensors", "s3gen.pt", "nested.pt"])
def test_s3_numbers_are_those_of_the_package(s3_files, noise, name):
    folder, theirs = s3_files
    codec = open_codec(f"s3:{folder/name}")
    ids = codec.encode(np.tile(noise, 5)[:19200], 16000)
    mel = S3.log_mel_spectrogram(torch.from_numpy(np.tile(noise, 5)[:19200]))
    assert ids.tolist() == theirs.quantize(mel[None], torch.tensor([mel.shape[-1]]))[0][0].tolist()
    assert (len(ids), codec.codes, codec.rate, codec.sample_rate) == (30, 6561, 25, 24000)
    assert isinstance(codec, SpeechCodec)


@needs_s3
def test_s3_counts_every_begun_number_and_long_sounds(s3_files, noise):
    codec = S3Codec.load(s3_files[0]/"alone.safetensors")
    assert len(codec.encode(noise[:641], 16000)) == 2
    assert len(codec.encode(np.tile(noise, 128), 16000)) == 800  # 32 s: windows


@needs_s3
def test_s3_fingerprint_is_of_the_tokenizer_alone(s3_files):
    folder = s3_files[0]
    alone, inside = (S3Codec.load(folder/n) for n in ("alone.safetensors", "s3gen.safetensors"))
    assert alone.fingerprint() == inside.fingerprint()


@needs_s3
def test_s3_sound_without_chatterbox_says_what_to_install(s3_files, monkeypatch):
    monkeypatch.setitem(sys.modules, "chatterbox", None)
    codec = S3Codec.load(s3_files[0]/"alone.safetensors")
    with pytest.raises(TTSError, match="no-deps chatterbox-tts"): codec.decode([1, 2])


@needs_s3
def test_s3_weights_of_another_size_are_refused(s3_files, tmp_path):
    weights = s3_weights(s3_files[0]/"alone.safetensors")
    weights.pop("encoder.blocks.1.mlp.0.weight")
    write_checkpoint(tmp_path/"bad.safetensors", weights, {})
    with pytest.raises(CheckpointError, match="another one"):
        S3Codec.load(tmp_path/"bad.safetensors")


def test_a_file_without_s3_weights_is_refused(tmp_path):
    write_checkpoint(tmp_path/"other.safetensors", {"w": np.zeros(2, np.float32)}, {})
    with pytest.raises(CheckpointError, match="no S3 tokenizer"):
        s3_weights(tmp_path/"other.safetensors")
    torch.save([1, 2], tmp_path/"list.pt")
    with pytest.raises(CheckpointError, match="no weights by name"): s3_weights(tmp_path/"list.pt")


class FakeGenerator:
    "As much of S3Gen as the adapter calls."
    def embed_ref(self, audio, rate): return {"samples": len(audio), "rate": rate}
    def inference(self, ids, ref_dict): return torch.zeros(1, 960*ids.shape[1]), None


@needs_s3
def test_s3_decodes_by_a_generator_with_a_reference(s3_files, noise):
    codec = S3Codec.load(s3_files[0]/"alone.safetensors")
    codec._generator = FakeGenerator()
    reference = codec.voice(np.tile(noise, 80), 16000)
    assert reference == {"samples": 240000, "rate": 24000}
    assert codec.decode([5, 6, 7], reference).shape == (2880,)
    with pytest.raises(TTSError, match="reference"): codec.decode([5, 6, 7])
