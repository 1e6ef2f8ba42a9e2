"Changes of recordings that leave the voice alone, and that nobody's batch decides"
import numpy as np
import pytest
import torch

from audiolab.data import keyed_rng
from audiolab.voice import AugmentSpec, Change, augment, changed, draw_change, hide_parts

CLIP = np.random.default_rng(0).standard_normal(12_000).astype(np.float32)*.1
OFTEN = AugmentSpec(prob=1.)


def share_above(audio, hz, rate=24_000):
    power = abs(np.fft.rfft(audio))**2
    return power[int(hz*len(audio)/rate):].sum()/power.sum()


def test_the_key_decides_and_nothing_else():
    same = [augment(CLIP, 24_000, OFTEN, 3, 1, 7) for _ in range(2)]
    np.testing.assert_array_equal(*same)
    others = [augment(CLIP, 24_000, OFTEN, *key) for key in ((4, 1, 7), (3, 2, 7), (3, 1, 8))]
    assert all((other != same[0]).any() for other in others)


def test_nothing_happens_where_nothing_may():
    np.testing.assert_array_equal(augment(CLIP, 24_000, AugmentSpec(prob=0.), 0, 0, 0), CLIP)
    assert draw_change(AugmentSpec(prob=0.), keyed_rng(0))._replace(colour=0., dry=0.) == Change()


def test_changes_stay_within_the_settings():
    drawn = [draw_change(AugmentSpec(), keyed_rng(0, 0, n)) for n in range(400)]
    for name, low, high in (("gain", .8, 1.2), ("snr", 20, 40), ("room", .1, .5), ("tilt", -3, 3),
                            ("top", 3400, 8000)):
        usual = getattr(Change(), name)
        values = [v for v in (getattr(change, name) for change in drawn) if v != usual]
        assert 140 < len(values) < 260 and low <= min(values) and max(values) <= high
    assert 10 < sum(change.companded for change in drawn) < 100
    assert all(change.top < np.inf for change in drawn if change.companded)


@pytest.mark.parametrize("snr", [20., 40.])
@pytest.mark.parametrize("colour", [0., 1., 2.])
def test_noise_is_as_loud_as_it_says(snr, colour):
    noise = changed(CLIP, 24_000, Change(snr=snr, colour=colour), keyed_rng(1)) - CLIP
    measured = 10*np.log10((CLIP**2).mean()/(noise**2).mean())
    assert abs(measured - snr) < 1.5


@pytest.mark.parametrize("top", [3400., 7000.])
def test_a_line_ends_where_it_says(top):
    through = changed(CLIP, 24_000, Change(top=top), keyed_rng(1))
    assert share_above(through, top*1.01) < 1e-3 < share_above(CLIP, top)
    assert len(through) == len(CLIP) and through.dtype == np.float32


@pytest.mark.parametrize("length", [0, 1, 100, 24_001])
@pytest.mark.parametrize("rate", [8000, 24_000, 44_100])
def test_every_length_and_rate(length, rate):
    sound = np.resize(CLIP, length)
    for n in range(4):
        out = augment(sound, rate, OFTEN, 0, 0, n)
        assert out.shape == sound.shape and np.isfinite(out).all()


def test_silence_stays_silent():
    assert not augment(np.zeros(5000, np.float32), 24_000, OFTEN, 0, 0, 0).any()


def test_what_is_hidden_is_the_mean_and_inside():
    mel = torch.randn(8, 80, 100, generator=torch.Generator().manual_seed(0)) + 3
    mask = torch.arange(100) < torch.tensor([100, 60, 30, 8, 4, 3, 1, 100])[:, None]
    mel = mel*mask[:, None]
    out = hide_parts(mel, mask, OFTEN, 0, 0, range(8))
    hidden = (out == 0) & (mel != 0)
    assert not out[hidden].any() and (out[~hidden] == mel[~hidden]).all()
    frames = hidden.all(1).sum(1)
    assert (frames <= (mask.sum(1)//4).clamp(max=20)).all() and frames.any()
    assert hidden.flatten(1).any(1)[:3].all()
    alone = hide_parts(mel[2:3, :, :30], mask[2:3, :30], OFTEN, 0, 0, [2])
    assert (alone[0] == out[2, :, :30]).all()
    assert (hide_parts(mel, mask, AugmentSpec(prob=0.), 0, 0, range(8)) == mel).all()


@pytest.mark.parametrize("settings", [
    {"prob": 1.5}, {"snr": (40., 20.)}, {"gain": (0., 1.)}, {"room": (-.1, .5)},
    {"top": (8000., 1.)}])
def test_settings_that_cannot_be_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))): AugmentSpec(**settings)
