"Takes of `ssgs generate`: none is lost, each can be made again."
import json
import tracemalloc

import numpy as np
import pytest
from ssgs_models import RATE, noise

from audiolab.apps import main
from audiolab.audio import probe_audio, read_audio, write_audio
from audiolab.ssgs import GenerateConfig, SpectralStateGuidedSynthesis, take_blocks, write_take


@pytest.fixture(scope="module")
def model():
    return SpectralStateGuidedSynthesis(4).train(noise(2.), n_em_iterations=1)


@pytest.fixture
def generate(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model.save_checkpoint("model")
    def make(*flags): return main(["ssgs", "generate", *map(str, flags)])
    return make


def test_nothing_is_overwritten_and_every_take_can_be_made_again(generate, tmp_path, capsys):
    (tmp_path/"song.flac").write_bytes(b"years of work")
    how = "--model", "model.safetensors", "--seconds", 1, "--out", "song.flac"
    assert generate(*how) == 0
    assert (tmp_path/"song.previous-1.flac").read_bytes() == b"years of work"
    seed = json.loads((tmp_path/"song.flac.json").read_text())["seed"]
    assert f"seed {seed}" in capsys.readouterr().out
    first = read_audio("song.flac")[0]
    assert generate(*how) == 0
    assert not np.array_equal(read_audio("song.flac")[0], first)
    assert generate("--config", "song.flac.previous-1.json") == 0
    np.testing.assert_array_equal(read_audio("song.flac")[0], first)


def test_several_takes_have_their_seeds_in_their_names(generate, tmp_path):
    how = "--model", "model.safetensors", "--seconds", .5, "--out", "a/b.wav"
    assert generate(*how, "--count", 3, "--seed", 8) == 0
    assert {p.name for p in (tmp_path/"a").glob("*.wav")} == {"b-8.wav", "b-9.wav", "b-10.wav"}
    assert generate(*how, "--seed", 9) == 0
    np.testing.assert_array_equal(read_audio("a/b.wav")[0], read_audio("a/b-9.wav")[0])


def test_an_ending_that_cannot_be_written_is_told_first(generate, capsys):
    assert generate("--model", "nowhere.safetensors", "--out", "song.xyz") == 2
    assert "cannot write .xyz" in capsys.readouterr().err


def test_names_of_excitations_are_known_in_any_case(generate, tmp_path, capsys):
    how = "--model", "model.safetensors", "--seconds", .2, "--seed", 1
    for name in ("noise", "NOISE", "Noise"):
        assert generate(*how, "--out", f"{name}.wav", "--excitation-type", name) == 0
    assert len({path.read_bytes() for path in tmp_path.glob("*.wav")}) == 1
    assert json.loads((tmp_path/"NOISE.wav.json").read_text())["excitation_type"] == "noise"
    assert generate(*how, "--excitation-type", "trumpet") == 2
    assert "'glottal'" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", [np.int16, np.int32])
def test_whole_numbers_are_scaled(model, dtype):
    "All of them were zero."
    whole, full = model.generate(.5, seed=1, dtype=dtype), model.generate(.5, seed=1, dtype=float)
    np.testing.assert_allclose(whole/np.iinfo(dtype).max, full, atol=1e-4)
    with pytest.raises(ValueError, match="dtype"): model.generate(.1, dtype=np.uint8)


@pytest.mark.parametrize("wrong", [dict(temperature=np.nan), dict(variation=-1.), dict(peak=-1.),
                                   dict(variation=100.), dict(variation=np.nan)])
def test_impossible_wishes_are_refused(model, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))): model.generate(.1, **wrong)


# ---- long ones

@pytest.mark.parametrize("how", [{}, dict(fidelity=1.), dict(peak=.5), dict(sample_rate=8000)])
def test_a_take_is_the_sound_that_python_makes(model, tmp_path, how):
    config = GenerateConfig(out=str(tmp_path/"take.w64"), seconds=9., seed=4, **how)
    sound, rate = read_audio(write_take(model, config), mono=True)
    made = model.generate(9., seed=4, **how)
    made = made*min(1., .99/np.abs(made).max())
    assert rate == how.get("sample_rate", RATE) and len(sound) == 9*rate
    assert np.abs(sound - made).max() < 2**-15


def test_a_long_take_needs_no_more_memory_than_a_short_one(model, tmp_path):
    "An hour took 1.4 GB, because it was made as a whole before it was written."
    def most(seconds):
        tracemalloc.start()
        try:
            write_take(model, GenerateConfig(out=str(tmp_path/"take.wav"), seconds=seconds, seed=0))
            return tracemalloc.get_traced_memory()[1]
        finally: tracemalloc.stop()
    short = max(most(1), most(10))
    assert most(60) < short + 1e6  # 60 s in float32 are 3.8 MB
    assert probe_audio(tmp_path/"take.wav").duration == 60


def test_a_take_that_fails_leaves_the_old_one_in_place(model, tmp_path, monkeypatch):
    out = write_audio(tmp_path/"take.wav", noise(.1), RATE)
    before = out.read_bytes()
    def broken(*args):
        blocks = take_blocks(*args)
        yield from (next(blocks), next(blocks))
        assert out.read_bytes() == before  # while a part of the new one is written elsewhere
        assert sum(p.stat().st_size for p in tmp_path.iterdir() if p != out) > 2**16
        raise ZeroDivisionError
    monkeypatch.setattr("audiolab.ssgs.commands.take_blocks", broken)
    with pytest.raises(ZeroDivisionError):
        write_take(model, GenerateConfig(out=str(out), seconds=9., seed=0))
    assert [p.name for p in tmp_path.iterdir()] == ["take.wav"] and out.read_bytes() == before


def test_more_than_a_file_can_hold_is_refused_first(generate, tmp_path, capsys):
    assert generate("--model", "model.safetensors", "--seconds", 86400, "--out", "day.wav") == 2
    assert "write .w64 or .flac" in capsys.readouterr().err
    assert not (tmp_path/"day.wav").exists()


@pytest.mark.parametrize("how,text", [
    (dict(sample_rate=10**9), "at most 768000 Hz"), (dict(sample_rate=np.inf), "at most 768000"),
    (dict(duration_seconds=1e6), "a day"), (dict(duration_seconds=.001, sample_rate=1e9), "Hz"),
    (dict(duration_seconds=86400, sample_rate=768000), "ssgs generate")])
def test_what_would_fill_the_memory_is_refused(model, how, text):
    "A thousandth of a second at 1 GHz took 20 GB."
    with pytest.raises(ValueError, match=text): model.generate(**dict(duration_seconds=1) | how)
    with pytest.raises(ValueError, match="0 or more"): model.stream(seed=0).read(-1)


def test_a_stream_may_be_longer_than_the_memory(model):
    stream, samples = model.stream_of(86400, 768000, seed=0)
    assert samples == 86400*768000 and len(stream.read(1000)) == 1000


# ---- guides

def test_a_take_is_as_long_as_its_guide(model, generate, tmp_path):
    "It was filled up to whole frames."
    guide = write_audio(tmp_path/"guide.wav", noise(1.2345, 3), 22050)
    frames = probe_audio(guide).frames
    how = "--model", "model.safetensors", "--guide", guide
    assert generate(*how, "--sample-rate", 22050, "--out", "same.wav") == 0
    assert generate(*how, "--out", "other.wav") == 0
    assert probe_audio(tmp_path/"same.wav").frames == frames
    assert probe_audio(tmp_path/"other.wav").frames == round(frames*RATE/22050)
    for n, rate in ((16000, RATE), (30001, 48000)):
        made = model.generate(None, rate, path="viterbi", guide=noise(2.)[:n], seed=0)
        assert len(made) == n
