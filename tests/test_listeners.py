"PESQ, STOI and ViSQOL: the reference programs, their limits, and what a missing one says."
import sys

import numpy as np
import pytest
from scipy.signal import butter, sosfilt

from audiolab.audio import resample
from audiolab.measure.listeners import visqol_model
from audiolab.measure import (
    measure_distances, pesq, stoi, visqol,
)
from distance_sounds import RATE, needs, noise, voice

listeners = needs("pesq"), needs("pystoi")

CLEAN = voice()
HISS = CLEAN + .005*noise(len(CLEAN))
DULL = sosfilt(butter(4, 2500, fs=RATE, output="sos"), CLEAN)
BATCH = np.stack([CLEAN, CLEAN, DULL]), np.stack([HISS, DULL, HISS])


@needs("pesq")
@pytest.mark.parametrize("rate", [16000, 24000, 44100])
def test_pesq_is_the_reference_program_at_16_kHz(rate):
    from pesq import pesq as direct
    a = voice(2, rate)
    b = a + .003*noise(len(a))
    assert pesq(a, b, rate) == direct(16000, resample(a, rate, 16000), resample(b, rate, 16000), "wb")
    assert pesq(a, b, rate, band="narrow") == direct(8000, resample(a, rate, 8000),
                                                     resample(b, rate, 8000), "nb")
    assert 1 < pesq(a, b, rate) < 4 < pesq(a, a, rate) < 4.65


@needs("pystoi")
@pytest.mark.parametrize("rate", [10000, 16000, 44100])
def test_stoi_is_the_reference_program(rate):
    from pystoi import stoi as direct
    a = voice(2, rate)
    b = a + .02*noise(len(a))
    assert stoi(a, b, rate) == direct(a, b, rate)
    np.random.seed(0)
    expected = direct(a, b, rate, extended=True)
    before = np.random.get_state()[1].copy()
    assert stoi(a, b, rate, extended=True) == expected == stoi(a, b, rate, extended=True)
    assert (np.random.get_state()[1] == before).all(), "the caller's random numbers were disturbed"
    assert 0 < stoi(a, b, rate) < .97 < 1 - 1e-6 < stoi(a, a, rate)


@needs("pesq")
def test_pesq_names_what_it_cannot_measure():
    # the reference program ends the process on this
    long = np.tile(np.r_[CLEAN[:6400], np.zeros(6400)], 60)
    for a, b, message in ((long, long, "48.00 s of sound; PESQ takes 0.25 to 20 s"),
                          (CLEAN[:3999], HISS[:3999], "0.25 s of sound"), (0*CLEAN, CLEAN, "reference is silent"),
                          (CLEAN, 0*CLEAN, "candidate is silent"),
                          (CLEAN[:1], CLEAN[:1], "0.00 s")):
        with pytest.raises(ValueError, match=message): pesq(a, b, RATE)
    with pytest.raises(ValueError, match="item 1: the candidate is silent"):
        pesq(BATCH[0], BATCH[1]*[[1], [0], [1]], RATE)
    with pytest.raises(ValueError, match="at least 16000 Hz, got 8000 Hz; use band='narrow'"):
        pesq(CLEAN, HISS, 8000)
    with pytest.raises(ValueError, match="band is 'nb'"): pesq(CLEAN, HISS, 8000, band="nb")


@needs("pesq")
def test_pesq_survives_the_most_utterances_that_20_s_can_hold():
    gate = np.tile(np.r_[np.ones(3360), np.zeros(3360)], 48)[:20*RATE]
    burst = gate*.1*noise(len(gate))
    assert 1 < pesq(burst, np.roll(burst, 100) + 1e-4*noise(len(burst), 2), RATE) < 4.65


@needs("pystoi")
@pytest.mark.filterwarnings("error")
def test_stoi_names_what_it_cannot_measure():
    short = np.r_[CLEAN[:5000], np.zeros(9000)]
    for a, b, message in ((CLEAN[:5000], HISS[:5000], "0.31 s of sound"), (short, short + 1e-6, "less than 0.4 s of the reference"), (0*CLEAN, CLEAN, "reference is silent"),
                          (CLEAN, 0*CLEAN, "candidate is silent")):
        with pytest.raises(ValueError, match=message): stoi(a, b, RATE)


@needs("visqol")
@needs("ai_edge_litert")
def test_visqol_is_the_package_at_its_rates():
    from visqol import VisqolApi
    for mode, rate in (("speech", 16000), ("audio", 48000)):
        model = VisqolApi()
        model.create(mode=mode)
        a, b = (resample(x, RATE, rate) for x in (CLEAN, HISS))
        values = visqol(BATCH[0], BATCH[1], RATE, mode=mode)
        assert values[0] == pytest.approx(model.measure_from_arrays(a, b, rate).moslqo, abs=1e-9)
        assert 1 <= values.min()
        assert max(values[0], values[2]) < 4 < visqol(CLEAN, CLEAN, RATE, mode=mode) <= 5
        for x, y in ((0*CLEAN, CLEAN), (CLEAN, 0*CLEAN)):
            with pytest.raises(ValueError, match="is silent"): visqol(x, y, RATE, mode=mode)
        with pytest.raises(ValueError, match="0.50 s of sound"):
            visqol(CLEAN[:8000], CLEAN[:8000], RATE, mode=mode)


@pytest.mark.parametrize("measure, package, extra", [(pesq, "pesq", "metrics"), (stoi, "pystoi", "metrics"), (visqol, "visqol", "visqol")])
def test_a_missing_package_is_named_with_its_remedy(monkeypatch, measure, package, extra):
    visqol_model.cache_clear()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"needs the package {package}.*pip install 'audiolab\[{extra}\]'"): measure(CLEAN, HISS, RATE)
    row = measure_distances(CLEAN, HISS, RATE, listeners=(package.removeprefix("py"),)
                            if package != "pesq" else ("pesq",))
    assert list(row)[-1] == "SI-SDR (dB)"
    visqol_model.cache_clear()
