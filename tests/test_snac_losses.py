"Losses of the codec against formulas and other implementations, and on silence."
import math
import socket
from functools import partial

import numpy as np
import pytest
import torch

from audiolab.files import pack_state, unpack_state
from audiolab.measure import mel_distance
from audiolab.snac import (
    Balancer, SnacError, discriminator_loss, feature_matching_loss, generator_loss, losses,
    mel_spectrogram_loss, multi_scale_mel_loss, stft_loss,
)


def noise(*shape, seed=0, kind=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=kind)


REAL, FAKE = .3*noise(2, 1, 4096), .3*noise(2, 1, 4096, seed=1)
SPECTRAL = {
    "mel": mel_spectrogram_loss, "magnitude mel": partial(mel_spectrogram_loss, power=1.),
    "stft": stft_loss, "stft and angle": partial(stft_loss, phase_weight=.1),
    "scales": multi_scale_mel_loss,
}
each = pytest.mark.parametrize("name", SPECTRAL)


# ---- losses of the game

def test_least_squares_by_hand():
    real = [noise(2, 1, 7, 3), noise(2, 1, 5)]
    fake = [noise(2, 1, 7, 3, seed=2), noise(2, 1, 5, seed=3)]
    a, b = discriminator_loss(real, fake)
    assert float(a) == pytest.approx(sum(np.mean((x.numpy() - 1)**2) for x in real), rel=1e-6)
    assert float(b) == pytest.approx(sum(np.mean(x.numpy()**2) for x in fake), rel=1e-6)
    wanted = sum(np.mean((x.numpy() - 1)**2) for x in fake)
    assert float(generator_loss(fake)) == pytest.approx(wanted, rel=1e-6)
    alone = np.mean((real[0].numpy() - 1)**2)
    assert float(discriminator_loss(real[0], fake[0])[0]) == pytest.approx(alone, rel=1e-6)
    x = fake[0].clone().requires_grad_()
    generator_loss([x, fake[1]]).backward()
    torch.testing.assert_close(x.grad, 2*(fake[0] - 1)/fake[0].numel())


def test_feature_matching_by_hand():
    real = [[noise(2, 3, 4), noise(2, 5)], [noise(2, 6, seed=4)]]
    fake = [[noise(2, 3, 4, seed=5), noise(2, 5, seed=6)], [noise(2, 6, seed=7)]]
    pairs = [pair for a, b in zip(real, fake) for pair in zip(a, b)]
    wanted = sum(np.mean(np.abs(r.numpy() - f.numpy())) for r, f in pairs)
    assert float(feature_matching_loss(real, fake)) == pytest.approx(wanted, rel=1e-6)
    one, listed = feature_matching_loss(real[0], fake[0]), feature_matching_loss(real[:1], fake[:1])
    assert float(one) == pytest.approx(float(listed))
    r, f = real[1][0].clone().requires_grad_(), fake[1][0].clone().requires_grad_()
    feature_matching_loss([[r]], [[f]]).backward()
    assert r.grad is None
    torch.testing.assert_close(f.grad, (f - r).sign().detach()/12)


def test_low_precision_is_summed_in_float32():
    opinions = torch.full((1, 1, 40000), .7, dtype=torch.bfloat16)
    exact = float(opinions[0, 0, 0])
    assert generator_loss([opinions]).dtype == torch.float32
    assert float(generator_loss([opinions])) == pytest.approx((1 - exact)**2, rel=.01)
    matching = float(feature_matching_loss([[opinions]], [[0*opinions]]))
    assert matching == pytest.approx(exact, rel=1e-4)
    on_fake = float(discriminator_loss([opinions], [opinions.double()])[1])
    assert on_fake == pytest.approx(exact**2, rel=1e-12)


def test_lists_that_do_not_belong_together():
    one, two = [torch.zeros(2, 3)], [torch.zeros(2, 3), torch.zeros(2, 3)]
    for wrong, what in (
        (lambda: discriminator_loss(one, two), "1 outputs"),
        (lambda: discriminator_loss([], []), "empty"), (lambda: generator_loss([]), "empty"),
        (lambda: feature_matching_loss([one], [two]), "1 feature maps"),
        (lambda: feature_matching_loss([], []), "0 feature maps"),
        (lambda: feature_matching_loss([one], [[torch.zeros(1, 3)]]), "one length and number"),
    ):
        with pytest.raises(SnacError, match=what): wrong()


# ---- spectra

def frames(x, n, hop, length):  # [B, T] -> spectra [B, F, n/2+1], by NumPy
    window = np.pad(.5 - .5*np.cos(2*np.pi*np.arange(length)/length), (n - length)//2)
    padded = np.pad(np.asarray(x, np.float64), ((0, 0), (n//2, n//2)), mode="reflect")
    return np.fft.rfft(np.lib.stride_tricks.sliding_window_view(padded, n, axis=1)[:, ::hop]*window)


@pytest.mark.parametrize("rate", (16000, 24000, 44100))
@pytest.mark.parametrize("power", (1., 2.))
def test_mel_loss_as_librosa_has_it(rate, power):
    librosa = pytest.importorskip("librosa")
    filters = librosa.filters.mel(sr=rate, n_fft=1024, n_mels=80)
    spectra = [np.abs(frames(x[:, 0], 1024, 256, 1024)) for x in (REAL, FAKE)]
    a, b = (np.log(np.maximum(spectrum**power @ filters.T, 1e-8)) for spectrum in spectra)
    found = float(mel_spectrogram_loss(REAL, FAKE, rate, power=power))
    assert found == pytest.approx(np.abs(a - b).mean(), rel=1e-4)


def test_sample_rate_is_honoured():
    def tone(hz, rate): return torch.sin(2*math.pi*hz*torch.arange(4096)/rate)[None]
    for loss in (mel_spectrogram_loss, multi_scale_mel_loss):
        values = [float(loss(tone(1000, rate), tone(1500, rate), rate))
                  for rate in (16000, 24000, 44100)]
        assert len(set(values)) == 3
        usual = float(loss(REAL, FAKE))
        assert usual == float(loss(REAL, FAKE, 24000)) != float(loss(REAL, FAKE, 44100))
        with pytest.raises(SnacError, match="sample_rate"): loss(REAL, FAKE, 0)


def test_tables_are_made_once():
    mel_spectrogram_loss(REAL, FAKE, 22050)
    before = losses._filters.cache_info().misses, losses._window.cache_info().misses
    for _ in range(3): mel_spectrogram_loss(REAL, FAKE, 22050)
    assert (losses._filters.cache_info().misses, losses._window.cache_info().misses) == before
    assert losses._scales(24000) is losses._scales(24000)


def test_stft_loss_by_hand():
    magnitude = angle = 0
    for n, hop, length in ((512, 50, 240), (1024, 120, 600), (2048, 240, 1200)):
        a, b = (frames(x[:, 0], n, hop, length) for x in (REAL, FAKE))
        magnitude = magnitude + np.abs(np.abs(a) - np.abs(b)).mean()
        angle = angle + np.abs(np.angle(a) - np.angle(b)).mean()
    assert float(stft_loss(REAL, FAKE)) == pytest.approx(magnitude, rel=1e-4)
    both = float(stft_loss(REAL.double(), FAKE.double(), phase_weight=.1))
    # at 0 Hz and at the top an angle is pi or -pi
    assert both == pytest.approx(magnitude + .1*angle, rel=3e-4)
    first, others = [(512, 50, 240)], [(1024, 120, 600), (2048, 240, 1200)]
    one = stft_loss(REAL, FAKE, windows=first) + stft_loss(REAL, FAKE, windows=others)
    torch.testing.assert_close(one, stft_loss(REAL, FAKE))


def test_angles_drown_magnitudes_in_an_inaudible_difference():
    tone = torch.sin(2*math.pi*440*torch.arange(12000)/24000)[None]
    copy = tone + 1e-3*noise(1, 12000)
    magnitude = float(stft_loss(tone, copy))
    assert float(stft_loss(tone, copy, phase_weight=.1)) > 5*magnitude


def test_seven_scales_are_the_distance():
    wanted = mel_distance(REAL[:, 0], FAKE[:, 0], 44100).mean()
    torch.testing.assert_close(multi_scale_mel_loss(REAL, FAKE, 44100), wanted)


@each
def test_shapes(name):
    loss = SPECTRAL[name]
    assert torch.equal(loss(REAL, FAKE), loss(REAL[:, 0], FAKE[:, 0]))
    assert loss(REAL, FAKE).shape == ()
    assert float(loss(REAL, REAL)) == 0 < float(loss(REAL, FAKE))
    stereo = REAL.expand(2, 2, 4096)
    for a, b in (
        (REAL, FAKE[..., :-1]), (REAL, FAKE[:1]), (REAL, FAKE[:, 0]), (REAL[0, 0], FAKE[0, 0]),
        (stereo, stereo), (REAL[:0], FAKE[:0]), (REAL, FAKE.int()),
    ):
        with pytest.raises(SnacError, match="one shape|losses take") as e: loss(a, b)
        assert isinstance(e.value, ValueError)


def test_too_short():
    for loss in (stft_loss, mel_spectrogram_loss):
        with pytest.raises(SnacError, match="too short"): loss(REAL[..., :512], FAKE[..., :512])
    assert float(multi_scale_mel_loss(REAL[..., :30], FAKE[..., :30])) > 0  # continued with silence


PADDED = torch.cat([REAL[..., :2000], torch.zeros(2, 1, 2096)], -1)
SOUNDS = {
    "silence": torch.zeros(2, 1, 4096), "half padded": PADDED, "faint": REAL*1e-20,
    "denormal": REAL*1e-40, "constant": torch.full((2, 1, 4096), .3), "loud": 1e3*FAKE,
}


@each
@pytest.mark.parametrize("fake", SOUNDS)
def test_finite_on_hard_sounds(name, fake):
    for real in ("silence", "half padded", "loud"):
        x = SOUNDS[fake].clone().requires_grad_()
        value = SPECTRAL[name](SOUNDS[real], x)
        value.backward()
        assert torch.isfinite(value) and torch.isfinite(x.grad).all(), real


@each
def test_low_precision_outside_changes_nothing(name):
    x = FAKE.clone().requires_grad_()
    exact = SPECTRAL[name](REAL, x)
    with torch.autocast("cpu", torch.bfloat16): value = SPECTRAL[name](REAL, x)
    assert value.dtype == torch.float32 and torch.equal(value, exact)
    assert SPECTRAL[name](REAL, FAKE.bfloat16()).dtype == torch.float32
    assert SPECTRAL[name](REAL.double(), FAKE).dtype == torch.float64


FEW_MELS, FEW_WINDOWS = dict(n_mels=8, n_fft=32, hop_length=8), [(32, 8, 20)]


@pytest.mark.parametrize("loss", [
    partial(mel_spectrogram_loss, **FEW_MELS), partial(stft_loss, windows=FEW_WINDOWS),
    partial(mel_spectrogram_loss, **FEW_MELS, power=1.),
    partial(stft_loss, phase_weight=.1, windows=FEW_WINDOWS)])
def test_gradients(loss):
    a = noise(1, 60, kind=torch.float64)
    b = noise(1, 60, seed=1, kind=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(a, x), b, eps=1e-7, atol=1e-5)


# ---- balance

NAMES = "mel", "critics", "features"


def gradients(step, sizes=(1., 1e3, 1e-6)):
    seeds = {name: 10*step + i for i, name in enumerate(NAMES)}
    return {name: size*noise(3, 1, 50, seed=seeds[name]) for name, size in zip(NAMES, sizes)}


@pytest.mark.parametrize("per_item", (True, False))
def test_arithmetic_of_the_balance(per_item):
    weights = {"mel": 3, "critics": 1, "features": 2}
    balancer = Balancer(weights, total_norm=5, decay=.9, per_item=per_item)
    sums, counts = dict.fromkeys(weights, 0.), dict.fromkeys(weights, 0.)
    for step in range(12):
        given = gradients(step)
        if step in (4, 5): del given["critics"]  # a loss that is not there takes no share
        share, wanted = sum(weights[n] for n in given), 0
        for name, g in given.items():
            g = g.numpy().astype(np.float64)
            norm = np.mean(np.sqrt((g**2).sum((1, 2)))) if per_item else np.sqrt((g**2).sum())
            sums[name], counts[name] = .9*sums[name] + norm, .9*counts[name] + 1
            wanted = wanted + 5*weights[name]/share*g/(sums[name]/counts[name])
        np.testing.assert_allclose(balancer(given), wanted, rtol=1e-4, atol=1e-6)
    found = {name: float(value) for name, value in balancer.norms.items()}
    assert found == pytest.approx({n: sums[n]/counts[n] for n in sums}, rel=1e-5)


def test_balance_does_not_depend_on_the_size_of_a_loss():
    one, other = (Balancer(dict.fromkeys(NAMES, 1)) for _ in range(2))
    for step in range(5):
        larger = other(gradients(step, (64., 1e3, 1e-6)))
        torch.testing.assert_close(one(gradients(step)), larger, rtol=1e-4, atol=1e-6)


def test_silence_and_damage_do_not_enter_the_running_norms():
    balancer, zero = Balancer({"mel": 1, "critics": 1}), torch.zeros(3, 1, 50)
    assert not balancer({"mel": zero, "critics": zero}).any()
    a, b = noise(3, 1, 50), noise(3, 1, 50, seed=1)
    balancer({"mel": a, "critics": b})
    before = {n: float(v) for n, v in balancer.norms.items()}
    for _ in range(50): assert torch.isfinite(balancer({"mel": zero, "critics": b})).all()
    # the trainer is to see it
    assert not torch.isfinite(balancer({"mel": a/0, "critics": b})).all()
    norms = {name: float(value) for name, value in balancer.norms.items()}
    assert norms["mel"] == before["mel"]
    assert norms["critics"] == pytest.approx(before["critics"], rel=1e-5)
    total = balancer({"mel": a, "critics": zero})
    assert float(total.flatten(1).norm(dim=1).mean()) == pytest.approx(.5, rel=1e-3)


def test_balance_goes_on_after_a_stop():
    def make(): return Balancer({"mel": 3, "critics": 1, "features": 2})
    whole, first, second = make(), make(), make()
    wanted = [whole(gradients(step)) for step in range(8)]
    found = [first(gradients(step)) for step in range(4)]
    second.load_state_dict(unpack_state(*pack_state(first.state_dict())))
    found += [second(gradients(step)) for step in range(4, 8)]
    assert all(torch.equal(a, b) for a, b in zip(wanted, found))
    saved = first.state_dict()
    first(gradients(9))
    later = second.state_dict()["sums"]["mel"]
    assert torch.equal(saved["sums"]["mel"], later) is False
    assert float(saved["counts"]["mel"]) == pytest.approx(sum(.999**i for i in range(4)))
    fewer = Balancer({"mel": 1})
    fewer.load_state_dict(saved)
    assert set(fewer.norms) == {"mel"}
    fresh = make()
    fresh.load_state_dict(make().state_dict())
    assert torch.equal(fresh(gradients(0)), wanted[0])


@pytest.mark.parametrize("state", [
    {}, {"sums": {}}, None, {"sums": {"mel": torch.zeros(2)}, "counts": {"mel": 1.}},
    {"sums": {"mel": 1.}, "counts": {}}, {"sums": {"mel": "x"}, "counts": {"mel": 1}}])
def test_states_of_something_else(state):
    balancer = Balancer({"mel": 1})
    with pytest.raises(SnacError, match="no state of a balancer"): balancer.load_state_dict(state)


def test_what_a_balancer_refuses():
    for weights in ({}, {"mel": 0}, {"mel": -1}, {"mel": math.inf}, {"mel": math.nan}):
        with pytest.raises(SnacError, match="weights"): Balancer(weights)
    for extra in (dict(total_norm=0), dict(decay=1), dict(decay=-.1), dict(total_norm=math.inf)):
        with pytest.raises(SnacError, match="total_norm"): Balancer({"mel": 1}, **extra)
    balancer, g = Balancer({"mel": 1, "critics": 0}), torch.ones(1, 1, 4)
    for given, what in (({"pitch": g}, "pitch"), ({}, "at least one"),
                        ({"mel": g, "critics": torch.ones(1, 1, 5)}, "same sound"),
                        ({"critics": g}, "weight 0")):
        with pytest.raises(SnacError, match=what): balancer(given)
    assert not balancer.norms


def test_balanced_gradients_reach_a_model():
    "Losses of very different size, of equal share, through a generator of one weight per sample"
    torch.manual_seed(0)
    shift = torch.zeros(1, 1, 400, requires_grad=True)
    balancer = Balancer({"big": 1, "small": 1}, decay=.9)
    target, halves = noise(1, 1, 400), (slice(None, 200), slice(200, None))
    for _ in range(200):
        fake = 1*shift
        leaf = fake.detach().requires_grad_()
        first, second = ((leaf - target)[..., part].square().mean() for part in halves)
        parts = {"big": 1e6*first, "small": 1e-4*second}
        shift.grad = None
        fake.backward(balancer({n: torch.autograd.grad(v, leaf)[0] for n, v in parts.items()}))
        with torch.no_grad(): shift -= .2*shift.grad
    left = (shift.detach() - target)[0, 0].square()
    assert float(left[:200].mean()) < .02 and float(left[200:].mean()) < .02


def _one_of_two(rank, port, out):
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    balancer = Balancer({"mel": 1})
    balancer({"mel": torch.full((1, 1, 4), 1. + 2*rank)})  # norms 2 and 6
    out[rank] = float(balancer.norms["mel"])
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_processes_share_the_running_norms():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with torch.multiprocessing.get_context("spawn").Manager() as manager:
        out = manager.dict()
        torch.multiprocessing.spawn(_one_of_two, (port, out), nprocs=2)
        assert dict(out) == {0: 4., 1: 4.}
