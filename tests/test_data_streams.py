"Streams: every row once, exact resuming at every batch, and damage that is named."
import logging
import multiprocessing
import os
import signal
import threading
from itertools import product

import numpy as np
import pytest

from audiolab.audio import AudioError
from audiolab.data import DataError, ExampleStream, Stream, StreamLoader, StreamMixture
from audiolab.files import pack_state, unpack_state


class Counting:
    "Reader of one part of `Numbers`"
    def __init__(self, numbers, part, parts, state):
        self.numbers, self.part, self.parts = numbers, part, parts
        self.at = state or 0

    def __iter__(self): return self
    def state(self): return self.at

    def __next__(self):
        number = self.part + self.at*self.parts
        if number >= self.numbers.n: raise StopIteration
        self.at += 1
        self.numbers.read += 1
        return number


class Numbers(Stream):
    "Rows 0..n-1; counts what is read, decoded rows and others; some are unreadable"
    def __init__(self, n, unreadable=(), terrible=None):
        self.n, self.unreadable, self.terrible = n, unreadable, terrible
        self.read = self.decoded = 0

    def open(self, epoch, part, parts, state=None): return Counting(self, part, parts, state)
    def name(self, row): return f"row{row}"
    def item(self, row, epoch):
        if row == 13 and self.terrible: self.terrible()
        if row in self.unreadable: raise AudioError(self.name(row), "truncated")
        self.decoded += 1
        return {"audio": np.full(3, row, np.float32), "index": row}


def indices(loader, epoch=0, start=0):
    return [batch["index"].tolist() for batch in loader.batches(epoch, start)]


@pytest.fixture(autouse=True)
def no_process_is_left():
    yield
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("lanes", [1, 2, 3])
def test_every_item_once(world, lanes):
    for n, buffer in product((1, 2, 7, 24, 25), (1, 4, 100)):
        rows, settings = [], {"shuffle_buffer": buffer, "world": world, "lanes": lanes}
        for rank in range(world):
            loader = StreamLoader(Numbers(n), 2*world, rank=rank, drop_last=False, **settings)
            rows += sum(indices(loader), [])
            full = StreamLoader(Numbers(n), 2*world, rank=rank, **settings)
            assert all(len(batch) == 2 for batch in indices(full))
        assert sorted(rows) == list(range(n))


def test_order():
    "Differs between epochs and seeds, is the stream's without a buffer, and mixes a whole block"
    orders = [sum(indices(StreamLoader(Numbers(60), 4, seed=seed, shuffle_buffer=30), epoch), [])
              for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(map(tuple, orders))) == 4
    assert all(sorted(order[:28]) != order[:28] and max(order[:28]) < 30 for order in orders)
    assert indices(StreamLoader(Numbers(6), 2, shuffle_buffer=1)) == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize("lanes, buffer", [(1, 1), (1, 5), (3, 12), (2, 100)])
def test_resuming_is_exact_at_every_batch(lanes, buffer):
    def make(**more):
        stream = Numbers(41, unreadable=[2, 17, 18])
        return StreamLoader(stream, 3, shuffle_buffer=buffer, drop_last=False, max_unreadable=.5,
                            **more)

    whole = make(lanes=lanes)
    batches = {epoch: indices(whole, epoch) for epoch in (0, 1)}
    for stop in range(1, len(batches[0]) + 1):
        first = make(lanes=lanes)
        it = first.batches(0)
        head = [next(it)["index"].tolist() for _ in range(stop)]
        state = unpack_state(*pack_state(first.state_dict()))
        second = make()
        second.load_state_dict(state)
        assert head + indices(second, 0, stop) == batches[0]
        assert indices(second, 1) == batches[1]
        assert second.report()["unreadable"] == whole.report()["unreadable"] == 6


def test_workers_change_nothing_and_read_ahead_without_losing_the_place():
    def make(**more):
        stream, settings = Numbers(60, unreadable=[7]), {"max_unreadable": .5, "prefetch": 3}
        return StreamLoader(stream, 4, shuffle_buffer=16, **settings, **more)

    whole = indices(make(lanes=2))
    for stop in (1, 6):
        first = make(num_workers=2)
        it = first.batches(0)
        head = [next(it)["index"].tolist() for _ in range(stop)]
        state = first.state_dict()
        first.close()
        for workers in (0, 1, 2, 3):
            second = make(num_workers=workers)
            second.load_state_dict(state)
            assert head + indices(second, 0, stop) == whole and second.lanes == 2
            second.close()


def test_constant_cost_and_resuming_decodes_nothing():
    stream = Numbers(1000)
    loader = StreamLoader(stream, 10, shuffle_buffer=50)
    it = loader.batches(0)
    for _ in range(60): next(it)
    assert stream.read <= 650 and stream.decoded == 600
    stream.read = stream.decoded = 0
    again = StreamLoader(stream, 10, shuffle_buffer=50)
    again.load_state_dict(loader.state_dict())
    next(again.batches(0, 60))
    assert stream.read <= 100 and stream.decoded == 10


def test_past_the_end_there_is_nothing():
    loader = StreamLoader(Numbers(20), 4)
    assert loader.length is None and indices(loader, 0, 5) == indices(loader, 0, 50) == []
    indices(loader)
    assert indices(loader, 0, 5) == []
    with pytest.raises(TypeError): len(loader)


def test_an_unknown_place_is_read_through(caplog):
    loader = StreamLoader(Numbers(30), 4, shuffle_buffer=8)
    whole = indices(loader)
    with caplog.at_level(logging.WARNING):
        assert indices(StreamLoader(Numbers(30), 4, shuffle_buffer=8), 0, 3) == whole[3:]
    assert "not known" in caplog.text
    other = StreamLoader(Numbers(30), 4, shuffle_buffer=8, world=2)
    with caplog.at_level(logging.WARNING): other.load_state_dict(loader.state_dict())
    assert "world was 1 and is 2" in caplog.text and other.place is None


def test_settings_that_cannot_be():
    for options in ({"batch_size": 3, "world": 2}, {"batch_size": 0}, {"batch_size": 2, "lanes": 0},
                    {"batch_size": 2, "shuffle_buffer": 0}, {"batch_size": 2, "rank": 1}):
        with pytest.raises(DataError): StreamLoader(Numbers(9), **options)


class Unpicklable(Exception):
    def __init__(self):
        super().__init__("never")
        self.lock = threading.Lock()


def raises(): raise Unpicklable
def exits(): os._exit(2)
def is_killed(): os.kill(os.getpid(), signal.SIGKILL)
def hangs(): threading.Event().wait()


TERRIBLE = {exits: "exit code 2 while reading row13", raises: "row13: Unpicklable: never",
            is_killed: "SIGKILL while reading row13", hangs: "did not answer for 0.5 s .* row13"}


@pytest.mark.parametrize("what", TERRIBLE, ids=lambda what: what.__name__)
def test_trouble_in_a_worker_names_the_row(what):
    with pytest.raises(DataError, match=TERRIBLE[what]):
        indices(StreamLoader(Numbers(30, terrible=what), 4, num_workers=2, timeout=.5))


def test_unreadable_share():
    with pytest.raises(DataError, match="more than max_unreadable.*row0: truncated"):
        indices(StreamLoader(Numbers(500, unreadable=range(0, 500, 10)), 10, shuffle_buffer=1))


def test_examples_from_a_function():
    def nine(epoch):
        for n in range(9): yield {"audio": np.full(2, epoch, np.float32), "id": str(n)}

    examples = ExampleStream(nine)
    loader = StreamLoader(examples, 2, lanes=2, drop_last=False)
    ids = sum((batch["id"] for batch in loader.batches(3)), [])
    assert sorted(ids) == [str(n) for n in range(9)]
    assert all((batch["audio"] == 3).all() for batch in loader.batches(3))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_source_that_fails_midway(workers):
    def examples(epoch):
        yield from ({"audio": np.zeros(2, np.float32), "id": f"e{n}"} for n in range(6))
        raise ConnectionResetError("the server is gone")
    with pytest.raises(DataError, match="cannot be read on after e5: the server is gone"):
        list(StreamLoader(ExampleStream(examples), 2, shuffle_buffer=1,
                          num_workers=workers).batches(0))


def tones(height, count=20):
    time = np.arange(200)
    return ExampleStream(lambda epoch: (
        {"audio": np.sin(height*time*(n + 1)).astype(np.float32)*height, "id": f"n{n}"}
        for n in range(count)))


def told(caplog, before, after, **settings):
    "What is said where a state of a loader of one stream meets another stream"
    caplog.clear()
    state = StreamLoader(before, 2).state_dict()
    tensors, tree = pack_state({"data": state})
    StreamLoader(after, 2, **settings).load_state_dict(unpack_state(tensors, tree)["data"])
    return caplog.text


def test_another_stream_is_told_on_resume(caplog):
    assert told(caplog, tones(.1), tones(.1)) == ""
    assert "another stream than before" in told(caplog, tones(.1), tones(.2))
    mixed = StreamMixture({"a": tones(.1), "b": tones(.2)})
    assert told(caplog, mixed, StreamMixture({"a": tones(.1), "b": tones(.2)})) == ""
    assert "another stream" in told(caplog, mixed, StreamMixture({"a": tones(.1), "b": tones(.3)}))
    assert told(caplog, tones(.1), tones(.2), rank=1, world=2) == ""  # the first tells for all
    assert told(caplog, Numbers(20), Numbers(30)) == ""  # it says nothing about itself
    loader = StreamLoader(tones(.2), 2)
    loader.load_state_dict({key: value for key, value in StreamLoader(tones(.1), 2).state_dict()
                            .items() if key != "sounds"})  # of before
    assert caplog.text == ""


def test_a_stream_that_fails_when_it_is_asked_is_not_compared(caplog):
    assert told(caplog, tones(.1), ExampleStream(lambda epoch: 1/0)) == ""
