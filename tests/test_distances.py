"Distances of audiolab.measure against other implementations, recomputed definitions and known answers."
import math
import time

import numpy as np
import pytest
import torch
from scipy.signal import butter, sosfilt

from audiolab.measure import (
    MEL_BANDS, MEL_WINDOWS, MultiScaleMel, MultiScaleSTFT, log_spectral_distance,
    measure_distances, mel_cepstral_distortion, mel_distance, multi_resolution_stft_distance,
    multi_scale_stft_distance, pesq, scale_invariant_sdr, stoi, visqol,
)
from distance_sounds import RATE, needs, noise, voice

listeners = needs("pesq"), needs("pystoi")

CLEAN = voice()
HISS = CLEAN + .005*noise(len(CLEAN))
DULL = sosfilt(butter(4, 2500, fs=RATE, output="sos"), CLEAN)
BATCH = np.stack([CLEAN, CLEAN, DULL]), np.stack([HISS, DULL, HISS])

# every distance as a function of (reference, candidate, lengths)
SPECTRAL = {
    "mel": lambda a, b, n=None: mel_distance(a, b, RATE, n),
    "stft": lambda a, b, n=None: multi_scale_stft_distance(a, b, lengths=n),
    "resolutions": lambda a, b, n=None: multi_resolution_stft_distance(a, b, lengths=n),
    "log-spectral": lambda a, b, n=None: log_spectral_distance(a, b, RATE, n),
    "cepstral": lambda a, b, n=None: mel_cepstral_distortion(a, b, RATE, lengths=n),
    "si-sdr": lambda a, b, n=None: scale_invariant_sdr(a, b, n)}
HEARD = {"pesq": lambda a, b, n=None: pesq(a, b, RATE, n), "stoi": lambda a, b,
         n=None: stoi(a, b, RATE, n)}
each = pytest.mark.parametrize("name", SPECTRAL)
every = pytest.mark.parametrize(
    "name", [*SPECTRAL, *(pytest.param(k, marks=m) for k, m in zip(HEARD, listeners))])
ALL = SPECTRAL | HEARD


# ---- the definitions, recomputed with other means

def dac_mel(a, b, rate):
    librosa = pytest.importorskip("librosa")
    total = 0
    for window, bands in zip(MEL_WINDOWS, MEL_BANDS):
        filters = librosa.filters.mel(sr=rate, n_fft=window, n_mels=bands, dtype=np.float64)
        x, y = (np.log10(
            np.maximum(filters @ np.abs(librosa.stft(s, n_fft=window, hop_length=window//4,
                                                     pad_mode="reflect")), 1e-5)) for s in (a, b))
        total += np.abs(x - y).mean()
    return total


@pytest.mark.filterwarnings("ignore:Empty filters")
@pytest.mark.parametrize("rate, seconds", [(16000, 3), (24000, 1.37), (44100, 1)])
def test_mel_distance_is_the_codecs_formula_recomputed_with_librosa(rate, seconds):
    a = voice(seconds, rate)
    b = a + .003*noise(len(a))
    assert mel_distance(a, b, rate) == pytest.approx(dac_mel(a, b, rate), rel=1e-6)
    singles = (torch.tensor(x, dtype=torch.float32) for x in (a, b))
    assert float(mel_distance(*singles, rate)) == pytest.approx(dac_mel(a, b, rate), rel=1e-4)


def test_stft_distance_is_the_codecs_formula_recomputed_with_torch_stft():
    expected = 0
    for window in (2048, 512):
        a, b = (torch.stft(torch.tensor(x), window, window//4,
                           window=torch.hann_window(window, dtype=torch.float64),
                           return_complex=True).abs() for x in (CLEAN, HISS))
        expected += (a.clamp(1e-5).pow(2).log10() - b.clamp(1e-5).pow(2).log10()).abs().mean() + (
            a - b).abs().mean()
    assert multi_scale_stft_distance(CLEAN, HISS) == pytest.approx(float(expected), rel=1e-9)


def test_multi_resolution_distance_is_the_vocoders_formula_recomputed():
    a, b = (torch.tensor(x, dtype=torch.float32) for x in (CLEAN, HISS))
    total = 0
    for size, step, width in ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240)):
        window = torch.hann_window(width)
        x, y = (torch.fft.rfft(s.unfold(0, width, step)*window, size).abs().clamp(1e-4)
                for s in (a, b))
        total += (x - y).norm()/x.norm() + (x.log() - y.log()).abs().mean()
    assert multi_resolution_stft_distance(CLEAN, HISS) == pytest.approx(float(total/3), rel=1e-4)


@pytest.mark.parametrize("gain, dB", [(1, 3.7), (.01, 20), (-40, -12.5), (1, 60)])
def test_si_sdr_by_hand(gain, dB):
    s = CLEAN - CLEAN.mean()
    e = noise(len(s))
    e -= e.mean()
    e -= s*(e@s)/(s@s)
    candidate = gain*(s + e*np.sqrt((s@s)/(e@e)*10**(-dB/10)))
    assert scale_invariant_sdr(CLEAN, candidate + 3) == pytest.approx(dB, abs=1e-6)
    assert scale_invariant_sdr(s, candidate, remove_mean=False) == pytest.approx(dB, abs=1e-6)


def test_si_sdr_limits():
    assert scale_invariant_sdr(CLEAN, -3*CLEAN) == 100
    assert scale_invariant_sdr(CLEAN, 0*CLEAN) == -100
    across = np.tile([1., -1.], 50), np.tile([1., 1., -1., -1.], 25)
    assert scale_invariant_sdr(*across) == -100
    for silent in (np.zeros(100), np.full(100, .3)):
        with pytest.raises(ValueError, match="reference 1 is silent"):
            scale_invariant_sdr(np.stack([CLEAN[:100], silent]), np.stack([CLEAN[:100]]*2))


@needs("torchmetrics")
@needs("pesq")
@needs("pystoi")
@pytest.mark.filterwarnings("ignore")
def test_torchmetrics_agrees():
    from torchmetrics.functional.audio import (
        perceptual_evaluation_speech_quality, scale_invariant_signal_distortion_ratio,
        short_time_objective_intelligibility,
    )
    a, b = map(torch.tensor, BATCH)
    assert torch.allclose(scale_invariant_sdr(a, b),
                          scale_invariant_signal_distortion_ratio(b, a, zero_mean=True), atol=1e-6)
    assert torch.allclose(pesq(a, b, RATE),
                          perceptual_evaluation_speech_quality(b, a, RATE,
                                                               "wb").double(), atol=1e-6)
    assert torch.allclose(stoi(a, b, RATE),
                          short_time_objective_intelligibility(b, a, RATE).double(), atol=1e-6)


# ---- arrays, tensors, batches, lengths

@every
def test_one_value_for_each_sound_in_the_form_that_came_in(name):
    measure = ALL[name]
    values = measure(*BATCH)
    assert isinstance(values, np.ndarray) and values.dtype == np.float64 and values.shape == (3,)
    assert np.isfinite(values).all()
    singles = [measure(a, b) for a, b in zip(*BATCH)]
    assert all(type(v) is float for v in singles) and values == pytest.approx(singles, rel=1e-9)
    for kind in (torch.float64, torch.float32):
        tensors = measure(*(torch.tensor(x, dtype=kind) for x in BATCH))
        assert isinstance(tensors, torch.Tensor) and tensors.shape == (3,)
        assert tensors.numpy() == pytest.approx(values, rel=1e-9 if kind is torch.float64 else 1e-3)
    assert measure(torch.tensor(CLEAN), HISS).shape == ()
    assert measure(CLEAN.tolist(), HISS) == pytest.approx(singles[0], rel=1e-12)


@every
def test_padding_changes_nothing_where_lengths_are_given(name):
    measure, lengths = ALL[name], [len(CLEAN), 20001, 30000]
    padded = [x.copy() for x in BATCH]
    for row, n in enumerate(lengths):
        for k, x in enumerate(padded): x[row, n:] = .5*noise(len(CLEAN) - n, 7 + k)
    expected = [measure(a[:n], b[:n]) for a, b, n in zip(*BATCH, lengths)]
    assert measure(*padded, lengths) == pytest.approx(expected, rel=1e-9)
    assert measure(*map(torch.tensor, padded),
                   torch.tensor(lengths)).numpy() == pytest.approx(expected, rel=1e-9)


@every
def test_wrong_input_is_named(name):
    measure, bad = ALL[name], HISS.copy()
    bad[500] = np.nan
    for a, b, message in ((CLEAN, HISS[1:], "equal lengths, got 48000 and 47999.*sample rates differ"), (BATCH[0], BATCH[1][:2], r"\(3, 48000\) and candidate \(2, 48000\)"),
                          (CLEAN, BATCH[1], "one shape|equal"), (CLEAN, bad, "candidate holds nan at sample 500;"), (np.stack([CLEAN, CLEAN, -bad]), BATCH[1], "reference holds nan at sample 500 of item 2"),
                          (BATCH[0][None], BATCH[1][None], r"shape \(1, 3, 48000\).*average the channels"), ([], [], "0 samples"), (np.zeros((0, 9)), np.zeros((0, 9)), "0 samples"), (.5, .5, r"shape \(\)")):
        with pytest.raises(ValueError, match=message): measure(a, b)
    for lengths in ([1, 2], [0, 5, 5], [1, 2, 48001]):
        with pytest.raises(ValueError, match="one number from 1 to 48000 for each of 3"):
            measure(*BATCH, lengths)


@each
def test_short_silent_and_loud_sounds_give_numbers(name):
    measure = SPECTRAL[name]
    for n in (1, 2, 3, 17, 100, 1025):
        a, b = (CLEAN[8000:8000 + n], HISS[8000:8000 + n]) if n > 1 or name != "si-sdr" else (
            np.array([.1, .2]), np.array([.2, .1]))
        assert np.isfinite(measure(a, b)) and np.isfinite(measure(1e5*a, 1e-9*b))
    if name != "si-sdr":
        assert measure(CLEAN, CLEAN) == 0 == measure(0*CLEAN, 0*CLEAN)
        assert np.isfinite(measure(0*CLEAN, CLEAN)) and np.isfinite(measure(CLEAN, 0*CLEAN))
    pcm = (CLEAN*32767).astype(np.int16), (HISS*32767).astype(np.int16)
    assert measure(*pcm) == measure(*(x.astype(np.float64) for x in pcm))


@pytest.mark.parametrize("measure",
                         [lambda r: mel_distance(CLEAN, HISS, r),
                          lambda r: log_spectral_distance(CLEAN, HISS, r),
                          lambda r: mel_cepstral_distortion(CLEAN, HISS, r),
                                     lambda r: stoi(CLEAN, HISS, r),
                                     lambda r: visqol(CLEAN, HISS, r)])
def test_a_sample_rate_must_be_positive(measure):
    with pytest.raises(ValueError, match="sample_rate is 0"): measure(0)


def test_long_sounds_are_taken_in_blocks_with_the_same_result():
    a, b = (torch.tensor(noise(40*RATE, s), dtype=torch.float64) for s in (1, 2))
    with torch.no_grad(): blocks = MultiScaleSTFT()(a, b)
    whole = MultiScaleSTFT()(a, b.clone().requires_grad_())
    assert float(blocks) == pytest.approx(float(whole.detach()), rel=1e-12)


# ---- as losses

@pytest.mark.parametrize("loss",
                         [MultiScaleMel(RATE, (16, 64), (4, 10)),
                          MultiScaleMel(RATE, (64,), (8,), 50, 7000, magnitude_weight=.3, power=2),
                          MultiScaleSTFT((64, 16)),
                                  lambda a, b: scale_invariant_sdr(a, b)/50])
def test_gradients_are_those_of_finite_differences(loss):
    # loud: no magnitude lies at a kink
    a, b = (torch.tensor(noise((2, 100), seed)) for seed in (3, 4))
    assert torch.autograd.gradcheck(lambda x: loss(a, x), b.requires_grad_(), eps=1e-7, atol=1e-5)
    assert torch.autograd.gradcheck(lambda x: loss(x, b.detach()), a.requires_grad_(),
                                    eps=1e-7, atol=1e-5)


@pytest.mark.parametrize("loss", [MultiScaleMel(RATE), MultiScaleSTFT()])
def test_silence_and_padding_have_finite_gradients(loss):
    sound = torch.tensor(CLEAN[None, :8000], dtype=torch.float32)
    half = sound.clone()
    half[:, 4000:] = 0
    for a, b in ((sound, 0*sound), (0*sound, 0*sound), (0*sound, sound), (half, half),
                 (sound, half)):
        b = b.clone().requires_grad_()
        loss(a, b).mean().backward()
        assert torch.isfinite(b.grad).all()


def test_losses_keep_full_precision_and_their_tables():
    a, b = (torch.tensor(x, dtype=torch.float32) for x in BATCH)
    loss = MultiScaleMel(RATE)
    expected = loss(a, b)
    with torch.autocast("cpu", dtype=torch.bfloat16): assert torch.equal(loss(a, b), expected)
    assert loss(a.half(), b.half()).dtype == torch.float32
    tables = loss._scales[(a.device, torch.float32)]
    loss(a, b)
    loss(a.double(), b.double())
    assert loss._scales[(a.device, torch.float32)] is tables and len(loss._scales) == 2
    assert torch.equal(loss(a[0], b[0]).reshape(1), loss(a[:1], b[:1]))
    assert loss(a[0], b[0]).shape == ()
    with pytest.raises(ValueError, match="equal lengths"): loss(a, b[:, 1:])


@pytest.mark.parametrize("make, message",
                         [(lambda: MultiScaleSTFT(()), "windows is"),
                          (lambda: MultiScaleSTFT((30,)), "multiple of 4"),
                          (lambda: MultiScaleMel(RATE, bands=(3,)), "7 windows need"),
                                           (lambda: MultiScaleMel(RATE, f_max=9000), "end at 8000"),
                                           (lambda: MultiScaleMel(RATE, f_min=500, f_max=400), "must rise")])
def test_impossible_settings_are_named(make, message):
    with pytest.raises(ValueError, match=message): make()


def test_a_step_costs_less_than_the_plain_formula():
    a = torch.randn(4, 24000)*.1
    b = (a + .01*torch.randn(4, 24000)).requires_grad_()
    loss = MultiScaleMel(24000)
    tables = [(len(w), w, f.T) for w, f in loss._scales_for(a)]

    def plain(a, b):
        total = 0
        for n, window, filters in tables:
            x, y = ((filters @ torch.stft(s, n, n//4, window=window,
                                          return_complex=True).abs()).clamp(1e-5).log10()
                                          for s in (a, b))
            total = total + (x - y).abs().mean()
        return total

    times = {}
    for _ in range(7):
        for f in (plain, loss):
            start = time.thread_time()
            f(a, b).mean().backward()
            times.setdefault(f, []).append(time.thread_time() - start)
    ratio = np.median(times[loss])/np.median(times[plain])
    assert ratio < .9, f"{ratio:.2f}"


# ---- side by side

@needs("pesq")
@needs("pystoi")
def test_a_row_holds_every_distance():
    row = measure_distances(CLEAN, HISS, RATE)
    assert list(row) == ["mel distance", "multi-scale STFT distance", "STFT distance", "log-spectral distance (dB)", "mel-cepstral distortion (dB)", "SI-SDR (dB)", "PESQ", "STOI"]
    assert all(type(v) is float and math.isfinite(v) for v in row.values())
    assert row["STFT distance"] == multi_resolution_stft_distance(CLEAN, HISS)
    assert row["PESQ"] == pesq(CLEAN, HISS, RATE)
    assert measure_distances(torch.tensor(CLEAN), torch.tensor(HISS), RATE) == row
    short = measure_distances(CLEAN[8000:11000], HISS[8000:11000], RATE)
    assert short["PESQ"] is None and short["STOI"] is None and short["mel distance"] > 0
    assert measure_distances(0*CLEAN, CLEAN, RATE)["SI-SDR (dB)"] is None
    with pytest.raises(ValueError, match="one mono pair"): measure_distances(*BATCH, RATE)
    with pytest.raises(ValueError, match="listeners"):
        measure_distances(CLEAN, HISS, RATE, listeners=("polqa",))
    with pytest.raises(ValueError, match="nan at sample 0"):
        measure_distances(CLEAN*np.nan, HISS, RATE)
    with pytest.raises(ValueError, match="equal lengths"): measure_distances(CLEAN, HISS[1:], RATE)
