"What the tests of states and folders share."
import struct

import numpy as np
import pytest
import torch

# where digests that seem to be missing, which is a warning, must fail the test
strict = pytest.mark.filterwarnings("error")


def same(a, b):
    "Equal in type and to the last bit, all the way down."
    if type(a) is not type(b): return False
    if isinstance(a, torch.Tensor):
        return (a.dtype == b.dtype and a.shape == b.shape
                and torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8)))
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return (list(a) == list(b)
                and all(type(k) is type(j) and same(a[k], b[j]) for k, j in zip(a, b)))
    if isinstance(a, (list, tuple)): return len(a) == len(b) and all(map(same, a, b))
    return struct.pack("<d", a) == struct.pack("<d", b) if isinstance(a, float) else a == b
