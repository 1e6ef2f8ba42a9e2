"Loaders: every item once, the same order everywhere, resuming, and workers that die, hang or raise what cannot be sent."
import ctypes, logging, multiprocessing, os, random, signal, subprocess, sys, textwrap, threading, time

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from audiolab.audio import AudioError
from audiolab.data import DataError
from audiolab.data import Bucket, Loader, Order, collate
from audiolab.files import pack_state, unpack_state


class Items:
    "Item i has 10*(i%7+1) samples; some are unreadable; one may do something terrible"
    sample_rate = 100
    def __init__(self, n, unreadable=(), terrible=None, at=None): self.n, self.unreadable, self.terrible, self.at = n, unreadable, terrible, at
    def __len__(self): return self.n
    def length(self, index): return 10*(index % 7 + 1)
    def name(self, index): return f"file{index}.wav"
    def item(self, index, epoch):
        if index == self.at: self.terrible()
        if index in self.unreadable: raise AudioError(self.name(index), "truncated")
        return {"audio": np.full(self.length(index), index + epoch/10, np.float32), "index": index, "id": f"i{index}"}


def indices(loader, epoch=0, start=0): return [batch["index"].tolist() for batch in loader.batches(epoch, start)]


def plain(batch): return {key: value.tolist() if isinstance(value, torch.Tensor) else value for key, value in batch.items()}


@pytest.fixture(autouse=True)
def nothing_is_left():
    "No process and nothing in shared memory outlives a test"
    shm = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    mine = lambda: {name for name in (set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()) - shm if f"_{os.getpid()}_" in name}
    yield
    assert not multiprocessing.active_children() and not mine()


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
    assert order.table is None and len(set(order[np.arange(1000)].tolist())) == 1000 and order[np.arange(10**15 - 5, 10**15)].max() < 10**15


def test_every_item_once_with_equal_counts():
    "For all small sizes: drop_last gives disjoint full batches, else all items; ranks have equally many; repeats are marked"
    for n in range(1, 14):
        for world in (1, 2, 3):
            for batch_size in (world, 2*world, 4*world):
                if batch_size <= n:
                    ranks = [indices(Loader(Items(n), batch_size, rank=r, world=world)) for r in range(world)]
                    assert {len(r) for r in ranks} == {n//batch_size} and {len(b) for r in ranks for b in r} == {batch_size//world}
                    flat = [i for r in ranks for b in r for i in b]
                    assert len(set(flat)) == len(flat) == n//batch_size*batch_size
                ranks = [list(Loader(Items(n), batch_size, rank=r, world=world, drop_last=False).batches(0)) for r in range(world)]
                assert {tuple(len(b["id"]) for b in r) for r in ranks} == {tuple(len(b["id"]) for b in ranks[0])}
                once = [i for r in ranks for b in r for i, again in zip(b["index"].tolist(), b.get("repeat", torch.zeros(len(b["id"]))).tolist()) if not again]
                assert sorted(once) == list(range(n))


def test_global_batches_do_not_depend_on_world():
    whole = indices(Loader(Items(30), 12, seed=5))
    for world in (2, 3, 4, 6, 12):
        ranks = [indices(Loader(Items(30), 12, seed=5, rank=r, world=world)) for r in range(world)]
        for n, batch in enumerate(whole): assert all(ranks[r][n] == batch[r::world] for r in range(world))


@pytest.mark.parametrize("bucket", [None, Bucket(bands=3), Bucket(max_seconds=2.5, bands=4)], ids=["plain", "bucket", "seconds"])
@pytest.mark.parametrize("shuffle", [True, False])
def test_start_equals_skipping(bucket, shuffle):
    loader = Loader(Items(23), 4, seed=2, bucket=bucket, shuffle=shuffle, drop_last=False)
    for epoch in (0, 3):
        whole = indices(loader, epoch)
        assert len(whole) == len(loader) and all(indices(loader, epoch, k) == whole[k:] for k in range(len(whole) + 2))


def test_epochs_and_seeds_differ():
    orders = [sum(indices(Loader(Items(50), 10, seed=seed), epoch), []) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(map(tuple, orders))) == 4
    assert indices(Loader(Items(9), 3, shuffle=False), 4) == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


@pytest.mark.parametrize("options", [{}, {"bucket": Bucket(max_seconds=2)}, {"drop_last": False, "rank": 1, "world": 2}], ids=str)
def test_workers_change_nothing(options):
    data, last = Items(41, unreadable=[3, 8]), None
    for workers in (0, 1, 2):
        loader = Loader(data, 6, seed=4, num_workers=workers, max_unreadable=.5, **options)
        result = [[plain(b) for b in loader.batches(epoch, start)] for epoch, start in ((0, 0), (1, 2))], loader.state_dict(), loader.report()
        loader.close()
        assert last in (None, result); last = result
    assert result[2]["unreadable"] > 0


@given(st.lists(st.integers(1, 500), min_size=1, max_size=80), st.integers(1, 4), st.integers(1, 12), st.sampled_from([None, 5, 20]), st.booleans())
@settings(max_examples=60)
def test_buckets(lengths, multiple, bands, seconds, drop_last):
    class Lengths(Items):
        def length(self, index): return lengths[index]
        def item(self, index, epoch): return {"audio": np.zeros(lengths[index], np.float32), "index": index}
    size = 4*multiple
    try: loader = Loader(Lengths(len(lengths)), size, bucket=Bucket(seconds, bands, multiple), world=multiple, drop_last=drop_last)
    except DataError as problem:
        text = str(problem)
        assert "do not fit" in text and multiple*max(lengths) > seconds*100 or "make no batch" in text and len(lengths) < size and drop_last
        return
    for epoch in (0, 1):
        plan = loader._bands.plan(0, epoch, True)
        flat = np.concatenate(plan).tolist()
        assert len(plan) == len(loader) and len(set(flat)) == len(flat)
        assert len(flat) == len(lengths) if not drop_last else len(lengths) - len(flat) < size
        assert all(len(batch) % multiple == 0 for batch in plan[:len(plan) - (not drop_last)])
        assert seconds is None or all(len(batch)*max(lengths[i] for i in batch) <= seconds*100 for batch in plan)


def test_bucket_errors():
    with pytest.raises(DataError, match=r"file\d+.wav: 1 items of \d0 samples do not fit"): Loader(Items(20), 4, bucket=Bucket(max_seconds=.5))
    with pytest.raises(DataError, match="multiple"): Loader(Items(60), 4, bucket=Bucket(max_seconds=1.5), world=2)


def test_settings_that_cannot_be():
    for options, text in (({"batch_size": 5, "world": 2}, "divided among 2"), ({"batch_size": 0}, "out of range"), ({"batch_size": 50}, "no batch of 50"),
                          ({"batch_size": 4, "rank": 2, "world": 2}, "out of range"), ({"batch_size": 4, "timeout": 0}, "out of range"),
                          ({"batch_size": 4, "num_workers": -1}, "out of range")):
        with pytest.raises(DataError, match=text): Loader(Items(20), **options)
    with pytest.raises(DataError, match="make no batch"): Loader(Items(0), 1, drop_last=False)
    with pytest.raises(DataError, match="count from 0"): next(Loader(Items(4), 2).batches(-1))


def test_global_generators_are_not_touched():
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    loader = Loader(Items(20, unreadable=[4]), 5, num_workers=1, max_unreadable=.5); indices(loader); loader.close()
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


class Unpicklable(Exception):
    def __init__(self, a, b): super().__init__("cannot be sent"); self.lock = threading.Lock()
class Unspeakable(Exception):
    def __str__(self): raise RuntimeError("no")
def raises(kind): raise kind
def hangs(): time.sleep(100)
def spins():
    while True: pass


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", [Unpicklable(1, 2), Unspeakable(), ZeroDivisionError("by nought"), MemoryError()], ids=lambda e: type(e).__name__)
def test_any_exception_becomes_text_with_the_name(kind, workers):
    with pytest.raises(DataError, match=r"(?s)file5.wav: " + type(kind).__name__ + ".*Traceback.*in item"):
        indices(Loader(Items(20, terrible=lambda: raises(kind), at=5), 4, num_workers=workers))


TERRIBLE = {"exit": (lambda: os._exit(3), "exit code 3"), "SystemExit": (lambda: sys.exit(4), "exit code 4"),
            "SIGKILL": (lambda: os.kill(os.getpid(), signal.SIGKILL), "SIGKILL"), "segfault": (lambda: ctypes.string_at(0), "SIGSEGV"),
            "hang": (hangs, "did not answer for 0.7 s"), "spin": (spins, "did not answer for 0.7 s")}


@pytest.mark.parametrize("thread", [False, True], ids=["main", "thread"])
@pytest.mark.parametrize("how", TERRIBLE)
def test_death_and_hanging_name_the_file(how, thread):
    what, text = TERRIBLE[how]
    loader, said = Loader(Items(40, terrible=what, at=17), 4, num_workers=2, timeout=.7), []
    def run():
        try: indices(loader)
        except DataError as problem: said.append(str(problem))
    started = time.monotonic()
    if thread: other = threading.Thread(target=run); other.start(); other.join()
    else: run()
    assert text in said[0] and "file17.wav" in said[0] and time.monotonic() - started < 8
    assert not multiprocessing.active_children()


def test_a_loader_works_again_after_a_death():
    data = Items(12, terrible=lambda: os._exit(1), at=5)
    loader = Loader(data, 4, num_workers=1)
    with pytest.raises(DataError): indices(loader)
    data.at = None
    assert indices(loader) == indices(Loader(data, 4))
    loader.close()


def test_what_cannot_be_sent():
    loader = Loader(Items(8), 4, num_workers=1, collate=lambda items: {"audio": torch.zeros(2), "what": threading.Lock()})
    with pytest.raises(DataError, match="cannot be sent.*collate"): indices(loader)
    with pytest.raises(DataError, match="no batch could be made of .*KeyError"): indices(Loader(Items(8), 4, collate=lambda items: items[0]["nothing"]))


def test_long_batches_do_not_block_the_pipes():
    "Indices and identifiers of 20,000 items are more than a pipe holds, in both directions"
    data = Items(100_000)
    loader = Loader(data, 20_000, num_workers=2, prefetch=3, collate=lambda items: {"index": torch.tensor([i["index"] for i in items]), "id": [i["id"]*4 for i in items]})
    assert sorted(sum(indices(loader), [])) == list(range(100_000))
    loader.close()


def test_iterations_that_are_left():
    loader, expected = Loader(Items(60), 4, num_workers=2, prefetch=3), indices(Loader(Items(60), 4))
    for taken in range(4):
        batches = loader.batches(0)
        assert [next(batches)["index"].tolist() for _ in range(taken)] == expected[:taken]
    assert indices(loader) == expected
    one = loader.batches(0); next(one)
    two = loader.batches(0); next(two)
    with pytest.raises(DataError, match="called again"): next(one)
    assert next(two)["index"].tolist() == expected[1]
    loader.close()
    with pytest.raises(DataError, match="closed"): next(two)
    loader.close()


def test_signals_are_left_to_the_main_process():
    loader = Loader(Items(400), 4, num_workers=1, prefetch=1)
    batches = loader.batches(0); next(batches)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1): os.kill(loader._pool.processes[0].pid, number)
    assert len(list(batches)) == 99
    loader.close()


def test_unreadable_share():
    "Stops after some items were seen; at once if none is allowed; and when nothing at all can be read"
    data = Items(200, unreadable=range(0, 200, 20))
    loader = Loader(data, 10, max_unreadable=.2)
    assert all(len(batch) == 10 and not set(batch) & set(data.unreadable) for batch in indices(loader))
    assert loader.report()["unreadable"] >= 10 and "file20.wav: truncated" == loader.report()["names"]["file20.wav"]["cause"]
    with pytest.raises(DataError, match=r"more than max_unreadable=0.02: file\d+.wav: truncated;"): indices(Loader(data, 10, max_unreadable=.02))
    with pytest.raises(DataError, match=r"1 of \d+ items"): indices(Loader(data, 10, max_unreadable=0))
    with pytest.raises(DataError, match="10 items in a row"): indices(Loader(Items(30, unreadable=range(30)), 5))


@pytest.mark.parametrize("workers", [0, 2])
def test_counts_after_resuming(workers):
    "Stopped after any batch, a new loader with the packed state ends with the same report as an unbroken run"
    data = Items(40, unreadable=[1, 11, 30])
    make = lambda: Loader(data, 5, seed=3, num_workers=workers, max_unreadable=.5)
    whole = make(); batches = [plain(b) for b in whole.batches(0)]; whole.close()
    for stop in range(1, 8, 1 if not workers else 3):
        first = make(); it = first.batches(0); head = [plain(next(it)) for _ in range(stop)]
        state = unpack_state(*pack_state(first.state_dict())); first.close()
        second = make(); second.load_state_dict(state)
        assert head + [plain(b) for b in second.batches(0, stop)] == batches and second.state_dict() == whole.state_dict()
        second.close()


def test_other_data_are_noticed(caplog):
    state = Loader(Items(40), 5).state_dict()
    with caplog.at_level(logging.WARNING): Loader(Items(41), 5).load_state_dict(state)
    assert "items was 40 and is 41 now" in caplog.text


def test_padding_is_reported():
    loader = Loader(Items(7), 7); batch = next(loader.batches(0))
    assert batch["audio"].shape == (7, 70) and sorted(batch["length"].tolist()) == [10*n for n in range(1, 8)]
    assert loader.report()["padding"] == pytest.approx(1 - 280/490)
    assert all((row[:n] == row[0]).all() and (row[n:] == 0).all() for row, n in zip(batch["audio"], batch["length"]))


def test_collate_kinds():
    items = [{"audio": np.ones((2, n)), "length": n - 1, "flag": n > 3, "gain": np.float64(n), "text": "x"*n, "f": {"n": n}, "t": torch.ones(n, 2)} for n in (3, 5)]
    batch = collate(items)
    assert batch["audio"].shape == (2, 2, 5) and batch["audio"].dtype == torch.float32 and batch["length"].tolist() == [2, 4]
    assert batch["flag"].dtype == torch.bool and batch["gain"].dtype == torch.float32 and batch["text"] == ["xxx", "xxxxx"]
    assert batch["f"] == [{"n": 3}, {"n": 5}] and batch["t"].shape == (2, 5, 2) and batch["t"][0, 3:].sum() == 0
    with pytest.raises(DataError, match="has the keys"): collate([{"a": 1}, {"b": 1}])
    with pytest.raises(DataError, match="axes"): collate([{"id": "p", "x": np.ones(3)}, {"id": "q", "x": np.ones((3, 1))}])


SCRIPT = textwrap.dedent("""
    import os, sys, time
    import numpy as np
    from audiolab.data import Loader
    class Data:
        def __len__(self): return 64
        def length(self, index): return 50_000
        def name(self, index): return str(index)
        def item(self, index, epoch): time.sleep(.01); return {"audio": np.zeros(50_000, np.float32), "index": index}
    loader = Loader(Data(), 4, num_workers=2)
    batches = loader.batches(0); next(batches)
    print(*[process.pid for process in loader._pool.processes], flush=True)
    if sys.argv[1] == "wait": time.sleep(60)
""")


def start(how):
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, how], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return process, [int(word) for word in process.stdout.readline().split()]


def alive(pid):
    try: return open(f"/proc/{pid}/stat").read().split(") ")[1][0] != "Z"
    except OSError: return False


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="optional: looks at processes in /proc")
def test_workers_leave_when_the_main_process_is_killed():
    process, pids = start("wait")
    assert len(pids) == 2 and all(map(alive, pids))
    process.kill(); process.wait()
    deadline = time.monotonic() + 10
    while any(map(alive, pids)) and time.monotonic() < deadline: time.sleep(.05)
    assert not any(map(alive, pids))
    assert not [name for name in os.listdir("/dev/shm") if f"_{process.pid}_" in name or any(f"_{pid}_" in name for pid in pids)]
    process.stdout.close(); process.stderr.close()


def test_the_interpreter_ends_without_close():
    process, pids = start("end")
    assert process.wait(20) == 0 and process.stderr.read() == "" and not any(map(alive, pids))
    process.stdout.close(); process.stderr.close()


def resources():
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(status["VmRSS"].split()[0]), len(os.listdir("/proc/self/fd")), int(status["Threads"])


def soak(epochs):
    class Big(Items):
        def item(self, index, epoch): return {"audio": np.zeros(40_000, np.float32), "index": index, "id": f"i{index}"}
    loader = Loader(Big(40), 4, num_workers=2)
    for epoch in range(5): indices(loader, epoch)
    before = resources()
    for epoch in range(epochs):
        if epoch % 7 == 3: next(loader.batches(epoch))  # left in the middle
        if epoch % 50 == 49: loader.close()
        indices(loader, epoch)
    after = resources(); loader.close()
    assert after[0] < before[0] + 30_000 and after[1] <= before[1] + 2 and after[2] <= before[2] + 1, (before, after)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="optional: looks at processes in /proc")
def test_memory_and_descriptors_stay(): soak(20)


@pytest.mark.slow
def test_memory_and_descriptors_stay_for_long(): soak(1000)
