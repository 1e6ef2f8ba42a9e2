"Mixtures: exact shares of each epoch, every item of a part once a lap, and exact resuming."
import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loader_items import Items, check_nothing_is_left, indices, plain

from audiolab.audio import AudioError
from audiolab.data import (
    Bucket, Budget, DataError, Laps, Loader, Mixture, StreamLoader, StreamMixture, Turns, share_out,
)
from audiolab.data.streams import ExampleStream
from audiolab.files import pack_state, unpack_state


@pytest.fixture(autouse=True)
def nothing_is_left(): yield from check_nothing_is_left()


WEIGHTS = {"am": .5, "en": .3, "de": .2}


def parts(unreadable=()): return {"am": Items(6), "en": Items(40, unreadable), "de": Items(25)}


def mixture(items=60, weights=WEIGHTS, unreadable=()):
    return Mixture(parts(unreadable), weights, items)


def names(loader, epoch=0, start=0):
    return [batch["part"] for batch in loader.batches(epoch, start)]


# --- arithmetic

@given(st.integers(0, 10**6), st.lists(st.floats(0, 1e3), min_size=1, max_size=6).filter(any))
@settings(max_examples=100)
def test_shares_are_whole_numbers_that_add_up(items, weights):
    weights = np.array(weights)
    counts, exact = share_out(items, weights), items*weights/weights.sum()
    assert counts.sum() == items and (np.abs(counts - exact) < 1 + 1e-6).all()
    assert not counts[weights == 0].any()


@given(st.integers(1, 30), st.integers(1, 70), st.integers(0, 2**40))
@settings(max_examples=60)
def test_laps_follow_each_other_without_a_gap(items, count, seed):
    laps = Laps(items, count, seed)
    row = np.concatenate([laps.find(epoch, np.arange(count))[0] for epoch in range(5)])
    for begin in range(0, len(row), items):
        lap = row[begin:begin + items].tolist()
        assert len(set(lap)) == len(lap) and set(lap) <= set(range(items))
    place = np.array([count - 1])
    found, lap = laps.find(3, place)
    assert found == row[3*count + count - 1] and laps.first(3) + lap == (4*count - 1)//items


@given(st.lists(st.floats(.01, 1), min_size=1, max_size=7))
@settings(max_examples=60)
def test_turns_are_never_a_whole_row_off(weights):
    shares = np.array(weights)/sum(weights)
    turns = Turns(np.array(weights))
    for row in range(1, 300):
        next(turns)
        assert np.abs(np.array(turns.given) - row*shares).max() < 1 + 1e-6


# --- data sets

@pytest.mark.parametrize("world", [1, 2, 3])
def test_exact_shares_in_every_epoch_and_any_division(world):
    for epoch in range(6):
        loaders = [Loader(mixture(), 6, seed=epoch, rank=rank, world=world)
                   for rank in range(world)]
        found = sum((sum(names(loader, epoch), []) for loader in loaders), [])
        assert [found.count(name) for name in WEIGHTS] == [30, 18, 12]


def test_every_item_once_before_any_twice():
    loader, seen = Loader(mixture(), 6), {"en": [], "de": []}
    for epoch in range(10):
        for batch in loader.batches(epoch):
            for name, index in zip(batch["part"], batch["index"].tolist()):
                if name in seen: seen[name].append((epoch, loader.plans.dataset.find(index)[2]))
    assert len({index for _, index in seen["en"]}) == 40 and len(seen["en"]) == 180
    counts = np.bincount([index for _, index in seen["en"]])
    assert counts.min() >= 4 and counts.max() <= 5
    first = [index for epoch, index in seen["de"] if epoch < 2]  # 24 of 25
    assert len(set(first)) == 24


def test_another_lap_is_another_epoch_of_the_part():
    "What comes five times in an epoch is not five times the same crop"
    epochs = {}
    for batch in Loader(mixture(), 6).batches(1):
        for name, index, audio in zip(batch["part"], batch["id"], batch["audio"]):
            if name == "am": epochs.setdefault(index, []).append(round(float(audio[0]) % 1, 1))
    assert sorted(epochs) == [f"i{n}" for n in range(6)]
    assert all(sorted(laps) == [.5, .6, .7, .8, .9] for laps in epochs.values())


@pytest.mark.parametrize("bucket", [None, Bucket(bands=3), Budget(300, multiple=2)],
                         ids=["plain", "bucket", "budget"])
@pytest.mark.parametrize("world", [1, 2])
def test_start_equals_skipping(bucket, world):
    size = None if isinstance(bucket, Budget) else 6
    for rank in range(world):
        loader = Loader(mixture(), size, seed=3, bucket=bucket, rank=rank, world=world)
        for epoch in (0, 4):
            whole = indices(loader, epoch)
            for start in range(len(whole) + 1):
                assert indices(loader, epoch, start) == whole[start:]


def test_buckets_and_budgets_hold_the_shares_too():
    "Each of the items chosen for an epoch once, in batches within the limit"
    for bucket, size in ((Bucket(bands=3), 6), (Budget(300), None)):
        loader = Loader(mixture(), size, bucket=bucket, drop_last=False)
        assert loader.length is None
        with pytest.raises(TypeError, match="count steps"): len(loader)
        for epoch in range(4):
            found = [index for batch in indices(loader, epoch) for index in batch]
            chosen = loader.plans.dataset.choose(epoch)[np.arange(60)]
            assert sorted(found) == sorted(chosen)
    for batch in loader.batches(0): assert batch["length"].sum() <= 300


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_resuming_at_any_batch_with_any_number_of_workers(workers):
    "Also where items could not be read: the one instead is of the same part"
    def make(workers=0):
        data = mixture(unreadable=[3, 17, 18])
        return Loader(data, 6, seed=2, num_workers=workers, max_unreadable=.5)

    whole = make()
    batches = [plain(batch) for batch in whole.batches(1)]
    assert whole.report()["unreadable"] and sum((b["part"] for b in batches), []).count("en") == 18
    for stop in range(1, len(batches), 1 if not workers else 4):
        first, second = make(workers), make((workers + 1) % 3)
        iteration = first.batches(1)
        head = [plain(next(iteration)) for _ in range(stop)]
        second.load_state_dict(unpack_state(*pack_state(first.state_dict())))
        first.close()
        assert head + [plain(batch) for batch in second.batches(1, stop)] == batches
        assert second.state_dict() == whole.state_dict()
        second.close()


def test_other_weights_are_told_and_the_run_goes_on(caplog):
    state = unpack_state(*pack_state(Loader(mixture(), 6).state_dict()))
    same = Loader(mixture(), 6)
    with caplog.at_level(logging.WARNING): same.load_state_dict(state)
    assert not caplog.text
    other = Loader(mixture(weights={"am": 1, "en": 1, "de": 0}), 6)
    with caplog.at_level(logging.WARNING): other.load_state_dict(state)
    then, now = "{'am': 0.5, 'en': 0.3, 'de': 0.2}", "{'am': 1.0, 'en': 1.0, 'de': 0.0}"
    assert f"mixture was {then} and is {now} now" in caplog.text
    assert len(names(other, 0, start=4)) == 6 and "de" not in sum(names(other), [])


def test_a_file_is_named():
    data = Mixture({"a": Items(5), "b": Items(5, unreadable=range(5))}, items=20)
    with pytest.raises(DataError,
                       match=r"10 items in a row cannot be read, the last: file\d.wav: truncated"):
        indices(Loader(data, 4, max_unreadable=1.))


def test_mixtures_that_cannot_be():
    for weights in ({"am": 1}, {"am": 1, "en": 1, "xx": 1}, dict.fromkeys(WEIGHTS, 0),
                    {"am": -1, "en": 1, "de": 1}, {"am": float("nan"), "en": 1, "de": 1}):
        with pytest.raises(DataError, match="weights"): mixture(weights=weights)
    with pytest.raises(DataError, match="b: has no items"):
        Mixture({"a": Items(3), "b": Items(0)}, items=4)
    assert len(Mixture({"a": Items(3), "b": Items(0)}, {"a": 1, "b": 0})) == 3
    with pytest.raises(DataError, match="mix all data sets at once"):
        Mixture({"a": mixture(), "b": Items(3)})


# --- streams

def letters(name, count):
    def examples(epoch):
        for n in range(count):
            yield {"audio": np.full(2, n, np.float32), "id": f"{name}{n}", "turn": epoch >> 40}
    return ExampleStream(examples)


class Torn(ExampleStream):
    "Every fifth row cannot be read"
    def item(self, row, epoch):
        if row[0] % 5 == 2: raise AudioError(self.name(row), "truncated")
        return super().item(row, epoch)


def streams(rows=90, weights=WEIGHTS):
    torn = Torn(letters("en", 70).examples)
    return StreamMixture({"am": letters("am", 13), "en": torn, "de": letters("de", 25)}, weights,
                         rows)


def stream_loader(world=1, rows=90, weights=WEIGHTS, **options):
    settings = {"shuffle_buffer": 16, "drop_last": False, "max_unreadable": .5} | options
    return StreamLoader(streams(rows, weights), 3*world, world=world, **settings)


@pytest.mark.parametrize("world, lanes", [(1, 1), (1, 3), (2, 2), (3, 4)])
def test_exact_shares_of_streams_however_they_are_divided(world, lanes):
    found, ids = [], []
    for rank in range(world):
        batches = list(stream_loader(world, rank=rank, lanes=lanes).batches(2))
        heard = sum((batch["part"] for batch in batches), [])
        assert set(heard) == set(WEIGHTS)  # each process hears all of them
        found += heard
        ids += [pair for batch in batches for pair in zip(batch["id"], batch["turn"].tolist())]
    assert [found.count(name) for name in ("am", "de")] == [45, 18]
    assert 27 - 7 <= found.count("en") < 27  # of 27 rows some cannot be read
    assert len(set(ids)) == len(ids)  # none twice in a turn


@pytest.mark.parametrize("lanes, buffer", [(1, 1), (1, 7), (3, 12), (2, 100)])
@pytest.mark.parametrize("rows", [90, None])
def test_streams_resume_exactly_at_every_batch(lanes, buffer, rows):
    whole = [plain(batch)
             for batch in stream_loader(rows=rows, lanes=lanes, shuffle_buffer=buffer).batches(1)]
    for stop in range(1, len(whole) + 1):
        first = stream_loader(rows=rows, lanes=lanes, shuffle_buffer=buffer)
        iteration = first.batches(1)
        head = [plain(next(iteration)) for _ in range(stop)]
        second = stream_loader(rows=rows, shuffle_buffer=buffer)
        second.load_state_dict(unpack_state(*pack_state(first.state_dict())))
        assert head + [plain(batch) for batch in second.batches(1, stop)] == whole


def test_streams_resume_with_other_workers():
    whole = [plain(batch) for batch in stream_loader(lanes=2).batches(0)]
    first = stream_loader(num_workers=2)
    iteration = first.batches(0)
    head = [plain(next(iteration)) for _ in range(5)]
    state = first.state_dict()
    first.close()
    for workers in (0, 1, 2, 3):
        second = stream_loader(num_workers=workers)
        second.load_state_dict(state)
        assert head + [plain(batch) for batch in second.batches(0, 5)] == whole
        second.close()


def test_without_rows_an_epoch_ends_when_each_stream_was_read():
    found = [name for batch in stream_loader(rows=None).batches(0) for name in batch["id"]]
    for stream, count in (("am", 13), ("de", 25)):
        assert {f"{stream}{n}" for n in range(count)} <= set(found)
    assert {f"en{n}" for n in range(70) if n % 5 != 2} <= set(found)


def test_other_weights_keep_the_places_of_streams(caplog):
    first = stream_loader(rows=300)
    iteration = first.batches(0)
    seen = [name for _ in range(20) for name in next(iteration)["id"] if name[:2] == "en"]
    other = stream_loader(rows=300, weights={"am": .1, "en": .8, "de": .1})
    with caplog.at_level(logging.WARNING):
        other.load_state_dict(unpack_state(*pack_state(first.state_dict())))
    assert "mixture was" in caplog.text and "not known" not in caplog.text
    later = [name for batch in other.batches(0, 20) for name in batch["id"] if name[:2] == "en"]
    # those of one block may come again
    assert len(later) > 80 and len(set(seen) & set(later[:20])) <= 16


def test_a_stream_without_rows_for_a_part_is_named():
    short = StreamMixture({"long": letters("long", 50), "short": letters("short", 2)}, rows=40)
    with pytest.raises(DataError,
                       match="short: has no row for part 2 of 3; use fewer workers or lanes"):
        list(StreamLoader(short, 2, lanes=3).batches(0))
