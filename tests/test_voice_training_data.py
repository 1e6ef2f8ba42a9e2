"Pieces of lessons: keyed, the same one by one and at once, at the right rate"
import numpy as np
import pytest
import torch
from loader_items import check_nothing_is_left, plain

from audiolab.data import Bucket, DataError, Loader, collate
from audiolab.voice import VoiceClips, piece_lengths, rescaled


@pytest.fixture(autouse=True)
def nothing_is_left(): yield from check_nothing_is_left()


class FewLessons:
    "Clips of 2 to 4 tenths of a second in memory; each begins with its own number"
    def __init__(self, count=23, rate=8000, seconds=None):
        rng, self.sample_rate = np.random.default_rng(0), rate
        lengths = [round(rate*s) for s in (seconds or rng.uniform(.2, .4, count))]
        self.sounds = [rng.integers(-3000, 3000, n).astype(np.int16) for n in lengths]
        self.style_ids = np.arange(len(lengths))//4

    def __len__(self): return len(self.sounds)
    def length(self, index): return len(self.sounds[index])
    def name(self, index): return f"clip {index}"

    def part(self, name, indices):
        rows = self.style_ids[indices][:, None, None].astype(np.float32)
        return np.tile(rows, (1, 2, 3) if name == "ttl" else (1, 1, 2))

    def gather(self, indices, starts, samples):
        found = [self.sounds[n][s:s + samples] for n, s in zip(indices, starts)]
        out = np.zeros((len(found), samples), np.int16)
        for row, sound in zip(out, found): row[:len(sound)] = sound
        return out, np.array([len(sound) for sound in found])


def clips(rate=None, **settings):
    return VoiceClips(FewLessons(), rate, **{"shortest": .1, "longest": .3} | settings)


def alike(one, other):
    return one.keys() == other.keys() and all(
        torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key]
        for key, value in one.items())


@pytest.mark.parametrize("rate", [8000, 6000])
def test_at_once_and_one_by_one(rate):
    "To the bit, with types, at the stored rate and at another one"
    data, indices = clips(rate), np.array([3, 20, 7])
    for epoch in (0, 1):
        assert alike(data.batch(indices, epoch),
                     collate([data.item(index, epoch) for index in indices.tolist()]))
    item = data.item(3)
    assert {key: type(item[key]) for key in ("length", "index", "style_id", "id")} == {
        "length": int, "index": int, "style_id": int, "id": str}
    assert item["length"] == len(item["audio"]) == data.length(3)


def test_pieces_are_of_the_clip_and_wander():
    data = clips()
    for index in range(len(data)):
        whole = data.lessons.sounds[index]
        found = [data.item(index, epoch)["audio"]*32768 for epoch in range(4)]
        starts = [data.starts(epoch)[index] for epoch in range(4)]
        assert all(0 <= s <= len(whole) - len(x) for s, x in zip(starts, found))
        assert all((whole[s:s + len(x)] == x).all() for s, x in zip(starts, found))
    assert len(set(map(tuple, map(data.starts, range(4))))) == 4
    assert data.starts(2).tolist() == clips().starts(2).tolist()
    assert clips(seed=1).starts(2).tolist() != data.starts(2).tolist()


def test_lengths_are_drawn_between_and_short_clips_are_whole():
    lengths = np.array([5, 300, 1000, 1000]*500)
    pieces = piece_lengths(lengths, 100, 400, seed=3)
    assert (pieces[::4] == 5).all() and (pieces[1::4] <= 300).all() and (pieces[1::4] >= 100).all()
    assert {pieces[2::4].min() < 110, pieces[2::4].max() > 390, pieces.max() <= 400} == {True}
    assert (piece_lengths(lengths[:7], 100, 400, seed=3) == pieces[:7]).all()


def test_every_place_is_possible():
    "Also the first and the last"
    data = VoiceClips(FewLessons(seconds=[.001]*50), shortest=.0005, longest=.0005)
    seen = np.concatenate([data.starts(epoch) for epoch in range(4)])
    assert set(seen.tolist()) == {0, 1, 2, 3, 4}


def test_the_stored_rate_is_heeded():
    "A tone of 440 Hz stays one: it was once heard ten semitones higher"
    lessons = FewLessons(rate=44100, seconds=[.2])
    wave = 9000*np.sin(2*np.pi*440*np.arange(8820)/44100)
    lessons.sounds[0] = np.round(wave).astype(np.int16)
    audio = VoiceClips(lessons, 24000, shortest=.2, longest=.2).item(0)["audio"]
    assert len(audio) == 4800 == rescaled(8820, 44100, 24000)
    peak = abs(np.fft.rfft(audio*np.hanning(4800))).argmax()*24000/4800
    assert peak == 440


def test_held_out_clips_are_heard_from_their_beginning():
    data = clips(seed=None, longest=.25)
    for index in range(len(data)):
        item, whole = data.item(index, epoch=index), data.lessons.sounds[index]
        assert (item["audio"]*32768 == whole[:2000]).all()


@pytest.mark.parametrize("options", [{}, {"bucket": Bucket(bands=3)},
                                     {"drop_last": False, "rank": 1, "world": 2}], ids=str)
def test_workers_and_a_later_beginning_change_nothing(options):
    runs = []
    for workers in (0, 2):
        loader = Loader(clips(), 4, seed=2, num_workers=workers, **options)
        every = [plain(b) for b in loader.batches(1)]
        assert [plain(b) for b in loader.batches(1, 2)] == every[2:]
        loader.close()
        runs.append(every)
    assert runs[0] == runs[1] and ("repeat" in runs[0][0]) == ("drop_last" in options)


def test_batches_of_similar_length_are_padded_less():
    def padding(**options):
        loader = Loader(clips(), 4, seed=2, **options)
        for _ in loader.batches(0): pass
        return loader.report()["padding"]
    assert padding(bucket=Bucket(bands=5)) < .5*padding()


def test_what_cannot_be():
    with pytest.raises(DataError, match="no lessons to learn from"): VoiceClips(FewLessons(0))
    with pytest.raises(DataError, match="at most the longest"): clips(shortest=1)
