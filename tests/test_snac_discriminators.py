"Discriminators against plain re-computations, on silence, in low precision, alone and together."
import copy

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from audiolab.snac import SnacError
from audiolab.snac import (
    BANDS, MultiPeriodDiscriminator, MultiScaleSTFTDiscriminator, PeriodDiscriminator,
    STFTDiscriminator,
)

def small_periods(legacy=False):
    return MultiPeriodDiscriminator((2, 3, 5), channels=(4, 6, 8), legacy=legacy)


def small_stft(legacy=False):
    sizes = ((256, 64, 200), (128, 32, 128)) if legacy else (256, 128)
    return MultiScaleSTFTDiscriminator(sizes, channels=2 if legacy else 4, legacy=legacy)


SMALL = {"periods": small_periods, "stft": small_stft}
family = pytest.mark.parametrize("family", SMALL)
modes = pytest.mark.parametrize("legacy", (False, True))


def noise(*shape, seed=0, kind=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=kind)


def convolve(z, kernel, bias):  # [C, T], [O, C, K], [O] -> [O, T']
    sums = [sum(np.correlate(row, w, "valid") for row, w in zip(z, weights)) for weights in kernel]
    return np.array([row + b for row, b in zip(sums, bias)])


# ---- what they compute

@pytest.mark.parametrize("period,samples", [(1, 90), (2, 97), (3, 200), (7, 7), (11, 250)])
def test_period_net_is_a_convolution_along_every_pth_sample(period, samples):
    net = PeriodDiscriminator(period, channels=(3, 4, 5)).double()
    x = noise(samples, kind=torch.float64)
    opinion, features = net(x[None, None])
    padded = np.pad(x.numpy(), (0, -samples % period), mode="reflect")
    for row in range(period):
        y, maps = padded[row::period][None], []
        for layer, step in (*zip(net.layers, (3, 3, 1)), (net.opinion, 1)):
            kernel, bias = layer.weight.detach().numpy()[:, :, 0], layer.bias.detach().numpy()
            half = kernel.shape[-1]//2
            z = np.pad(y, ((0, 0), (half, half)))
            y = convolve(z, kernel, bias)[:, ::step]
            if layer is not net.opinion:
                y = np.where(y > 0, y, .1*y)
                maps.append(y)
        assert len(maps) == len(features) == 3
        for found, wanted in zip((*features, opinion), (*maps, y)):
            np.testing.assert_allclose(found[0, :, :, row].detach(), wanted, atol=1e-12)


def test_stft_net_is_a_stack_for_each_band():
    net, x = STFTDiscriminator(128, channels=3).double(), noise(2, 1000, kind=torch.float64)
    padded = np.pad(x.numpy(), ((0, 0), (48, 48 + 24)), mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, 128, axis=1)[:, ::32]
    spectrum = np.fft.rfft(frames*(.5 - .5*np.cos(2*np.pi*np.arange(128)/128)))
    assert spectrum.shape == (2, 32, 65)  # 1000/32, rounded up
    seen = net.spectrum(x)
    as_complex = seen[:, 0] + 1j*seen[:, 1]  # the window is made in float32
    np.testing.assert_allclose(as_complex, spectrum.transpose(0, 2, 1), atol=1e-5)
    # the usual way round: time before frequency
    picture, ends, wanted = seen.transpose(2, 3), [], []
    for (low, high), stack in zip(BANDS, net.net.stacks):
        y = picture[..., int(low*65):int(high*65)]
        for layer, step in zip(stack, (1, 2, 2, 2, 1)):
            kernel = layer.weight.transpose(2, 3)
            assert kernel.shape[2:] == ((3, 3) if layer is stack[-1] else (3, 9))
            y = F.conv2d(y, kernel, layer.bias, (1, step), (1, kernel.shape[3]//2))
            y = F.leaky_relu(y, .1)
            wanted.append(y)
        ends.append(y)
    last = net.net.opinion
    opinion, features = net(x)
    assert len(features) == len(wanted) == 25
    for found, w in zip(features, wanted): torch.testing.assert_close(found, w.transpose(2, 3))
    judged = F.conv2d(torch.cat(ends, 3), last.weight.transpose(2, 3), last.bias, padding=1)
    torch.testing.assert_close(opinion, judged.transpose(2, 3))


def test_older_form_sees_magnitude_and_angle():
    net, x = STFTDiscriminator(128, 60, 100, channels=1, legacy=True), noise(2, 1000)
    window = torch.hann_window(100)
    ends = dict(center=True, pad_mode="reflect", return_complex=True)
    wanted = torch.stft(x, 128, 60, 100, window, **ends)
    torch.testing.assert_close(net.spectrum(x), torch.stack([wanted.abs(), wanted.angle()], 1))
    opinion, features = net(x)
    assert [f.shape[1] for f in features] == [1, 4, 16, 32, 32, 1] and features[-1] is opinion
    sizes = [tuple(f.shape[2:]) for f in features]
    assert sizes == [(33, 9), (17, 5), (9, 3), (5, 2), (5, 2), (5, 2)]


# ---- the published sizes

def test_sizes_and_arithmetic_of_the_defaults():
    found = {}
    with torch.device("meta"):
        nets = {"mpd": MultiPeriodDiscriminator(), "msd": MultiScaleSTFTDiscriminator(),
                "old": MultiScaleSTFTDiscriminator(legacy=True),
                "old mpd": MultiPeriodDiscriminator(legacy=True)}
        for name, net in nets.items():
            with FlopCounterMode(display=False) as count, torch.no_grad():
                outputs, features = net(torch.empty(1, 1, 24000))
            millions = round(sum(p.numel() for p in net.parameters())/1e6, 1)
            work = round(count.get_total_flops()/1e9)
            found[name] = millions, work, len(outputs), len(features[0])
    assert found == {"mpd": (41.1, 27, 5, 5), "msd": (1.4, 8, 3, 25), "old": (44.6, 51, 3, 6),
                     "old mpd": (41.1, 27, 5, 6)}


def test_what_older_settings_name_still_works():
    periods = MultiPeriodDiscriminator([2, 3], channels=[2, 2]).discriminators
    assert [n.period for n in periods] == [2, 3]
    bands = [(0., .5), (.5, 1.)]
    net = MultiScaleSTFTDiscriminator([256], bands=bands, channels=2, sample_rate=16000)
    assert len(net(noise(1, 1, 500))[1][0]) == 10
    one = STFTDiscriminator(512, 50, 240, channels=2)
    assert one(noise(1, 1000))[0].shape[-1] == 20
    old = MultiScaleSTFTDiscriminator(channels=1, legacy=True).discriminators
    found = [(n.fft_size, n.shift_size, len(n.window)) for n in old]
    assert found == [(1024, 120, 600), (2048, 240, 1200), (512, 50, 240)]


# ---- what goes in

@family
@modes
def test_both_shapes_of_clips_and_integers_refused(family, legacy):
    net, x = SMALL[family](legacy), noise(2, 600)
    for a, b in zip(net(x)[0], net(x[:, None])[0]): assert torch.equal(a, b)
    integers = torch.zeros(2, 600, dtype=torch.int64)
    stereo = x[:, None].expand(2, 2, 600)
    for bad in (x[0], stereo, x[None, :, None], x[:0], x[:, :0], integers):
        with pytest.raises(SnacError, match="discriminator takes"): net(bad)


@pytest.mark.parametrize("make,least", [
    (lambda: PeriodDiscriminator(7, (2, 2)), 7), (lambda: STFTDiscriminator(64, channels=2), 40),
    (lambda: STFTDiscriminator(64, 16, 48, channels=1, legacy=True), 32 + 1),
    (lambda: STFTDiscriminator(64, 64, channels=2), 64)])
def test_the_shortest_sound(make, least):
    net = make()
    for samples in range(least, least + 20): assert torch.isfinite(net(noise(1, samples))[0]).all()
    for samples in (1, least - 1):
        with pytest.raises(SnacError, match=rf"give at least {least}$") as e: net(noise(1, samples))
        assert isinstance(e.value, ValueError)


@pytest.mark.parametrize("make", [
    lambda: PeriodDiscriminator(0), lambda: PeriodDiscriminator(2, ()),
    lambda: STFTDiscriminator(512, 600), lambda: STFTDiscriminator(512, 100, 600),
    lambda: STFTDiscriminator(513), lambda: STFTDiscriminator(16),
    lambda: STFTDiscriminator(512, channels=0), lambda: STFTDiscriminator(512, bands=((.5, .5),))])
def test_impossible_sizes(make):
    with pytest.raises(SnacError): make()


def test_prepare():
    net, x = SMALL["stft"](), noise(3, 1, 500)*torch.tensor([1e-2, 1, 5])[:, None, None] + 1
    ready = net.prepare(x)
    torch.testing.assert_close(ready.mean(-1), torch.zeros(3, 1), atol=1e-6, rtol=0)
    torch.testing.assert_close(ready.abs().amax(-1), torch.full((3, 1), .8))
    torch.testing.assert_close(net.prepare(ready), ready, atol=1e-5, rtol=1e-5)
    for a, b in zip(net(x)[0], net(7*x + .5)[0]):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)
    assert torch.equal(SMALL["stft"](True).prepare(x), x)
    trace = net.prepare(1e-6*noise(1, 500))  # silence with a trace of hiss is not made loud
    assert float(trace.abs().max()) < .01


def half(x):
    middle = x.shape[-1]//2
    return torch.cat([x[..., :middle], torch.zeros_like(x[..., middle:])], -1)


HARD = {
    "silence": torch.zeros(2, 1, 1000), "half padded": half(noise(2, 1, 1000)),
    "constant": torch.full((2, 1, 1000), .4), "denormal": noise(2, 1, 1000)*1e-40,
    "faint": noise(2, 1, 1000)*1e-20, "loud": 1e4*noise(2, 1, 1000),
    "one click": F.one_hot(torch.tensor([[500], [999]]), 1000).float(),
}


@family
@modes
@pytest.mark.parametrize("sound", HARD)
def test_finite_on_hard_sounds(family, legacy, sound):
    net, x = SMALL[family](legacy), HARD[sound].clone().requires_grad_()
    outputs, features = net(x)
    sum(f.square().mean() for f in outputs + [m for maps in features for m in maps]).backward()
    gradients = [x.grad, *(p.grad for p in net.parameters())]
    assert all(torch.isfinite(t).all() for t in (*outputs, *gradients))


# ---- in training

@family
@modes
def test_one_by_one_is_the_same_as_all_at_once(family, legacy):
    net, x = SMALL[family](legacy), noise(2, 1, 700).requires_grad_()
    outputs, features = net(x)
    def loss(o, maps): return (1 - o).square().mean() + sum(m.abs().mean() for m in maps)
    whole = torch.autograd.grad(sum(map(loss, outputs, features)), [x, *net.parameters()])
    ready = net.prepare(x)
    leaf, found = ready.detach().requires_grad_(), []
    for critic in net.discriminators:
        slope, *slopes = torch.autograd.grad(loss(*critic(leaf)), [leaf, *critic.parameters()])
        leaf.grad = slope if leaf.grad is None else leaf.grad + slope
        found += slopes
    slope = torch.autograd.grad(ready, x, leaf.grad)[0] if ready.grad_fn else leaf.grad
    for a, b in zip(whole, [slope, *found]): torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@family
@modes
def test_bfloat16(family, legacy):
    net, x = SMALL[family](legacy), noise(2, 1, 700).requires_grad_()
    exact, _ = net(x)
    with torch.autocast("cpu", torch.bfloat16):
        outputs, features = net(x)
        ready = net.prepare(x)
    maps = [m for found in features for m in found]
    assert {t.dtype for t in (*outputs, *maps)} == {torch.bfloat16}
    assert outputs and maps and ready.dtype == torch.float32
    for a, b in zip(exact, outputs): torch.testing.assert_close(a, b.float(), atol=.05, rtol=.05)
    sum(o.float().square().mean() for o in outputs).backward()
    gradients = [p.grad for p in net.parameters() if p.grad is not None]
    assert all(torch.isfinite(g).all() for g in (x.grad, *gradients))
    # the nets have their own precision
    assert net(x.detach().bfloat16())[0][0].dtype == torch.float32


@modes
def test_spectrum_is_exact_in_low_precision(legacy):
    net, x = STFTDiscriminator(256, channels=2, legacy=legacy), noise(1, 700)
    exact = net.spectrum(x)
    with torch.autocast("cpu", torch.bfloat16): assert torch.equal(net.spectrum(x), exact)
    assert exact.dtype == torch.float32


@pytest.mark.parametrize("make", [
    lambda: PeriodDiscriminator(3, (2, 3)),
    lambda: STFTDiscriminator(16, bands=((0, .5), (.5, 1)), channels=2),
    lambda: STFTDiscriminator(16, 4, channels=1, legacy=True)])
def test_gradients(make):
    net = make().double()
    x = noise(1, 1, 24, kind=torch.float64).requires_grad_()
    def all_squares(a): return sum(f.square().sum() for f in (net(a)[0], *net(a)[1]))
    assert torch.autograd.gradcheck(all_squares, x, atol=1e-6)


@family
@modes
def test_weights_travel(family, legacy):
    net, other = SMALL[family](legacy), SMALL[family](legacy)
    other.load_state_dict(net.state_dict())
    x, twin = noise(1, 1, 600), copy.deepcopy(net)
    for a, b, c in zip(net(x)[0], other(x)[0], twin(x)[0]):
        assert torch.equal(a, b) and torch.equal(a, c)
    assert not any("window" in name for name in net.state_dict())
    weights = [name for name in net.state_dict() if not name.endswith("bias")]
    assert all("parametrizations.weight.original" in name for name in weights)
