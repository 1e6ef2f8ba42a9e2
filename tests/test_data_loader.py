"Loaders: every item once, the same order everywhere, and an account of what cannot be read."
import logging
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loader_items import Items, check_nothing_is_left, indices, plain

from audiolab.data import Bucket, DataError, Loader, Order, collate
from audiolab.files import pack_state, unpack_state


@pytest.fixture(autouse=True)
def nothing_is_left(): yield from check_nothing_is_left()


@given(st.integers(1, 5000), st.integers(0, 2**40), st.integers(0, 100))
@settings(max_examples=40)
def test_feistel_is_a_permutation(n, seed, epoch):
    order = Order(n, seed, epoch, table_limit=0)[np.arange(n)]
    assert np.array_equal(np.sort(order), np.arange(n))
    at = np.random.default_rng(seed).integers(0, n, 7)
    assert np.array_equal(Order(n, seed, epoch, table_limit=0)[at], order[at])


def test_feistel_is_uniform():
    "Each item is at each place equally often: chi-squared over many keys, far from both tails"
    n, keys = 12, 3000
    table = np.zeros((n, n))
    for key in range(keys): table[np.arange(n), Order(n, key, 0, table_limit=0)[np.arange(n)]] += 1
    chi = ((table - keys/n)**2 / (keys/n)).sum()
    freedom = (n - 1)**2
    assert abs(chi - freedom) < 5*(2*freedom)**.5


def test_large_orders_take_no_memory():
    order = Order(10**15, 3, 4)
    assert order.table is None and len(set(order[np.arange(1000)].tolist())) == 1000
    assert order[np.arange(10**15 - 5, 10**15)].max() < 10**15


def test_every_item_once_with_equal_counts():
    """For all small sizes: drop_last gives disjoint full batches, else all items; ranks have
    equally many; repeats are marked"""
    for n in range(1, 14):
        for world in (1, 2, 3):
            for batch_size in (world, 2*world, 4*world):
                if batch_size <= n:
                    ranks = [indices(Loader(Items(n), batch_size, rank=r, world=world))
                             for r in range(world)]
                    assert {len(r) for r in ranks} == {n//batch_size}
                    assert {len(b) for r in ranks for b in r} == {batch_size//world}
                    flat = [i for r in ranks for b in r for i in b]
                    assert len(set(flat)) == len(flat) == n//batch_size*batch_size
                ranks = [list(Loader(Items(n), batch_size, rank=r, world=world,
                                     drop_last=False).batches(0)) for r in range(world)]
                assert {tuple(len(b["id"]) for b in r)
                        for r in ranks} == {tuple(len(b["id"]) for b in ranks[0])}
                once = [i for r in ranks for b in r for i,
                        again in zip(b["index"].tolist(),
                                     b.get("repeat",
                                           torch.zeros(len(b["id"]))).tolist()) if not again]
                assert sorted(once) == list(range(n))


def test_global_batches_do_not_depend_on_world():
    whole = indices(Loader(Items(30), 12, seed=5))
    for world in (2, 3, 4, 6, 12):
        ranks = [indices(Loader(Items(30), 12, seed=5, rank=r, world=world)) for r in range(world)]
        for n, batch in enumerate(whole):
            assert all(ranks[r][n] == batch[r::world] for r in range(world))


@pytest.mark.parametrize("bucket", [None, Bucket(bands=3), Bucket(max_seconds=2.5, bands=4)],
                         ids=["plain", "bucket", "seconds"])
@pytest.mark.parametrize("shuffle", [True, False])
def test_start_equals_skipping(bucket, shuffle):
    loader = Loader(Items(23), 4, seed=2, bucket=bucket, shuffle=shuffle, drop_last=False)
    for epoch in (0, 3):
        whole = indices(loader, epoch)
        assert len(whole) == len(loader)
        assert all(indices(loader, epoch, k) == whole[k:] for k in range(len(whole) + 2))


def test_epochs_and_seeds_differ():
    orders = [sum(indices(Loader(Items(50), 10, seed=seed), epoch), []) for seed in (0, 1)
              for epoch in (0, 1)]
    assert len(set(map(tuple, orders))) == 4
    assert indices(Loader(Items(9), 3, shuffle=False), 4) == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


@pytest.mark.parametrize("options",
                         [{}, {"bucket": Bucket(max_seconds=2)},
                          {"drop_last": False, "rank": 1, "world": 2}], ids=str)
def test_workers_change_nothing(options):
    data, last = Items(41, unreadable=[3, 8]), None
    for workers in (0, 1, 2):
        loader = Loader(data, 6, seed=4, num_workers=workers, max_unreadable=.5, **options)
        result = [[plain(b) for b in loader.batches(epoch, start)] for epoch,
                  start in ((0, 0), (1, 2))], loader.state_dict(), loader.report()
        loader.close()
        assert last in (None, result)
        last = result
    assert result[2]["unreadable"] > 0


@given(st.lists(st.integers(1, 500), min_size=1, max_size=80), st.integers(1, 4),
       st.integers(1, 12), st.sampled_from([None, 5, 20]), st.booleans())
@settings(max_examples=60)
def test_buckets(lengths, multiple, bands, seconds, drop_last):
    class Lengths(Items):
        def length(self, index): return lengths[index]
        def item(self, index, epoch):
            return {"audio": np.zeros(lengths[index], np.float32), "index": index}
    size = 4*multiple
    try:
        loader = Loader(Lengths(len(lengths)), size, bucket=Bucket(seconds, bands, multiple),
                        world=multiple, drop_last=drop_last)
    except DataError as problem:
        text = str(problem)
        too_long = "do not fit" in text and multiple*max(lengths) > seconds*100
        assert too_long or "make no batch" in text and len(lengths) < size and drop_last
        return
    for epoch in (0, 1):
        plan = loader.plans.batches(0, epoch, True)
        flat = np.concatenate(plan).tolist()
        assert len(plan) == len(loader) and len(set(flat)) == len(flat)
        assert len(flat) == len(lengths) if not drop_last else len(lengths) - len(flat) < size
        assert all(len(batch) % multiple == 0 for batch in plan[:len(plan) - (not drop_last)])
        assert seconds is None or all(len(batch)*max(lengths[i] for i in batch) <= seconds*100
                                      for batch in plan)


def test_bucket_errors():
    with pytest.raises(DataError, match=r"file\d+.wav: 1 items of \d0 samples do not fit"):
        Loader(Items(20), 4, bucket=Bucket(max_seconds=.5))
    with pytest.raises(DataError, match="multiple"):
        Loader(Items(60), 4, bucket=Bucket(max_seconds=1.5), world=2)


def test_settings_that_cannot_be():
    wrong = [({"batch_size": 5, "world": 2}, "divided among 2"),
             ({"batch_size": 0}, "out of range"),
             ({"batch_size": 50}, "no batch of 50"),
             ({"batch_size": 4, "timeout": 0}, "out of range"),
             ({"batch_size": 4, "rank": 2, "world": 2}, "out of range"),
             ({"batch_size": 4, "num_workers": -1}, "out of range"),
             ({"batch_size": None}, "give a batch_size")]
    for options, text in wrong:
        with pytest.raises(DataError, match=text): Loader(Items(20), **options)
    with pytest.raises(DataError, match="make no batch"): Loader(Items(0), 1, drop_last=False)
    with pytest.raises(DataError, match="count from 0"): next(Loader(Items(4), 2).batches(-1))


def test_global_generators_are_not_touched():
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    loader = Loader(Items(20, unreadable=[4]), 5, num_workers=1, max_unreadable=.5)
    indices(loader)
    loader.close()
    assert before == (random.getstate(), np.random.get_state()[1].tolist(),
                      torch.get_rng_state().tolist())


def test_unreadable_share():
    "Stops after some items were seen; at once if none is allowed; and when none can be read"
    data = Items(200, unreadable=range(0, 200, 20))
    loader = Loader(data, 10, max_unreadable=.2)
    assert all(len(batch) == 10 and not set(batch) & set(data.unreadable)
               for batch in indices(loader))
    assert loader.report()["unreadable"] >= 10
    assert "file20.wav: truncated" == loader.report()["names"]["file20.wav"]["cause"]
    with pytest.raises(DataError, match=r"more than max_unreadable=0.02: file\d+.wav: truncated;"):
        indices(Loader(data, 10, max_unreadable=.02))
    with pytest.raises(DataError, match=r"1 of \d+ items"):
        indices(Loader(data, 10, max_unreadable=0))
    with pytest.raises(DataError, match="10 items in a row"):
        indices(Loader(Items(30, unreadable=range(30)), 5))


@pytest.mark.parametrize("workers", [0, 2])
def test_counts_after_resuming(workers):
    "Stopped after any batch, a new loader with the state ends with the report of an unbroken run"
    data = Items(40, unreadable=[1, 11, 30])
    def make(): return Loader(data, 5, seed=3, num_workers=workers, max_unreadable=.5)

    whole = make()
    batches = [plain(b) for b in whole.batches(0)]
    whole.close()
    for stop in range(1, 8, 1 if not workers else 3):
        first = make()
        it = first.batches(0)
        head = [plain(next(it)) for _ in range(stop)]
        state = unpack_state(*pack_state(first.state_dict()))
        first.close()
        second = make()
        second.load_state_dict(state)
        assert head + [plain(b) for b in second.batches(0, stop)] == batches
        assert second.state_dict() == whole.state_dict()
        second.close()


def test_other_data_are_noticed(caplog):
    state = Loader(Items(40), 5).state_dict()
    with caplog.at_level(logging.WARNING): Loader(Items(41), 5).load_state_dict(state)
    assert "items was 40 and is 41 now" in caplog.text


def test_padding_is_reported():
    loader = Loader(Items(7), 7)
    batch = next(loader.batches(0))
    assert batch["audio"].shape == (7, 70)
    assert sorted(batch["length"].tolist()) == [10*n for n in range(1, 8)]
    assert loader.report()["padding"] == pytest.approx(1 - 280/490)
    assert all((row[:n] == row[0]).all() and (row[n:] == 0).all() for row,
               n in zip(batch["audio"], batch["length"]))


def test_collate_kinds():
    items = [{"audio": np.ones((2, n)), "length": n - 1, "flag": n > 3, "gain": np.float64(n),
              "text": "x"*n, "f": {"n": n}, "t": torch.ones(n, 2)} for n in (3, 5)]
    batch = collate(items)
    assert batch["audio"].shape == (2, 2, 5) and batch["audio"].dtype == torch.float32
    assert batch["length"].tolist() == [2, 4]
    assert batch["flag"].dtype == torch.bool and batch["gain"].dtype == torch.float32
    assert batch["text"] == ["xxx", "xxxxx"]
    assert batch["f"] == [{"n": 3}, {"n": 5}] and batch["t"].shape == (2, 5, 2)
    assert batch["t"][0, 3:].sum() == 0
    with pytest.raises(DataError, match="has the keys"): collate([{"a": 1}, {"b": 1}])
    with pytest.raises(DataError, match="axes"):
        collate([{"id": "p", "x": np.ones(3)}, {"id": "q", "x": np.ones((3, 1))}])

class AtOnce(Items):
    "The same items, read all at once; and how often"
    calls = 0
    def batch(self, indices, epoch):
        self.calls += 1
        return collate([self.item(index, epoch) for index in indices.tolist()])


@pytest.mark.parametrize("options", [{}, {"bucket": Bucket(max_seconds=2)},
                                     {"drop_last": False, "rank": 1, "world": 2}], ids=str)
def test_batches_read_at_once_are_those_of_items(options):
    "Also where items cannot be read: the same ones are named, replaced and counted"
    found = []
    for kind in (Items, AtOnce):
        loader = Loader(kind(41, unreadable=[3, 8]), 6, seed=4, max_unreadable=.5, **options)
        batches = [plain(b) for epoch in (0, 1) for b in loader.batches(epoch)]
        found.append((batches, loader.state_dict(), loader.report()))
    assert found[0] == found[1] and found[0][2]["unreadable"] > 0


def test_a_way_of_ones_own_to_join_items_is_kept():
    data = AtOnce(12)
    def joined(items): return {"index": torch.tensor([item["index"] for item in items])}
    assert all(set(batch) == {"index"} for batch in Loader(data, 4, collate=joined).batches(0))
    assert not data.calls
    indices(Loader(data, 4))
    assert data.calls == 3


def test_a_mistake_in_reading_at_once_is_told_with_names():
    data = AtOnce(8)
    data.batch = lambda indices, epoch: 1/0
    with pytest.raises(DataError, match=r"no batch could be made of \['file0.wav'.*ZeroDivision"):
        indices(Loader(data, 4, shuffle=False))
