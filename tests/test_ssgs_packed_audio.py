"Packed audio: exact where it can be, small, and suspicious."
import io
import json

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from audiolab.files import CheckpointError
from audiolab.ssgs import lattice_synthesis, lsf_to_parcor, pack_audio, unpack_audio


def speechlike(n=40_000, seed=0):
    "Pulses and noise through a resonance, with pauses."
    rng = np.random.default_rng(seed)
    source = (rng.random(n) < .01)*8. + .02*rng.normal(size=n)
    lsf = np.linspace(.15, 3, 13)[:12] + .05*np.sin(np.arange(12))
    lsf = np.broadcast_to(lsf, (n//250 + 1, 12))
    loudness = np.log(.05) + 1.5*np.sin(np.arange(n//250 + 1)/9)
    x = lattice_synthesis(source[:n//250*250], lsf_to_parcor(lsf), loudness, 250)
    return (.5*x/np.abs(x).max()).astype(np.float32)


def test_sixteen_bit_audio_is_exact():
    x = np.round(speechlike()*2**15).astype(np.float32)/2**15
    x[:2] = -1, (2**15 - 1)/2**15
    sounds = [x, x[:1], x[:0], x[::-1]]
    tensors, table = pack_audio(sounds, 16000)
    assert [row["bits"] for row in table] == [16]*4
    assert all(t.dtype == np.uint8 for t in tensors.values())
    for a, b in zip(unpack_audio(tensors, json.loads(json.dumps(table))), sounds):
        assert a.dtype == np.float32
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("peak", (1e-4, .3, 1 - 2**-24, 1., 1 + 2**-23, 2., 3.7, 1e6, 1e20))
def test_other_audio_is_within_24_bits(peak):
    x = speechlike()
    x = (x/np.abs(x).max()*peak).astype(np.float32)
    tensors, table = pack_audio([x], 44100)
    scale = 2.**table[0]["scale"]
    assert scale <= max(1, 2*peak*(1 + 1e-6)) and table[0]["bits"] == 24
    y, = unpack_audio(tensors, table)
    assert np.abs(y.astype(float) - x).max() <= scale*2**-24 + np.abs(x).max()*2.**-24


@settings(max_examples=40)
@given(st.lists(st.floats(-1e10, 1e10, width=32), max_size=40))
def test_any_waveform_is_packed(values):
    x = np.array(values, np.float32)
    y, = unpack_audio(*pack_audio([x], 8000))
    assert len(x) == len(y)
    error, peak = (np.abs(o).max(initial=0) for o in (x.astype(float) - y, x))
    assert error <= 2**-23*max(1, 2*peak)


def test_packed_audio_is_fifty_times_smaller():
    for x in (speechlike(), np.round(speechlike()*2**15).astype(np.float32)/2**15):
        tensors, _ = pack_audio([x], 16000)
        assert len(x)/256*5*5400/sum(t.nbytes for t in tensors.values()) > 50


def test_pack_refuses():
    for bad in (np.zeros((2, 10)), np.array([np.nan]), np.array([np.inf]), np.array([1e35])):
        with pytest.raises(ValueError, match="recording 1"): pack_audio([np.zeros(3), bad], 16000)


def test_damaged_streams_are_noticed():
    tensors, table = pack_audio([np.zeros(10), speechlike(5000)], 16000)
    good, rng = tensors["audio.00001"], np.random.default_rng(0)
    for n in range(150):
        bad = good.copy()
        if n % 5: bad[rng.integers(42 if n % 2 else 300, len(bad))] ^= 1 << rng.integers(8)
        else: bad = bad[:rng.integers(len(bad))]
        try: _, y = unpack_audio(tensors | {"audio.00001": bad}, table)
        except CheckpointError as error: assert "recording 1" in str(error)
        else:  # a byte that means nothing, such as a comment
            np.testing.assert_array_equal(y, unpack_audio(tensors, table)[1])


LIES = (
    *({"samples": n} for n in (4999, 10**12, -1, 5000., True)), *({"bits": n} for n in (16, 32)),
    *({"scale": n} for n in (-5, 5000, "1")), *({"tensor": name} for name in ("other", None)),
)


@pytest.mark.parametrize("row", LIES)
def test_lying_tables_are_noticed(row):
    tensors, table = pack_audio([np.zeros(10), speechlike(5000)], 16000)
    lying = [table[0], table[1] | row]
    with pytest.raises(CheckpointError, match="recording 1"): unpack_audio(tensors, lying)


def test_other_lies():
    tensors, table = pack_audio([speechlike(5000)], 16000)
    for bad in (None, {}, [None], [[]], [{}], ["x"]):
        with pytest.raises(CheckpointError): unpack_audio(tensors, bad)
    for bad in (tensors["audio.00000"].astype(float), tensors["audio.00000"][None], None):
        with pytest.raises(CheckpointError, match="recording 0"):
            unpack_audio({"audio.00000": bad}, table)
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros((5000, 2)), 16000, format="FLAC", subtype="PCM_24")
    stereo = {"audio.00000": np.frombuffer(buffer.getvalue(), np.uint8)}
    with pytest.raises(CheckpointError, match="2 channels"): unpack_audio(stereo, table)
    with pytest.raises(CheckpointError, match="max_samples"):
        unpack_audio(tensors, table, max_samples=4000)


def test_a_long_silence_costs_little():
    long = np.zeros(10_000_000, np.float32)  # a quiet hour costs next to nothing, in memory too
    tensors, table = pack_audio([long], 16000)
    assert tensors["audio.00000"].nbytes < 100_000
    np.testing.assert_array_equal(unpack_audio(tensors, table)[0], long)
