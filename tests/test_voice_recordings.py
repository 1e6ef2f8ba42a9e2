"Which recordings a voice can be made of, and what is said of the others."
import numpy as np
import pytest
from voice_encoders import speech

from audiolab.audio import AudioError, resample, write_audio
from audiolab.voice import (
    best_half_minute, best_windows, clipped_share, read_recording, recording_quality,
    take_recording,
)

RATE = 24_000


def hiss(count, size=1., seed=0):
    return np.random.default_rng(seed).standard_normal(count).astype(np.float32)*np.float32(size)


def noisy(audio, snr):
    return audio + hiss(len(audio), np.sqrt(np.square(audio).mean())*10**(-snr/20))


def remarks(audio, rate=RATE): return take_recording(audio, rate, RATE).quality.remarks()


@pytest.mark.parametrize("write", [0, 48_000])
def test_lengths(tmp_path, write):
    audio, rate = speech(), write or RATE
    def named(name, seconds):
        sound = resample(np.tile(audio, 5)[:round(seconds*RATE)], RATE, rate)
        write_audio(tmp_path/name, np.stack([sound, sound]), rate)
        return tmp_path/name
    with pytest.raises(AudioError, match="short.wav: 0.95 s long"):
        read_recording(named("short.wav", .95), RATE)
    assert "only" in read_recording(named("two.wav", 2), RATE).quality.remarks()[0]
    assert read_recording(named("eight.wav", 8), RATE).quality.remarks() == []
    long = read_recording(named("long.wav", 34), RATE)
    assert 29.5 < len(long.audio)/RATE <= 30 and "34 s long; the 30 s" in long.quality.remarks()[0]


def test_silence_is_refused(tmp_path):
    for name, audio in {"zero.wav": np.zeros(3*RATE), "hum.wav": 1e-4*hiss(3*RATE),
                        "offset.wav": np.zeros(3*RATE) + 1e-5}.items():
        write_audio(tmp_path/name, audio, RATE)
        with pytest.raises(AudioError, match=f"{name}: silent"): read_recording(tmp_path/name, RATE)
    for bad in (np.zeros((2, RATE)), np.array([]), np.array([0, np.nan]*RATE)):
        with pytest.raises(AudioError, match="finite samples"): take_recording(bad, RATE, RATE)


@pytest.mark.parametrize("snr", [0, 8, 20, 30])
def test_noise_is_measured(snr):
    found = recording_quality(noisy(speech(), snr), RATE)
    assert abs(found.snr - snr) < 2
    assert any("noisy" in text for text in found.remarks()) == (snr < 15)


def test_noise_beside_holes_of_silence():
    audio = noisy(speech(), 10)
    gated = np.concatenate([np.zeros(4*RATE, np.float32), audio, np.zeros(4*RATE, np.float32)])
    assert abs(recording_quality(gated, RATE).snr - 10) < 2


def test_band_limits():
    audio = speech()
    for rate, wanted in ((8000, True), (16_000, False), (RATE, False)):
        found = remarks(resample(audio, RATE, rate), rate)
        assert any("muffled" in text for text in found) == wanted, (rate, found)


def test_clipping():
    audio = speech()
    for gain in (1, .1):
        found = remarks(np.clip(4*audio, -1, 1)*np.float32(gain))
        assert any("clipped" in text for text in found), found
    assert remarks(audio*np.float32(.99/abs(audio).max())) == []
    assert clipped_share(.9*np.sin(np.arange(RATE)*.05)) < 1e-3


def test_weights():
    audio = speech()
    clean = recording_quality(audio, RATE).weight
    worse = [audio[:2*RATE], noisy(audio, 5), resample(resample(audio, RATE, 8000), 8000, RATE)]
    for other in worse: assert 0 < recording_quality(other, RATE).weight < .8*clean
    assert recording_quality(hiss(3*RATE, .1), RATE).weight < .05*clean  # nobody speaks


def test_best_windows():
    assert best_windows(np.arange(10.), 3, 1) == [(6, 9)]
    assert best_windows(np.ones(12), 3, 2) == [(0, 6)]  # of equals the first
    assert best_windows(np.array([9., 0, 0, 9, 0, 0, 0, 8]), 1, 3) == [(0, 1), (3, 4), (7, 8)]
    audio = np.zeros(90*RATE, np.float32)
    spoken = np.tile(speech(), 4)[:30*RATE]
    audio[30*RATE:60*RATE] = spoken
    best = best_half_minute(audio, RATE)
    assert np.square(best).sum() > .95*np.square(spoken).sum()
    assert np.abs(np.diff(best)).max() <= np.abs(np.diff(spoken)).max()*1.01  # no clicks


def test_what_is_no_sound(tmp_path):
    for name, raw in {"letter.mp3": b"Dear Anna", "none.wav": b"", "cut.flac": b"fLaC\0\0"}.items():
        (tmp_path/name).write_bytes(raw)
        with pytest.raises(AudioError, match=name): read_recording(tmp_path/name, RATE)
    with pytest.raises((AudioError, OSError)): read_recording(tmp_path/"gone.wav", RATE)
