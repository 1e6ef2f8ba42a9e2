"Takes of `ssgs generate`: none is lost, each can be made again."
import json

import numpy as np
import pytest
from ssgs_models import noise

from audiolab.apps import main
from audiolab.audio import read_audio
from audiolab.ssgs import SpectralStateGuidedSynthesis


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
