"Workers of a loader: they die, hang, raise what cannot be sent, are left; nothing remains."
import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest
import torch
from child_processes import PATIENCE, script, until
from loader_items import Items, check_nothing_is_left, indices

from audiolab.data import DataError, Loader


@pytest.fixture(autouse=True)
def nothing_is_left(): yield from check_nothing_is_left()


class Unpicklable(Exception):
    def __init__(self, a, b):
        super().__init__("cannot be sent")
        self.lock = threading.Lock()
class Unspeakable(Exception):
    def __str__(self): raise RuntimeError("no")
def raises(kind): raise kind
def hangs(): threading.Event().wait()
def spins():
    while True: pass


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind",
                         [Unpicklable(1, 2), Unspeakable(), ZeroDivisionError("by nought"),
                          MemoryError()], ids=lambda e: type(e).__name__)
def test_any_exception_becomes_text_with_the_name(kind, workers):
    with pytest.raises(DataError,
                       match=r"(?s)file5.wav: " + type(kind).__name__ + ".*Traceback.*in item"):
        indices(Loader(Items(20, terrible=lambda: raises(kind), at=5), 4, num_workers=workers))


def is_killed(): os.kill(os.getpid(), signal.SIGKILL)


TERRIBLE = {"exit": (lambda: os._exit(3), "exit code 3"),
            "SystemExit": (lambda: sys.exit(4), "exit code 4"), "SIGKILL": (is_killed, "SIGKILL"),
            "segfault": (lambda: ctypes.string_at(0), "SIGSEGV"),
            "hang": (hangs, "did not answer for 0.7 s"),
            "spin": (spins, "did not answer for 0.7 s")}


@pytest.mark.parametrize("thread", [False, True], ids=["main", "thread"])
@pytest.mark.parametrize("how", TERRIBLE)
def test_death_and_hanging_name_the_file(how, thread):
    what, text = TERRIBLE[how]
    loader, said = Loader(Items(40, terrible=what, at=17), 4, num_workers=2, timeout=.7), []
    def run():
        try: indices(loader)
        except DataError as problem: said.append(str(problem))
    if thread:
        other = threading.Thread(target=run)
        other.start()
        other.join()
    else: run()
    assert text in said[0] and "file17.wav" in said[0]
    assert not multiprocessing.active_children()


def test_a_loader_works_again_after_a_death():
    data = Items(12, terrible=lambda: os._exit(1), at=5)
    loader = Loader(data, 4, num_workers=1)
    with pytest.raises(DataError): indices(loader)
    data.at = None
    assert indices(loader) == indices(Loader(data, 4))
    loader.close()


def test_what_cannot_be_sent():
    loader = Loader(Items(8), 4, num_workers=1,
                    collate=lambda items: {"audio": torch.zeros(2), "what": threading.Lock()})
    with pytest.raises(DataError, match="cannot be sent.*collate"): indices(loader)
    with pytest.raises(DataError, match="no batch could be made of .*KeyError"):
        indices(Loader(Items(8), 4, collate=lambda items: items[0]["nothing"]))


def test_long_batches_do_not_block_the_pipes():
    "Indices and identifiers of 20,000 items are more than a pipe holds, in both directions"
    data = Items(100_000)
    loader = Loader(data, 20_000, num_workers=2, prefetch=3,
                    collate=lambda items: {"index": torch.tensor([i["index"] for i in items]),
                                           "id": [i["id"]*4 for i in items]})
    assert sorted(sum(indices(loader), [])) == list(range(100_000))
    loader.close()


def test_iterations_that_are_left():
    loader, expected = Loader(Items(60), 4, num_workers=2,
                              prefetch=3), indices(Loader(Items(60), 4))
    for taken in range(4):
        batches = loader.batches(0)
        assert [next(batches)["index"].tolist() for _ in range(taken)] == expected[:taken]
    assert indices(loader) == expected
    one = loader.batches(0)
    next(one)
    two = loader.batches(0)
    next(two)
    with pytest.raises(DataError, match="called again"): next(one)
    assert next(two)["index"].tolist() == expected[1]
    loader.close()
    with pytest.raises(DataError, match="closed"): next(two)
    loader.close()


def test_signals_are_left_to_the_main_process():
    loader = Loader(Items(400), 4, num_workers=1, prefetch=1)
    batches = loader.batches(0)
    next(batches)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        os.kill(loader.feed.pool.workers[0].process.pid, number)
    assert len(list(batches)) == 99
    loader.close()


SCRIPT = textwrap.dedent("""
    import os, sys, time
    import numpy as np
    from audiolab.data import Loader
    class Data:
        def __len__(self): return 64
        def length(self, index): return 50_000
        def name(self, index): return str(index)
        def item(self, index, epoch):
            time.sleep(.01)
            return {"audio": np.zeros(50_000, np.float32), "index": index}
    loader = Loader(Data(), 4, num_workers=2)
    batches = loader.batches(0); next(batches)
    print(*[worker.process.pid for worker in loader.feed.pool.workers], flush=True)
    if sys.argv[1] == "wait": time.sleep(60)
""")


def start(how):
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, how], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    return process, [int(word) for word in process.stdout.readline().split()]


def alive(pid):
    try: return open(f"/proc/{pid}/stat").read().split(") ")[1][0] != "Z"
    except OSError: return False


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="optional: looks at processes in /proc")
def test_workers_leave_when_the_main_process_is_killed():
    process, pids = start("wait")
    assert len(pids) == 2 and all(map(alive, pids))
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while any(map(alive, pids)) and time.monotonic() < deadline: time.sleep(.05)
    assert not any(map(alive, pids))
    assert not [name for name in os.listdir("/dev/shm") if f"_{process.pid}_" in name
                or any(f"_{pid}_" in name for pid in pids)]
    process.stdout.close()
    process.stderr.close()


FULL_PIPE = """
import os, sys, time, torch
from audiolab.data import Loader, map_in_processes
class Data:
    def __len__(self): return 64
    def item(self, i, epoch=0): return {"x": torch.zeros(1500)}
    def name(self, i): return str(i)
loader = Loader(Data(), 8, num_workers=2)
next(loader.batches(0))
results = map_in_processes(bytes, [0, *[60_000]*64], 2)
next(results)
bystander = os.fork()  # of somebody else, that lives on
if not bystander: time.sleep(60); os._exit(0)
import multiprocessing
print(bystander, *(p.pid for p in multiprocessing.active_children()), flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="optional: looks at processes in /proc")
def test_no_worker_waits_for_ever_to_get_rid_of_a_batch():
    "48 kB do not fit twice into a pipe, and the main process that would read them is killed"
    process = subprocess.Popen([sys.executable, "-c", FULL_PIPE], stdout=subprocess.PIPE, text=True)
    bystander, *pids = map(int, process.stdout.readline().split())
    try:
        assert len(pids) == 4 and all(map(alive, pids))
        process.kill()
        process.wait()
        until(lambda: not any(map(alive, pids)), "the end of all workers")
        assert alive(bystander)
    finally:
        os.kill(bystander, signal.SIGKILL)
        process.stdout.close()


NO_ROOM = """
import os, signal, sys
from loader_items import Items
from audiolab.data import DataError, Loader, map_in_processes
signal.signal(signal.SIGTERM, lambda *args: None)  # as in training; a fork inherits it
forks, fork = [], os.fork
def few():
    forks.append(1)
    if len(forks) % 4 == 0: raise BlockingIOError(11, "Resource temporarily unavailable")
    return fork()
os.fork = few
for start in (lambda: next(Loader(Items(64), 8, num_workers=8).batches(0)),
              lambda: next(map_in_processes(abs, range(20), 8))):
    try: start()
    except DataError as problem: print(problem)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_python_ends_when_workers_cannot_be_started():
    done = subprocess.run([sys.executable, "-c", NO_ROOM], capture_output=True, text=True,
                          timeout=PATIENCE, cwd=os.path.dirname(__file__))
    assert done.returncode == 0, done.stderr
    assert [line.partition("use")[2].split(",")[0] for line in done.stdout.splitlines()] == [
        " fewer num_workers", " fewer workers"]
    assert "only 3 of 8 processes could be started (" in done.stdout


def test_the_interpreter_ends_without_close():
    process, pids = start("end")
    assert process.wait(20) == 0 and process.stderr.read() == "" and not any(map(alive, pids))
    process.stdout.close()
    process.stderr.close()


def resources():
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(status["VmRSS"].split()[0]), len(os.listdir("/proc/self/fd")), int(status["Threads"])


def soak(epochs):
    class Big(Items):
        def item(self, index, epoch):
            return {"audio": np.zeros(40_000, np.float32), "index": index, "id": f"i{index}"}
    loader = Loader(Big(40), 4, num_workers=2)
    for epoch in range(5): indices(loader, epoch)
    before = resources()
    for epoch in range(epochs):
        if epoch % 7 == 3: next(loader.batches(epoch))  # left in the middle
        if epoch % 50 == 49: loader.close()
        indices(loader, epoch)
    after = resources()
    loader.close()
    more = [now - then for now, then in zip(after, before)]  # kB, descriptors, threads
    assert more[0] < 30_000 and more[1] <= 2 and more[2] <= 1, (before, after)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="optional: looks at processes in /proc")
def test_memory_and_descriptors_stay(): soak(20)


@pytest.mark.slow
def test_memory_and_descriptors_stay_for_long(): soak(1000)


def test_iterations_left_half_way_end_with_python_in_silence(monkeypatch):
    "At its end names are gone and processes cannot be stopped any more"
    child = script("from audiolab.data import Loader, map_in_processes\n"
                   "left = map_in_processes(abs, range(100), 2)\nprint(next(left))")
    assert child.communicate(timeout=PATIENCE) == ("0\n", "") and child.returncode == 0
    batches = iter(Loader(Items(20), 4).batches(0))
    next(batches)
    monkeypatch.setattr("audiolab.data.loader.DataError", None)
    batches.close()
