"A data set in memory for the tests of loaders, and what must be gone after each of them."
import multiprocessing
import os

import numpy as np
import torch

from audiolab.audio import AudioError


class Items:
    "Item i has 10*(i%7+1) samples; some are unreadable; one may do something terrible"
    sample_rate = 100

    def __init__(self, n, unreadable=(), terrible=None, at=None):
        self.n, self.unreadable = n, unreadable
        self.terrible, self.at = terrible, at

    def __len__(self): return self.n
    def length(self, index): return 10*(index % 7 + 1)
    def name(self, index): return f"file{index}.wav"

    def item(self, index, epoch):
        if index == self.at: self.terrible()
        if index in self.unreadable: raise AudioError(self.name(index), "truncated")
        audio = np.full(self.length(index), index + epoch/10, np.float32)
        return {"audio": audio, "index": index, "id": f"i{index}"}


def indices(loader, epoch=0, start=0):
    return [batch["index"].tolist() for batch in loader.batches(epoch, start)]


def plain(batch):
    return {key: value.tolist() if isinstance(value, torch.Tensor) else value
            for key, value in batch.items()}


def shared_memory():
    "Names in shared memory that belong to this process"
    names = os.listdir("/dev/shm") if os.path.isdir("/dev/shm") else []
    return {name for name in names if f"_{os.getpid()}_" in name}


def check_nothing_is_left():
    "For a fixture: no process and nothing in shared memory outlives a test"
    before = shared_memory()
    yield
    assert not multiprocessing.active_children() and not shared_memory() - before
