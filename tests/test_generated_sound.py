"Known answers for the measures of audiolab.measure, on sounds made here and on espeak-ng speech."
import shutil
import subprocess
import time

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from scipy.signal import lfilter

from audiolab.measure import (
    compare_table, harmonicity, log_spectral_distance, long_term_spectral_distance,
    long_term_spectrum, loudness_spread, measure, mel_cepstral_distortion, modulation_index,
    multi_resolution_stft_distance, nearest_runs, novelty, occupancy_entropy,
    plot_long_term_spectra, pole_radius, spectrogram_grid, states_used,
)

RATE, HOP = 16000, 256


def noise(seconds=10.0, seed=0, rate=RATE):
    return 0.1 * np.random.default_rng(seed).standard_normal(int(seconds * rate))


def cpu_seconds(work):
    "CPU time of the fastest of three runs"
    times = []
    for _ in range(3):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def half_hann(length, hop=HOP):
    "A ramp from silence to full in every hop, as synthesis without overlap makes it."
    return np.tile(0.5 - 0.5 * np.cos(np.pi * np.arange(hop) / hop), length // hop + 1)[:length]


def tune(seconds=10.0, seed=0):
    "Random decaying plucks of different loudness."
    random, t = np.random.default_rng(seed), np.arange(RATE) / RATE
    audio = np.zeros(int(seconds * RATE) + RATE)
    for start in range(0, int(seconds * RATE), RATE // 4):
        pitch, accent = 220 * 2 ** (random.integers(0, 13) /
                                    12), 10 ** (-random.uniform(0, 20) / 20)
        audio[start:start + RATE] += accent * sum(np.sin(2 * np.pi * pitch * k * t) *
                                                  np.exp(-5 * k * t) / k for k in range(1, 13))
    return 0.2 * audio[:int(seconds * RATE)]


# ---- long-term spectrum

@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000])
def test_spectrum_of_white_noise_is_its_density_at_every_rate(rate):
    audio = noise(10, rate=rate)
    centres, level = long_term_spectrum(audio, rate)
    assert centres[0] == 50 and centres[-1] <= min(20000, .45 * rate) < centres[-1] * 2 ** (1 / 6)
    assert np.abs(level[centres > 500] - 10 * np.log10(2 * audio.var() / rate)).max() < 1


def test_spectrum_of_a_sine_peaks_in_its_band_and_integrates_to_its_power():
    audio = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(5 * RATE) / RATE)
    centres, level = long_term_spectrum(audio, RATE)
    assert abs(np.log2(centres[level.argmax()] / 1000)) < 1 / 12
    width = centres * (2 ** (1 / 12) - 2 ** (-1 / 12))
    assert (10 ** (level / 10) * width).sum() == pytest.approx(0.125, rel=0.01)


def test_long_term_distance_of_a_known_filter():
    audio = noise(20)
    b, a = [1, -0.9], [1, 0.3]
    centres, _ = long_term_spectrum(audio, RATE)
    z = np.exp(-2j * np.pi * centres / RATE)
    gain = 20 * np.log10(np.abs((1 - 0.9 * z) / (1 + 0.3 * z)))
    assert long_term_spectral_distance(audio, lfilter(b, a, audio),
                                       RATE) == pytest.approx(gain.std(), abs=0.3)


def test_long_term_distance_ignores_level_and_order_in_time_but_not_colour():
    audio = tune()
    assert long_term_spectral_distance(audio, 1e-3 * audio, RATE) < 1e-9
    assert long_term_spectral_distance(audio, np.roll(audio, 5 * RATE), RATE) < 0.7
    assert long_term_spectral_distance(audio, noise(), RATE) > 8


def test_what_lies_below_the_floor_does_not_count():
    low = np.sin(2 * np.pi * 300 * np.arange(5 * RATE) / RATE)
    assert long_term_spectral_distance(low, low + 1e-8 * noise(5), RATE) < 0.05


# ---- hop-rate modulation

@pytest.mark.parametrize("rate, hop", [(16000, 256), (22050, 256), (44100, 512), (48000, 300)])
def test_full_buzz_reads_two_to_three_at_any_rate_and_noise_near_nothing(rate, hop):
    audio = noise(10, rate=rate)
    assert 1.8 < modulation_index(audio * half_hann(len(audio), hop), rate, rate / hop) < 3
    assert modulation_index(audio, rate, rate / hop) < 0.07


@pytest.mark.parametrize("depth", [0.05, 0.1, 0.3, 0.6, 1.0])
def test_sinusoidal_modulation_gives_the_stated_formula(depth):
    audio = noise(20)
    audio = audio * (1 + depth * np.sin(2 * np.pi * 62.5 * np.arange(len(audio)) / RATE))
    # phases are averaged over an eighth of a period,
    # which lowers the fundamental to sinc(1/8) = 97 %
    assert modulation_index(audio, RATE) == pytest.approx(4 * depth / (1 + depth ** 2 / 2),
                                                          rel=0.12, abs=0.04)


def test_frame_by_frame_synthesis_without_overlap_reads_like_a_buzz():
    "Bursts restarted in every hop, decaying, each normalised to one peak, faded in: the mistake to be found."
    random, hops = np.random.default_rng(1), []
    for _ in range(600):
        burst = random.standard_normal(HOP) * np.exp(-5 * np.arange(HOP) / HOP)
        hops.append(0.8 * burst / np.abs(burst).max())
    audio = np.concatenate(hops) * half_hann(600 * HOP)
    assert 1 < modulation_index(audio, RATE) < 3.5
    assert modulation_index(audio, RATE, 57.0) < 0.2


def test_loudness_changes_and_volume_are_not_mistaken_for_buzz():
    drift = noise() * 10 ** (np.repeat(np.random.default_rng(2).normal(0, 6, 100), RATE // 10) / 20)
    assert modulation_index(drift, RATE) < 0.1
    assert modulation_index(tune(), RATE) < 0.1
    assert modulation_index(1e-4 * drift,
                            RATE) == pytest.approx(modulation_index(drift, RATE), rel=1e-6)


def test_modulation_refuses_what_it_cannot_measure():
    with pytest.raises(ValueError, match="between 0 and 1000"):
        modulation_index(noise(1), RATE, 1001)
    with pytest.raises(ValueError, match="shorter than one period"):
        modulation_index(np.ones(200), RATE)


# ---- loudness, harmonicity

@pytest.mark.parametrize("step", [6.0, 12.0, 30.0])
def test_spread_of_two_levels_is_half_their_difference(step):
    audio = noise(20)
    audio[len(audio) // 2:] *= 10 ** (-step / 20)
    assert loudness_spread(audio, RATE) == pytest.approx(step / 2, abs=0.2)


def test_pauses_do_not_widen_the_spread_and_drones_have_none():
    audio = noise(5)
    paused = np.concatenate([audio, np.zeros(5 * RATE), 1e-5 * audio])
    assert loudness_spread(paused, RATE) == pytest.approx(loudness_spread(audio, RATE), abs=0.6)
    assert loudness_spread(np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE), RATE) < 0.05
    assert loudness_spread(np.zeros(RATE), RATE) == 0


@pytest.mark.parametrize("pitch", [62, 110, 233.08, 440, 987.77])
def test_periodic_sound_reads_one_whatever_its_pitch(pitch):
    t = np.arange(2 * RATE) / RATE
    saw = sum(np.sin(2 * np.pi * pitch * k * t) / k for k in range(1, int(6000 / pitch) + 1))
    assert harmonicity(saw, RATE) > 0.95


@pytest.mark.parametrize("share", [0.25, 0.5, 0.8])
def test_harmonicity_is_the_share_of_repeating_power(share):
    t = np.arange(10 * RATE) / RATE
    tone = np.sqrt(2) * np.sin(2 * np.pi * 200 * t)
    audio = np.sqrt(share) * tone + np.sqrt(1 - share) * 10 * noise()
    # the highest of many peaks is chosen: never too low
    assert share - 0.02 < harmonicity(audio, RATE) < share + 0.08
    assert harmonicity(noise(), RATE) < 0.2 and harmonicity(np.zeros(RATE), RATE) == 0


# ---- aligned distances

def test_aligned_distances_of_a_gain():
    audio = noise(3)
    assert log_spectral_distance(audio, 0.1 * audio, RATE) == pytest.approx(20, abs=1e-6)
    assert mel_cepstral_distortion(audio, 0.1 * audio, RATE) < 1e-9
    assert multi_resolution_stft_distance(audio,
                                          0.1 * audio) == pytest.approx(0.9 + np.log(10), rel=1e-3)


def test_cepstral_distortion_is_the_rms_of_a_smooth_difference():
    "Filters with a known log response: order 39 keeps nearly all of its variance over the mel bands, order 13 almost as much."
    audio = noise(5)
    other = lfilter([1, 0.5], [1], audio)
    mel = np.linspace(0, 2595 * np.log10(1 + RATE / 1400), 42)[1:-1]
    z = np.exp(-2j * np.pi * 700 * (10 ** (mel / 2595) - 1) / RATE)
    expected = (20 * np.log10(np.abs(1 + 0.5 * z))).std()
    assert mel_cepstral_distortion(audio, other, RATE) == pytest.approx(expected, rel=0.1)
    with pytest.raises(ValueError, match="order is 40"):
        mel_cepstral_distortion(audio, other, RATE, order=40)


@pytest.mark.parametrize("distance", [lambda a, b: log_spectral_distance(a, b, RATE), lambda a,
                                      b: mel_cepstral_distortion(a, b, RATE),
                                      multi_resolution_stft_distance])
def test_aligned_distances_grow_with_damage_and_are_zero_for_none(distance):
    audio, dirt = tune(4), noise(4)
    values = [distance(audio, audio + amount * dirt) for amount in (0, 1e-3, 1e-2, 1e-1, 1)]
    assert values[0] == 0 and all(x < y for x, y in zip(values, values[1:]))
    # a shifted copy is not aligned
    assert distance(audio, np.roll(audio, RATE)) > values[1]
    with pytest.raises(ValueError, match="equal lengths, got 64000 and 63999"):
        distance(audio, audio[1:])


# ---- states, novelty, poles

def test_occupancy():
    assert occupancy_entropy([0, 1] * 50, 34) == pytest.approx(np.log(2))
    assert occupancy_entropy(np.eye(4)[[0, 1, 2, 3]], 4) == pytest.approx(np.log(4))
    assert (states_used([7, 7, 3]), states_used([7, 7, 3], at_least=2)) == (2, 1)
    with pytest.raises(ValueError, match="n_states is 4"): occupancy_entropy([4], 4)
    with pytest.raises(ValueError, match="5 columns"): occupancy_entropy(np.ones((3, 5)), 4)
    with pytest.raises(ValueError, match="0 frames"): occupancy_entropy([], 4)


def test_nearest_runs_against_a_direct_search():
    random = np.random.default_rng(3)
    sounds = [random.standard_normal((n, 5)) * [1, 10, .1, 1, 1] for n in (90, 3, 8, 61)]
    candidate = random.standard_normal((43, 5)) * [1, 10, .1, 1, 1]
    stacked = np.concatenate(sounds)
    scale = stacked.std(0)
    expected = [min(np.sqrt((((candidate[r:r + 8] - s[t:t + 8]) / scale) ** 2).mean())
                    for s in sounds for t in range(len(s) - 7))
                for r in range(0, 36, 8)]
    distance, where = nearest_runs(candidate, sounds)
    assert distance == pytest.approx(expected, rel=1e-9)
    for r, (sound, start) in enumerate(where):
        assert np.sqrt((((candidate[8 * r:8 * r + 8] - sounds[sound][start:start + 8]) /
                         scale) ** 2).mean()) == pytest.approx(distance[r])


def test_copy_gives_zero_and_a_join_of_two_sounds_does_not():
    random = np.random.default_rng(4)
    first, second = random.standard_normal((2, 50, 6)) + 100
    assert novelty(first[11:43], [first, second]) == 0
    assert novelty(np.concatenate([first[-4:], second[:4]]), [first, second]) > 0.5
    assert novelty(np.concatenate([first[-4:], second[:4]]), np.concatenate([first, second])) == 0
    assert novelty(random.standard_normal((64, 6)) + 100,
                   [first, second]) > novelty(first[:32] + 0.1, [first, second])


def test_a_constant_feature_does_not_decide():
    features = np.random.default_rng(5).standard_normal((60, 3))
    features[:, 1] = 0.3
    assert novelty(features[:16] + [0, 5, 0], features) == 0


def test_novelty_names_what_does_not_fit():
    with pytest.raises(ValueError, match=r"candidate \(4, 3\)"):
        novelty(np.zeros((4, 3)), np.zeros((50, 3)))
    with pytest.raises(ValueError, match=r"training \[\(50, 2\)\]"):
        novelty(np.zeros((9, 3)), np.zeros((50, 2)))
    with pytest.raises(ValueError, match="shorter than run=8"):
        novelty(np.zeros((9, 3)), [np.zeros((7, 3))])


def test_novelty_stays_small_in_memory_and_time():
    random = np.random.default_rng(6)
    training, candidate = random.standard_normal((70_000, 18)), random.standard_normal((600, 18))
    direct = cpu_seconds(lambda: [((training - row)**2).sum(1).min() for row in candidate[:60]])
    seconds = cpu_seconds(lambda: novelty(candidate, training))
    assert novelty(candidate, training) > 0.5
    assert seconds < 10*direct  # no more than every distance by itself


def test_pole_radius_of_known_roots():
    random = np.random.default_rng(7)
    radii, lpc = random.uniform(0.3, 1.4, 50), []
    for radius in radii:
        angles = random.uniform(0, np.pi, 5)
        roots = np.concatenate([[radius], radius * .9 * random.random()**.5 * np.exp(1j * angles)])
        lpc.append(np.poly(np.concatenate([roots, roots[1:].conj()])).real[1:])
    assert pole_radius(np.reshape(lpc, (5, 10, 11))).ravel() == pytest.approx(radii, rel=1e-6)
    assert np.isinf(pole_radius([[0.5, np.nan], [np.inf, 0]])).all()
    assert pole_radius(np.zeros((0, 4))).shape == (0,)
    with pytest.raises(ValueError, match="at least one coefficient"): pole_radius(np.zeros((3, 0)))


# ---- all together

@pytest.mark.parametrize("audio", [np.zeros(RATE), np.full(RATE, 0.7), np.r_[1.0, np.zeros(RATE)],
                                   np.sign(np.sin(np.arange(RATE))),
                                   np.full(300, 1e-30), np.arange(-400, 400, dtype=np.int16)])
def test_odd_sounds_give_finite_numbers(audio):
    row = measure(audio, tune(1), RATE)
    assert list(row)[:4] == ["long-term distance (dB)", "modulation index", "loudness spread (dB)",
                             "harmonicity"]
    assert all(np.isfinite(value) for value in row.values())
    assert np.isfinite([log_spectral_distance(audio, audio[::-1], RATE),
                        multi_resolution_stft_distance(audio, audio[::-1]),
                        mel_cepstral_distortion(audio, audio[::-1], RATE)]).all()


def test_measures_of_one_sound_take_batches_and_tensors():
    batch = np.stack([tune(2), noise(2), drone := np.sin(np.arange(2 * RATE))])
    for measure_one in (modulation_index, loudness_spread, harmonicity):
        values = measure_one(batch, RATE)
        assert values.dtype == np.float64
        assert values.tolist() == [measure_one(row, RATE) for row in batch]
        assert measure_one(torch.tensor(batch), RATE).tolist() == values.tolist()
        assert measure_one(torch.tensor(drone), RATE) == values[2]
        with pytest.raises(ValueError, match="item 1: audio holds nan at sample 3"):
            measure_one(np.where(batch == batch[1, 3], np.nan, batch), RATE)
        with pytest.raises(ValueError, match="mono"): measure_one(batch[None], RATE)


def test_an_aligned_reference_adds_the_distances():
    audio = tune(2)
    plain, row = measure(audio + 0.1 * noise(2), audio,
                         RATE), measure(audio + 0.1 * noise(2), audio, RATE, aligned=True)
    assert list(row)[:len(plain)] == list(plain) and row.items() >= plain.items()
    assert row["log-spectral distance (dB)"] == log_spectral_distance(audio,
                                                                      audio + 0.1 * noise(2), RATE)
    assert row["mel distance"] > 0 and 5 < row["SI-SDR (dB)"] < 40
    with pytest.raises(ValueError, match="equal lengths"):
        measure(audio[1:], audio, RATE, aligned=True)
    with pytest.raises(ValueError, match="needs a reference"):
        measure(audio, sample_rate=RATE, aligned=True)


@pytest.mark.parametrize("audio, message", [(np.zeros((2, 100)), "mono"), ([], "0 samples"),
                                            ([0.1] * 500 + [np.inf], "inf at sample 500")])
def test_wrong_sounds_are_named(audio, message):
    with pytest.raises(ValueError, match=message): measure(audio, sample_rate=RATE)


def test_measuring_costs_less_than_fifty_transforms():
    audio, reference = tune(), noise()
    measure(audio, reference, RATE)
    frames = np.lib.stride_tricks.sliding_window_view(audio, 1024)[::256]
    transforms = cpu_seconds(lambda: [np.fft.rfft(frames*np.hanning(1024)) for _ in range(50)])
    seconds = cpu_seconds(lambda: measure(audio, reference, RATE))
    assert seconds < transforms


def test_table_and_pictures(tmp_path):
    table = compare_table({"a|b": {"x": 0.123456, "n": 12345}, "c": {"x": float("nan"), "text": "ok"}})
    assert table.splitlines() == ["|  | x | n | text |", "| --- | ---: | ---: | ---: |", r"| a\|b | 0.123 | 12345 | – |", "| c | nan | – | ok |"]
    assert table._repr_markdown_() == table
    sounds = dict(tune=tune(2), noise=noise(3), short=noise(.01))
    for figure, pictures in ((plot_long_term_spectra(sounds, RATE), 1),
                             (spectrogram_grid(sounds, RATE, columns=2), 3)):
        assert isinstance(figure, Figure)
        assert sum(axes.get_visible() for axes in figure.axes) == pictures
        assert figure._repr_png_()[0].startswith(b"\x89PNG")
        figure.savefig(tmp_path / "figure.png")
    assert len(plot_long_term_spectra(sounds, RATE).axes[0].lines) == 3
    with pytest.raises(ValueError, match="empty"): spectrogram_grid({}, RATE)


@pytest.mark.skipif(not shutil.which("espeak-ng"), reason="needs espeak-ng")
def test_speech_reads_like_speech(tmp_path):
    import soundfile
    text = "The quick brown fox jumps over the lazy dog, while seven wizards quietly mix boxes of dark jugs, and nobody hears a drone."
    for name, speed in (("slow", "140"), ("fast", "200")):
        subprocess.run(["espeak-ng", "-s", speed, "-w", str(tmp_path / f"{name}.wav"),
                        text], check=True)
    (slow, rate), (fast, _) = (soundfile.read(tmp_path / f"{name}.wav")
                               for name in ("slow", "fast"))
    row = measure(slow, fast, rate)
    assert row["long-term distance (dB)"] < 3 < 8 < long_term_spectral_distance(slow,
                                                                                noise(5), rate)
    assert row["modulation index"] < 0.3 and 4 < row["loudness spread (dB)"] < 12 and 0.5 < row["harmonicity"] < 0.95
    assert modulation_index(slow * half_hann(len(slow), 353), rate, rate / 353) > 1.5
