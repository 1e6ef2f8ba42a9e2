"Frame metadata, feature spaces and nearest frames."
import numpy as np
import pytest

from audiolab.ssgs import (
    EXTENDED_KEYS, SPACES, FeatureIndex, FrameQueryResult, Frames, analyse_frames, build_index,
    feature_matrix, frame_metadata, lsf_to_lpc, lsf_to_parcor, query_index, similar_frames,
)

RATE = 8000


@pytest.fixture(scope="module")
def frames():
    rng, t = np.random.default_rng(0), np.arange(4000)/RATE
    chord = sum(level*np.sin(2*np.pi*f0*t) for level, f0 in ((.6, 220), (.3, 330), (.2, 440)))
    chord = chord + .05*rng.normal(size=4000)
    hiss = rng.normal(size=2000)*.1*np.linspace(.1, 1, 2000)
    return [analyse_frames(x, RATE, 10, 256, 64) for x in (chord, hiss)]


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
            power = (residual[64*t:64*t + 64]**2).mean()*np.prod(1 - k**2)
            spread = (magnitude*(frequency - centroid)**2).sum()/magnitude.sum()
            rise = np.maximum(magnitude - (magnitude if before is None else before), 0)
            expected = {
                "energy": (x**2).sum(), "rms": np.sqrt((x**2).mean()),
                "zero_crossings": sum((x[i] < 0) != (x[i + 1] < 0) for i in range(255)),
                "lpc_norm": np.linalg.norm(lsf_to_lpc(one.lsf[t])), "spectral_centroid": centroid,
                "residual_rms": np.sqrt(power)*np.exp(one.log_rms[t]),
                "spectral_bandwidth": np.sqrt(spread),
                "dominant_frequency": frequency[magnitude.argmax()],
                "spectral_flux": np.sqrt((rise**2).sum()), "file": file, "time_s": t*64/RATE,
            }
            before = magnitude
            assert set(expected) == set(about)
            for key, value in expected.items():
                assert about[key][n] == pytest.approx(value, rel=1e-9, abs=1e-9), (key, t)
            n += 1
    assert n == len(about["energy"])


def test_long_recordings_are_cut_into_blocks_without_a_seam():
    x = np.random.default_rng(0).normal(size=5000*16)
    n = 5001
    rng = np.random.default_rng(1)
    lsf = np.broadcast_to(np.linspace(.3, 2.8, 4), (n, 4))
    long = Frames(x, RATE, 16, lsf, np.zeros(n), np.full(n, 100.), rng.random(n))
    about = frame_metadata([long], 64)
    window, padded = .5 - .5*np.cos(2*np.pi*np.arange(64)/64), np.pad(x, (32, 32))

    def frame(t): return padded[16*t:16*t + 64]
    def magnitude(t): return np.abs(np.fft.rfft(frame(t)*window))
    for t in (0, 1, 2047, 2048, 2049, 4096, 5000):
        np.testing.assert_allclose(about["energy"][t], (frame(t)**2).sum())
        if t == 0: continue
        rise = np.maximum(magnitude(t) - magnitude(t - 1), 0)
        np.testing.assert_allclose(about["spectral_flux"][t], np.linalg.norm(rise))


CLICK = np.r_[np.zeros(1000), 1, np.zeros(500)]


@pytest.mark.parametrize("sound", (np.zeros(3000), CLICK, np.ones(700), np.zeros(1)))
def test_silence_clicks_and_constants_stay_finite(sound):
    one = [analyse_frames(sound, RATE, 10, 256, 64)]
    for values in frame_metadata(one, 256).values(): assert np.isfinite(values).all()
    for space in SPACES:
        result = similar_frames(build_index(one, space), 0, k=3)
        assert np.isfinite(result.distances).all()
        assert len(result.indices) == min(3, len(one[0]) - 1)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("normalize", (True, False))
def test_neighbours_are_those_of_brute_force(frames, space, normalize):
    index = build_index(frames, space, normalize)
    assert isinstance(index, FeatureIndex) and index.tree.n == sum(map(len, frames))
    y = feature_matrix(frames, space)
    if normalize: y = (y - y.mean(0))/np.maximum(y.std(0), 1e-9*(1 + np.abs(y).max(0)))
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
        for key, values in like.metadata.items():
            np.testing.assert_array_equal(values, frame_metadata(frames)[key][like.indices])


def test_as_ssgs_1_was_asked(frames, about):
    index, extended = (build_index(frames, o, metadata=about) for o in ("lpc", "extended"))
    lpc = feature_matrix(frames, "lpc")
    assert index.tree.n == sum(map(len, frames)) and extended.tree.m == 13
    assert extended.metadata_keys == EXTENDED_KEYS
    assert query_index(index, lpc[0], k=4, include_metadata=False).metadata == {}
    whole = {"lpc": lpc[3]} | {key: about[key][3] for key in EXTENDED_KEYS}
    row = feature_matrix(frames, "extended", about)[3]
    by_name, by_row = (query_index(extended, o, k=4).indices for o in (whole, row))
    np.testing.assert_array_equal(by_name, by_row)
    loud = query_index(extended, {"energy": about["energy"].max()}, k=3).metadata["energy"]
    np.testing.assert_array_equal(np.sort(loud)[::-1], np.sort(about["energy"])[:-4:-1])
    np.testing.assert_array_equal(query_index(extended, {"lpc": lpc[9]}, k=1).indices, [9])


def test_more_answers_than_frames(frames):
    few = [analyse_frames(np.random.default_rng(0).normal(size=100), RATE, 4, 256, 64)]
    index = build_index(few)
    assert len(query_index(index, np.zeros(4), k=99).indices) == len(few[0])
    assert len(similar_frames(index, 0, k=99).indices) == len(few[0]) - 1
    one = [Frames(np.zeros(0), RATE, 64, few[0].lsf[:1], np.zeros(1), np.ones(1), np.ones(1))]
    assert similar_frames(build_index(one), 0, k=1).indices.shape == (0,)
    assert query_index(build_index(one), np.zeros(4), k=1).indices.tolist() == [0]


def test_equal_frames_do_not_hide_each_other():
    lsf = np.broadcast_to(np.linspace(.3, 2.8, 4), (50, 4))
    one = [Frames(np.zeros(0), RATE, 64, lsf, np.zeros(50), np.ones(50), np.ones(50))]
    index = build_index(one, "lsf")
    for n in range(50):
        found = similar_frames(index, n, k=5).indices
        assert len(found) == 5 and n not in found


def test_bad_questions(frames, about):
    index, extended = (build_index(frames, o, metadata=about) for o in ("lpc", "extended"))
    for query, text in (
        (np.zeros(9), "has 10 values"), (np.zeros((1, 10)), "shape"), (np.full(10, np.nan), "NaN"),
        ({"lpc": np.zeros(10)}, "only the 'extended'"),
    ):
        with pytest.raises(ValueError, match=text): query_index(index, query)
    for query, text in (
        ({}, "got none"), ({"pitch": 3}, "got pitch"), ({"lpc": [1, 2]}, "'lpc' has 10"),
        ({"energy": np.inf}, "NaN"),
    ):
        with pytest.raises(ValueError, match=text): query_index(extended, query)
    for ask, text in (
        (lambda: query_index(index, np.zeros(10), k=0), "k must"),
        (lambda: similar_frames(index, 0, k=0), "k must"),
        (lambda: build_index(frames, "colour"), "unknown feature space 'colour'"),
        (lambda: build_index([], "lpc"), "no recordings"),
        (lambda: frame_metadata([]), "no recordings"),
        (lambda: feature_matrix([], "lsf"), "no recordings"),
    ):
        with pytest.raises(ValueError, match=text): ask()
    for n in (-1, index.tree.n):
        with pytest.raises(IndexError, match="no frame"): similar_frames(index, n)
