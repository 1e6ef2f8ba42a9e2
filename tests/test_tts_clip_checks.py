"Clips that are fit to learn from, and those that are not."
import numpy as np
import pytest

from audiolab.tts import (
    ClipLimits, FilmSound, bandwidth_of, clip_figures, clip_issues, flat_share, letters_of,
    map_speech, odd_rates, rate_issue, wrong_text,
)

RATE = 24_000
LIMITS = ClipLimits()


def voice(seconds=2.0, level=.1, seed=0):
    "Something like speech: noise that swells and fades five times a second, with peaks."
    chance = np.random.default_rng(seed)
    sound = chance.laplace(0, level/2**.5, round(seconds*RATE))
    return sound*(.55 + .45*np.sin(2*np.pi*5*np.arange(len(sound))/RATE))


def codes_of(sound, floor=.0002, text="x"*28, limits=LIMITS):
    "Issues of a clip in a film with a room's noise."
    chance = np.random.default_rng(1)
    film = np.concatenate([np.zeros(RATE), sound, np.zeros(RATE)])
    film = film + chance.normal(0, floor, len(film))
    film = FilmSound(np.round(film*32767).clip(-32768, 32767).astype(np.int16), RATE)
    span = 1, 1 + len(sound)/RATE
    figures = clip_figures(film.part(*span), RATE, text, map_speech(film), span)
    return [issue.code for issue in clip_issues(figures, len(sound)/RATE, limits)]


def low_passed(sound, top):
    spectrum = np.fft.rfft(sound)
    spectrum[round(top*len(sound)/RATE):] = 0
    return np.fft.irfft(spectrum, len(sound))


@pytest.mark.parametrize("change, codes", [
    (lambda x: x, []), (lambda x: 0*x, ["silent"]), (lambda x: np.clip(12*x, -1, 1), ["clipped"]),
    (lambda x: np.clip(4*x, -.25, .25), ["clipped"]), (lambda x: .001*x, ["silent"]),
    (lambda x: x[:RATE//2], ["too-short", "too-fast"]),
    (lambda x: low_passed(x, 3400), ["narrow-band"]),
    (lambda x: np.tile(x, 9), ["too-long", "too-slow"])])
def test_each_fault_is_found(change, codes): assert codes_of(change(voice())) == codes


def test_noise_and_faint_voices():
    assert codes_of(voice(), floor=.06)[:1] == ["noisy"]
    assert "quiet" in codes_of(voice(level=.004), floor=.00002)


def test_limits_are_those_that_are_given():
    assert codes_of(voice(), limits=ClipLimits(min_seconds=3, max_rate=10)) == ["too-short", "too-fast"]


def test_measures_of_nothing():
    assert flat_share(np.zeros(0)) == flat_share(np.zeros(9)) == 0
    assert bandwidth_of(np.zeros(0), RATE) == bandwidth_of(np.zeros(RATE), RATE) == 0
    assert letters_of("a 12!") == 9 and letters_of("ሰላም") == 3


def test_rates_beside_those_of_the_speaker():
    rates = [15.0, 14, 16]*7
    assert not any(rate_issue(r, odd, LIMITS) for r, odd in zip(rates, odd_rates(rates)))
    odd = odd_rates([*rates, 30.0, 5.0])
    assert rate_issue(30.0, odd[-2], LIMITS).code == "too-fast"
    assert rate_issue(5.0, odd[-1], LIMITS).code == "too-slow"
    assert not odd_rates([15.0, 40.0]).any() and len(odd_rates([])) == 0


@pytest.mark.parametrize("text, heard, wrong", [
    ("Press 2 to go on.", "press two to go on", False),
    ("Press 2 to go on.", "pressed who to gone", False),
    ("Press 2 to go on.", "all circuits are busy now", True), ("Press 2 to go on.", "", True)])
def test_texts_of_another_are_told_from_slips_of_the_ear(text, heard, wrong):
    issue = wrong_text(text, heard)
    assert bool(issue) == wrong and (not wrong or issue.code == "wrong-text")
