"Frame metadata, feature spaces and nearest frames."
import numpy as np
import pytest

from audiolab.ssgs import Frames, analyse_frames, lsf_to_parcor
from audiolab.ssgs import lsf_to_lpc
from audiolab.ssgs import (
    EXTENDED_KEYS, SPACES, FeatureIndex, FrameQueryResult, build_index, feature_matrix,
    frame_metadata, query_index, similar_frames,
)

RATE = 8000


@pytest.fixture(scope="module")
def frames():
    rng, t = np.random.default_rng(0), np.arange(4000)/RATE
    chord = .6*np.sin(2*np.pi*220*t) + .3*np.sin(2*np.pi*330*t) + .2*np.sin(2*np.pi*440*t) + .05*rng.normal(size=4000)
    return [analyse_frames(x, RATE, 10, 256, 64) for x in (chord, rng.normal(size=2000)*.1*np.linspace(.1, 1, 2000))]


@pytest.fixture(scope="module")
def about(frames): return frame_metadata(frames, 256)


def test_metadata_against_plain_loops(frames, about):
    n = 0
    for file, one in enumerate(frames):
        padded, before = np.pad(one.audio, (128, 400)), None
        residual = np.pad(one.residual(), (32, 400))
        window = .5 - .5*np.cos(2*np.pi*np.arange(256)/256)
        for t in range(len(one)):
            x = padded[64*t:64*t + 256]
            magnitude, frequency = np.abs(np.fft.rfft(x*window)), np.fft.rfftfreq(256, 1/RATE)
            centroid = (magnitude*frequency).sum()/magnitude.sum()
            k = lsf_to_parcor(one.lsf[t])
            expected = dict(energy=(x**2).sum(), rms=np.sqrt((x**2).mean()), zero_crossings=sum((x[i] < 0) != (x[i + 1] < 0) for i in range(255)),
                            lpc_norm=np.linalg.norm(lsf_to_lpc(one.lsf[t])), spectral_centroid=centroid,
                            residual_rms=np.sqrt((residual[64*t:64*t + 64]**2).mean()*np.prod(1 - k**2))*np.exp(one.log_rms[t]),
                            spectral_bandwidth=np.sqrt((magnitude*(frequency - centroid)**2).sum()/magnitude.sum()),
                            dominant_frequency=frequency[magnitude.argmax()],
                            spectral_flux=0 if before is None else np.sqrt((np.maximum(magnitude - before, 0)**2).sum()),
                            file=file, time_s=t*64/RATE)
            before = magnitude
            assert set(expected) == set(about)
            for key, value in expected.items(): np.testing.assert_allclose(about[key][n], value, rtol=1e-9, atol=1e-9, err_msg=f"{key} {t}")
            n += 1
    assert n == len(about["energy"])


def test_long_recordings_are_cut_into_blocks_without_a_seam():
    x = np.random.default_rng(0).normal(size=5000*16)
    n = 5001
    rng = np.random.default_rng(1)
    lsf = np.broadcast_to(np.linspace(.3, 2.8, 4), (n, 4))
    long = Frames(x, RATE, 16, lsf, np.zeros(n), np.full(n, 100.), rng.random(n))
    about = frame_metadata([long], 64)
    for t in (0, 1, 2047, 2048, 2049, 4096, 5000):
        frame = lambda t: np.pad(x, (32, 32))[16*t:16*t + 64]*(.5 - .5*np.cos(2*np.pi*np.arange(64)/64))
        np.testing.assert_allclose(about["energy"][t], (np.pad(x, (32, 32))[16*t:16*t + 64]**2).sum())
        if t: np.testing.assert_allclose(about["spectral_flux"][t], np.linalg.norm(np.maximum(np.abs(np.fft.rfft(frame(t))) - np.abs(np.fft.rfft(frame(t - 1))), 0)))


@pytest.mark.parametrize("sound", (np.zeros(3000), np.r_[np.zeros(1000), 1, np.zeros(500)], np.ones(700), np.zeros(1)))
def test_silence_clicks_and_constants_stay_finite(sound):
    one = [analyse_frames(sound, RATE, 10, 256, 64)]
    for values in frame_metadata(one, 256).values(): assert np.isfinite(values).all()
    for space in SPACES:
        result = similar_frames(build_index(one, space), 0, k=3)
        assert np.isfinite(result.distances).all() and len(result.indices) == min(3, len(one[0]) - 1)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("normalize", (True, False))
def test_neighbours_are_those_of_brute_force(frames, space, normalize):
    index = build_index(frames, space, normalize)
    assert isinstance(index, FeatureIndex) and index.tree.n == sum(map(len, frames))
    y = feature_matrix(frames, space)
    if normalize: y = (y - y.mean(0))/np.maximum(y.std(0), 1e-9*(1 + np.abs(feature_matrix(frames, space)).max(0)))
    for n in (0, 5, 70):
        distance = np.linalg.norm(y - y[n], axis=1)
        found = query_index(index, feature_matrix(frames, space)[n], k=6)
        np.testing.assert_allclose(found.distances, np.sort(distance)[:6], atol=1e-6)
        distance[n] = np.inf
        like = similar_frames(index, n, k=6)
        assert isinstance(like, FrameQueryResult) and like.feature_space == space
        np.testing.assert_allclose(like.distances, np.sort(distance)[:6], atol=1e-6)
        np.testing.assert_allclose(like.distances, distance[like.indices], atol=1e-6)
        assert n not in like.indices and len(set(like.indices)) == 6
        for key, values in like.metadata.items(): np.testing.assert_array_equal(values, frame_metadata(frames)[key][like.indices])


def test_as_ssgs_1_was_asked(frames, about):
    index, extended, n = build_index(frames, "lpc", metadata=about), build_index(frames, "extended", metadata=about), sum(map(len, frames))
    lpc = feature_matrix(frames, "lpc")
    assert index.tree.n == n and extended.tree.m == 13 and extended.metadata_keys == EXTENDED_KEYS
    assert query_index(index, lpc[0], k=4, include_metadata=False).metadata == {}
    whole = {"lpc": lpc[3]} | {key: about[key][3] for key in EXTENDED_KEYS}
    np.testing.assert_array_equal(query_index(extended, whole, k=4).indices, query_index(extended, feature_matrix(frames, "extended", about)[3], k=4).indices)
    loud = query_index(extended, {"energy": about["energy"].max()}, k=3)
    np.testing.assert_array_equal(np.sort(loud.metadata["energy"])[::-1], np.sort(about["energy"])[:-4:-1])
    np.testing.assert_array_equal(query_index(extended, {"lpc": lpc[9]}, k=1).indices, [9])


def test_more_answers_than_frames(frames):
    few = [analyse_frames(np.random.default_rng(0).normal(size=100), RATE, 4, 256, 64)]
    index = build_index(few)
    assert len(query_index(index, np.zeros(4), k=99).indices) == len(few[0]) and len(similar_frames(index, 0, k=99).indices) == len(few[0]) - 1
    one = [Frames(np.zeros(0), RATE, 64, few[0].lsf[:1], np.zeros(1), np.ones(1), np.ones(1))]
    assert similar_frames(build_index(one), 0, k=1).indices.shape == (0,) and query_index(build_index(one), np.zeros(4), k=1).indices.tolist() == [0]


def test_equal_frames_do_not_hide_each_other():
    one = [Frames(np.zeros(0), RATE, 64, np.broadcast_to(np.linspace(.3, 2.8, 4), (50, 4)), np.zeros(50), np.ones(50), np.ones(50))]
    index = build_index(one, "lsf")
    for n in range(50):
        found = similar_frames(index, n, k=5).indices
        assert len(found) == 5 and n not in found


def test_bad_questions(frames, about):
    index, extended = build_index(frames, "lpc", metadata=about), build_index(frames, "extended", metadata=about)
    for ask, text in ((lambda: query_index(index, np.zeros(9)), "has 10 values"), (lambda: query_index(index, np.zeros((1, 10))), "shape"),
                      (lambda: query_index(index, np.full(10, np.nan)), "NaN"), (lambda: query_index(index, np.zeros(10), k=0), "k must"),
                      (lambda: query_index(index, {"lpc": np.zeros(10)}), "only the 'extended'"), (lambda: query_index(extended, {}), "got none"),
                      (lambda: query_index(extended, {"pitch": 3}), "got pitch"), (lambda: query_index(extended, {"lpc": [1, 2]}), "'lpc' has 10"),
                      (lambda: query_index(extended, {"energy": np.inf}), "NaN"), (lambda: similar_frames(index, 0, k=0), "k must"),
                      (lambda: build_index(frames, "colour"), "unknown feature space 'colour'"), (lambda: build_index([], "lpc"), "no recordings"),
                      (lambda: frame_metadata([]), "no recordings"), (lambda: feature_matrix([], "lsf"), "no recordings")):
        with pytest.raises(ValueError, match=text): ask()
    for n in (-1, index.tree.n):
        with pytest.raises(IndexError, match="no frame"): similar_frames(index, n)
