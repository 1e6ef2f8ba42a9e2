"Randomness with an address, splits and crops: repeatable in every process, exact to the sample."
import pickle

import numpy as np
import pytest
from data_sounds import clip_of, fill_folder, sound

from audiolab.audio import AudioError, read_audio, resample, write_audio
from audiolab.data import (
    AudioFiles, Clip, ClipSource, DataError, Segments, WholeClips, keyed_rng, scan_audio,
    split_clips,
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    "Four files of three singers, as the working directory"
    monkeypatch.chdir(tmp_path)
    return fill_folder(tmp_path)


# --- keyed randomness

def test_keyed_rng_is_a_function_of_its_key():
    np.random.seed(1)
    before = np.random.get_state()[1].tolist()
    keys = [(0,), (0, 0), (0, 0, 0), (1, 2), (12,), (2, 1), (-1, 2), (2**70, 1)]
    draws = {key: keyed_rng(*key).random() for key in keys}
    assert len(set(draws.values())) == len(draws)
    assert draws[2**70, 1] == keyed_rng(2**70, 1).random()
    assert np.random.get_state()[1].tolist() == before
    raw = keyed_rng(3, 1, 4).bit_generator.random_raw(2).tolist()
    assert raw == [13015094477011307239, 2557958173002760023]  # on every machine, in every version


# --- splits

class Names(ClipSource):
    "Clips without sound"
    def __init__(self, sources): self.sources = sources
    def __len__(self): return len(self.sources)
    def clip(self, index): return Clip(f"{index}", None, 16_000, 1, 16_000, self.sources[index])

    def read(self, index, start=0, frames=None):
        return np.zeros((1, self.checked_range(index, start, frames)[1]), np.float32)


def sources(part): return {part.clip(i).source for i in range(len(part))}


def sides(parts): return {source: name for name, part in parts.items() for source in sources(part)}


@pytest.mark.parametrize("seed", range(5))
def test_splits_do_not_leak_and_stay(seed):
    names = [f"speaker {i % 200}" for i in range(1000)]
    parts = split_clips(Names(names), validation=0.2, test=0.1, seed=seed)
    assert sum(map(len, parts.values())) == 1000 and len(sides(parts)) == 200
    for a in parts:
        for b in parts:
            if a != b: assert not sources(parts[a]) & sources(parts[b])
    assert abs(len(parts["validation"])/1000 - 0.2) < 0.1
    assert abs(len(parts["test"])/1000 - 0.1) < 0.1
    added = Names(["new"]*3 + names[::-1] + [f"later {i}" for i in range(300)])
    more = sides(split_clips(added, validation=0.2, test=0.1, seed=seed))
    assert all(more[name] == side for name, side in sides(parts).items())


def sizes(parts): return {name: len(part) for name, part in parts.items()}


def test_small_splits():
    assert set(split_clips(Names(["a", "b"]), validation=0)) == {"train"}
    for seed in range(20):
        parts = split_clips(Names(["a", "b", "c"]), validation=0.01, test=0.01, seed=seed)
        assert [len(parts[name]) for name in ("train", "validation", "test")] == [1, 1, 1]
        assert sizes(split_clips(Names(["", ""]), seed=seed)) == {"train": 1, "validation": 1}
    with pytest.raises(DataError, match="1 sources cannot be split into 2 parts"):
        split_clips(Names(["a", "a"]))
    with pytest.raises(DataError, match="train part would be empty"):
        split_clips(Names(["a", "b"]), validation=0.999999)
    for bad in ((1.0, 0), (0.5, 0.5), (-0.1, 0), (float("nan"), 0)):
        with pytest.raises(DataError, match="shares"): split_clips(Names(["a", "b"]), *bad)


# --- crops

RATES = [(44_100, 24_000), (48_000, 44_100), (16_000, 24_000), (22_050, 16_000), (8000, 44_100),
         (96_000, 16_000), (16_000, 16_000)]


@pytest.mark.parametrize("rate,target", RATES)
def test_a_crop_equals_the_crop_of_the_whole(tmp_path, rate, target):
    path, length = tmp_path/"a.wav", round(0.4*target)
    write_audio(path, sound(2.3, rate, 2), rate, subtype="FLOAT")
    files, whole = AudioFiles([clip_of(path)]), read_audio(path, sample_rate=target)[0]
    for epoch in range(8):
        item = Segments(files, target, 0.4, seed=1, mono=False).item(0, epoch)
        assert item["audio"].dtype == np.float32 and item["audio"].shape == (2, length)
        assert item["length"] == length
        assert abs(item["audio"] - whole[:, item["start"]:item["start"] + length]).max() < 1e-4
    mono = read_audio(path, sample_rate=target, mono=True)[0]
    pieces = Segments(files, target, 0.4, placement="grid")
    joined = np.concatenate([item["audio"][:item["length"]]
                             for item in map(pieces.item, range(len(pieces)))])
    assert len(pieces) == 6 and len(mono) - len(joined) in (0, 1)
    assert abs(joined - mono[:len(joined)]).max() < 1e-4
    item = Segments(files, target, 0.4, placement="center").item(0)
    assert abs(item["start"] + item["length"]/2 - len(mono)/2) < 2


@pytest.mark.parametrize("frames", [1, 2, 100, 239, 240, 241, 12_345])
def test_the_last_sample(tmp_path, frames):
    path = tmp_path/"a.wav"
    for rate, target in ((48_000, 44_100), (44_100, 8000), (8000, 48_000)):
        write_audio(path, sound(1, rate)[:, :frames], rate, subtype="FLOAT")
        files = AudioFiles([clip_of(path)])
        whole = resample(read_audio(path, mono=True)[0], rate, target)
        item = WholeClips(files, target).item(0)
        assert len(whole) - item["length"] in (0, 1) or (len(whole) == 0 and not item["length"])
        assert abs(item["audio"] - whole[:item["length"]]).max(initial=0) < 1e-4
        assert WholeClips(files, target).length(0) >= item["length"]
        seconds = frames/rate*0.6
        if round(seconds*target) <= 2: continue
        last = Segments(files, target, seconds, placement="grid")
        item = last.item(len(last) - 1)
        assert item["length"] == last.length(len(last) - 1)
        assert not item["audio"][item["length"]:].any()


def test_short_clips_and_lengths(folder):
    files, _ = scan_audio(".", workers=0)
    for placement in ("random", "center", "grid"):
        data = Segments(files, 16_000, 2.0, placement=placement)
        for index in range(len(data)):
            item = data.item(index)
            assert item["audio"].shape == (32_000,) and not item["audio"][24_000:].any()
            assert item["length"] == data.length(index) == 24_000
            assert item["audio"][:24_000].std() > 0.1
            assert item["index"] == index and item["id"] == files.clip(index).id
    whole = WholeClips(files, 8000, max_seconds=1)
    assert [whole.length(i) for i in range(4)] == [8000]*4
    assert whole.item(1)["audio"].shape == (8000,)
    cut = WholeClips(files, 8000, transform=lambda x, rng: x[:rng.integers(10, 20)])
    assert cut.item(1)["length"] < 20


def test_every_piece_has_its_place(folder):
    files, _ = scan_audio(".", workers=0)
    many = Segments(files, 16_000, 0.4, per_clip=None)
    ids = [many.item(i)["id"] for i in (0, 2, 3, 11)]
    assert len(many) == 12 and ids == ["a/1.wav", "a/1.wav", "a/2.flac", "c/1.wav"]
    assert len(Segments(files, 16_000, 0.4, per_clip=5)) == 20
    starts = {many.item(i, epoch)["start"] for i in range(3) for epoch in range(20)}
    assert len(starts) == 60 and 0 <= min(starts) < 2500 and 15_000 < max(starts) <= 24_000 - 6400
    assert many.name(4) == "a/2.flac (piece 1)"
    assert Segments(files, 16_000, 0.4).name(3) == "c/1.wav"
    for index in (-1, 12):
        with pytest.raises(IndexError): many.item(index)


def noise(x, rng): return x + rng.normal(0, 0.1, x.shape).astype(np.float32)


def test_items_depend_on_nothing_else(folder):
    files, _ = scan_audio(".", workers=0)
    first = Segments(files, 16_000, 0.3, seed=9, transform=noise)
    wanted = {(i, e): first.item(i, e) for i in range(4) for e in range(3)}
    np.random.seed(5)
    again = Segments(files, 16_000, 0.3, seed=9, transform=noise)
    for (i, e), item in reversed(wanted.items()):
        other = again.item(i, e)
        assert np.array_equal(item.pop("audio"), other.pop("audio")) and item == other
    plain = pickle.loads(pickle.dumps(Segments(files, 16_000, 0.3, seed=9)))
    start = plain.item(2, 1)["start"]
    assert start == wanted[2, 1]["start"]  # the transform's draws do not move the crop
    assert start != Segments(files, 16_000, 0.3, seed=8).item(2, 1)["start"]


def level(data, epoch):
    return 10*np.log10(np.square(data.item(0, epoch)["audio"]).mean() + 1e-20)  # dB


def test_silence_is_drawn_again(tmp_path):
    x = np.zeros(160_000, np.float32)
    x[100_000:140_000] = sound(2.5, 16_000)[0]
    write_audio(tmp_path/"a.wav", x, 16_000)
    files = AudioFiles([clip_of(tmp_path/"a.wav")])
    any_place = Segments(files, 16_000, 0.5)
    assert sum(level(any_place, e) < -40 for e in range(40)) > 15
    loud = Segments(files, 16_000, 0.5, min_rms_db=-40, redraws=50)
    assert all(level(loud, e) >= -40 for e in range(40))
    assert len({loud.item(0, e)["start"] for e in range(40)}) > 35
    never = Segments(files, 16_000, 0.5, min_rms_db=20, redraws=3)  # the loudest of four stands
    assert all(level(never, e) >= level(any_place, e) for e in range(10))


def not_float32(x, rng): return x.astype(np.float64)
def not_finite(x, rng): return x*np.float32("nan")
def nothing(x, rng): return None
def another_axis(x, rng): return x[None]
def another_length(x, rng): return x[1:]


def test_wrong_settings(folder):
    files, _ = scan_audio(".", workers=0)
    for bad in ({"seconds": 0}, {"seconds": float("nan")}, {"seconds": -1}, {"seconds": 1e9},
                {"seconds": 1, "placement": "left"}, {"seconds": 1, "per_clip": 0},
                {"seconds": 1, "redraws": -1}):
        with pytest.raises(DataError): Segments(files, 16_000, **bad)
    with pytest.raises(AudioError): Segments(files, 10, 1)
    with pytest.raises(DataError, match="no clips"): WholeClips(AudioFiles([]), 16_000)
    with pytest.raises(DataError, match="has no path"): AudioFiles([Clip("x", None, 16_000, 1, 1)])
    for wrong in (not_float32, not_finite, nothing, another_axis, another_length):
        with pytest.raises(DataError, match="1.wav: the transform"):
            Segments(files, 16_000, 0.5, transform=wrong).item(0)
