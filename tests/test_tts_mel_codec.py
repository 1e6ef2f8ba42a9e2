"The codec of mels: its network, its file, its fitting."
from pathlib import Path

import numpy as np
import pytest
import torch

from audiolab.audio import demo_corpus
from audiolab.files import CheckpointError, read_checkpoint, write_checkpoint
from audiolab.training import TrainingConfig, read_history
from audiolab.tts import (
    CodecConfig, MelCodec, MelCodecModel, MelNetwork, PairedPieces, SpeechCodec, TTSError, codes_of,
    fit_mel_codec, mel_codec_trainer, mel_difference, mel_of_codes, open_codec, remember_voices,
    to_level,
)
from audiolab.vocoder import MelFormat, MelVocoder, Vocoder, VocoderModel

MEL = MelFormat(24000, 80, 1024, 240)
SIZE = MelCodecModel(codes=32, width=32, hidden=64, coder_blocks=1, decoder_blocks=1, fine_width=16,
                     fine_blocks=1, voice=8)


def make_vocoder(mel=MEL):
    torch.manual_seed(0)
    return MelVocoder(Vocoder(mel, VocoderModel(16, 32, 1, 7, 2, 1, 1)))


@pytest.fixture(scope="module")
def codec():
    torch.manual_seed(1)
    return MelCodec(MelNetwork(80, SIZE), make_vocoder())


@pytest.fixture(scope="module")
def sound():
    t = np.arange(48000)/24000
    tone = np.sin(2*np.pi*(120+60*np.sin(3*t))*t)*(1+np.sin(11*t))
    return (.2*tone*np.random.default_rng(0).uniform(.9, 1, len(t))).astype(np.float32)


def test_it_is_a_codec_of_25_numbers_a_second(codec, sound):
    assert isinstance(codec, SpeechCodec)
    assert (codec.name, codec.rate, codec.codes, codec.sample_rate) == ("mel", 25, 32, 24000)
    ids = codec.encode(sound, 24000)
    assert ids.dtype == np.int64 and ids.shape == (50,) and 0 <= ids.min() <= ids.max() < 32
    made = codec.decode(ids)
    assert made.dtype == np.float32 and made.shape == (48000,) and np.isfinite(made).all()


@pytest.mark.parametrize("samples, count", [(1, 1), (959, 1), (960, 1), (961, 2), (24000, 25)])
def test_every_begun_number_counts(codec, sound, samples, count):
    ids = codec.encode(sound[:samples], 24000)
    assert len(ids) == count and len(codec.decode(ids)) == 960*count


def test_rates_are_converted(codec, sound):
    assert len(codec.encode(sound[::2].copy(), 12000)) == 50


def test_a_level_changes_nothing(codec, sound):
    ids = codec.encode(sound, 24000)
    for gain in (.2, .5, 2.):
        assert np.mean(codec.encode(gain*sound, 24000) == ids) > .95


def test_silence_is_no_error(codec):
    silent = codec.encode(np.zeros(24000, np.float32), 24000)
    assert len(silent) == 25 and np.isfinite(codec.voice(np.zeros(24000, np.float32), 24000)).all()


@pytest.mark.parametrize("bad, says", [
    (np.zeros((2, 100), np.float32), "mono"), (np.zeros(0, np.float32), "not empty"),
    (np.full(100, np.nan, np.float32), "finite"), (np.zeros(100, np.int16), "int16")])
def test_what_is_no_sound_is_refused(codec, bad, says):
    for take in (codec.encode, codec.voice):
        with pytest.raises(TTSError, match=says): take(bad, 24000)


@pytest.mark.parametrize("ids, says", [
    ([32], "32 at 0"), ([3, -1], "-1 at 1"), ([], "n at least 1"), ([.5], "whole"),
    ([[1, 2]], r"shape \[n\]")])
def test_what_are_no_numbers_is_refused(codec, ids, says):
    with pytest.raises(TTSError, match=says): codec.decode(ids)


def test_a_reference_matters_and_must_be_one(codec, sound):
    ids = codec.encode(sound, 24000)
    one = codec.voice(sound, 24000)
    assert one.shape == (8,) and one.dtype == np.float32
    changed = (codec.decode_mel(ids, one)-codec.decode_mel(ids, -one)).abs().max()
    assert changed > 1e-3
    with pytest.raises(TTSError, match="voice"): codec.decode(ids, sound)
    with pytest.raises(TTSError, match="finite"): codec.decode(ids, one*np.nan)


def test_a_long_recording_in_pieces_has_the_same_numbers(codec, sound, monkeypatch):
    long = np.tile(sound, 10)
    whole = codec.encode(long, 24000)
    made = codec.decode_mel(whole)
    monkeypatch.setattr("audiolab.tts.mel_codec._PIECE", 130)
    assert np.array_equal(codec.encode(long, 24000), whole)
    assert torch.allclose(codec.decode_mel(whole), made, atol=1e-4)


def test_batches_do_not_matter(codec, sound):
    mel = codec.spectrogram(sound, 24000)
    other = torch.randn_like(mel)-4
    both = codes_of(codec.net, torch.cat([mel, other]))
    assert torch.equal(both[0], codes_of(codec.net, mel)[0])
    voices = torch.randn(2, 8)
    drawn = mel_of_codes(codec.net, both, voices)
    alone = mel_of_codes(codec.net, both[:1], voices[:1])
    assert torch.allclose(drawn[0], alone[0], atol=1e-4)


def test_the_file_holds_all_and_opens_by_address(codec, sound, tmp_path):
    codec.save(tmp_path/"codec.safetensors")
    again = open_codec(f"mel:{tmp_path/'codec.safetensors'}")
    ids, voice = codec.encode(sound, 24000), codec.voice(sound, 24000)
    assert np.array_equal(again.encode(sound, 24000), ids)
    assert np.array_equal(again.decode(ids, voice), codec.decode(ids, voice))
    assert again.fingerprint() == codec.fingerprint()
    vocoder = MelVocoder.load(tmp_path/"codec.safetensors")
    assert vocoder.mel == MEL


def test_the_fingerprint_is_of_weights_and_sizes(codec):
    before = codec.fingerprint()
    with torch.no_grad(): codec.net.coder.stacked.bias[0] += 1
    assert codec.fingerprint() != before
    with torch.no_grad(): codec.net.coder.stacked.bias[0] -= 1


def changed_file(codec, path, change):
    codec.save(path)
    tensors, notes = read_checkpoint(path)
    change(tensors)
    write_checkpoint(path, tensors, {"config": notes["config"]})
    return path


@pytest.mark.parametrize("change, says", [
    (lambda t: t.pop("codec.coder.stacked.bias"), "coder.stacked.bias is missing"),
    (lambda t: t.update({"codec.extra": np.zeros(1, np.float32)}), "extra is not of this"),
    (lambda t: t.update({"codec.coder.stacked.bias": np.zeros(3, np.float32)}), "shape"),
    (lambda t: t.update({"codec.coder.stacked.bias": np.full(32, np.inf, np.float32)}), "finite")])
def test_a_file_of_something_else_is_refused(codec, tmp_path, change, says):
    path = changed_file(codec, tmp_path/"bad.safetensors", change)
    with pytest.raises(CheckpointError, match=says): MelCodec.load(path)


def test_a_damaged_file_is_refused(codec, tmp_path):
    path = codec.save(tmp_path/"codec.safetensors")
    data = bytearray(Path(path).read_bytes())
    data[-20] ^= 1
    Path(path).write_bytes(data)
    with pytest.raises(CheckpointError): MelCodec.load(path)


def test_networks_that_do_not_fit_are_refused():
    with pytest.raises(TTSError, match="64 bands"): MelCodec(MelNetwork(64, SIZE), make_vocoder())
    for wrong in ({"codes": 0}, {"frames": 99}, {"width": 7.5}):
        with pytest.raises(TTSError, match=next(iter(wrong))): MelCodecModel(**wrong)


def test_levels_are_brought_together_and_silence_ends():
    mel = torch.randn(2, 80, 40)-3
    low = to_level(mel-2)
    assert torch.allclose(low, to_level(mel), atol=1e-4) and low.min() >= -9
    assert float(mel_difference(mel, mel)) == 0


def test_the_usual_voice_is_somebodys():
    net, voices = MelNetwork(80, SIZE), torch.randn(5, 8)
    remember_voices(net, voices)
    assert any(torch.equal(net.usual_voice, v) for v in voices)


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speech")
    demo_corpus(folder/"sounds", kind="instruments", seconds=20, sample_rate=24000)
    make_vocoder().save(folder/"vocoder.safetensors")
    return folder


def config_for(speech, output, steps=6, **changes):
    training = TrainingConfig(steps=steps, batch_size=2, device="cpu", log_every=1, warmup=0.,
                              validate_every="3 steps", sample_every="never", save_every="2 steps",
                              best_metric="mel_error")
    return CodecConfig((str(speech/"sounds"),), str(speech/"vocoder.safetensors"),
                       output=str(output), validation=.3, segment_seconds=.5, model=SIZE,
                       training=training, **changes)


def final(folder): return read_checkpoint(Path(folder)/"model_final.safetensors")[0]


def losses(folder):
    return [row["values"]["loss"] for row in read_history(folder) if row["kind"] == "log"]


def test_a_run_stopped_and_taken_up_is_the_same_to_the_bit(speech, tmp_path):
    whole = fit_mel_codec(config_for(speech, tmp_path/"whole"))
    trainer = mel_codec_trainer(config_for(speech, tmp_path/"broken"))
    trainer.listeners.append(lambda event: event.step >= 3 and trainer.control.stop())
    assert (whole.state, trainer.fit().state) == ("completed", "stopped")
    second = fit_mel_codec(config_for(speech, tmp_path/"broken", resume="auto"))
    assert second.state == "completed"
    one, two = final(tmp_path/"whole"), final(tmp_path/"broken")
    assert one.keys() == two.keys() and all(np.array_equal(one[k], two[k]) for k in one)
    assert losses(tmp_path/"whole") == losses(tmp_path/"broken")


def test_a_fitted_codec_opens_with_its_vocoder(speech, tmp_path, sound):
    assert fit_mel_codec(config_for(speech, tmp_path/"run", steps=2)).state == "completed"
    codec = open_codec(f"mel:{tmp_path/'run'/'model_final.safetensors'}")
    assert len(codec.decode(codec.encode(sound, 24000))) == 48000
    assert float(codec.net.usual_voice.abs().sum()) > 0


def test_lessons_are_two_places_of_one_clip(speech):
    clips = config_for(speech, "unused").clips()["train"]
    pairs = PairedPieces(clips, 24000, .5, seed=3)
    first = pairs.item(0)
    assert first["audio"].shape == first["reference"].shape == (12000,)
    assert not np.array_equal(first["audio"], first["reference"])
    assert np.array_equal(pairs.item(0)["reference"], first["reference"])
    assert not np.array_equal(pairs.item(0, epoch=1)["audio"], first["audio"])


def test_what_cannot_be_learnt_from_is_said_at_once(speech, tmp_path):
    with pytest.raises(TTSError, match="no folders"): CodecConfig().clips()
    with pytest.raises(TTSError, match="vocoder train"): CodecConfig(("x",)).open_vocoder()
    empty = tmp_path/"empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="empty"): CodecConfig((str(empty),)).clips()
