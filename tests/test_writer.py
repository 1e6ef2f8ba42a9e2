"Saving in a thread gives the files that saving in place gives, of the moment of `save`."
import gc
import os
import threading
import time
import weakref

import numpy as np
import pytest

from audiolab.files import (
    background_writer as module, CheckpointError, CheckpointFolder, CheckpointWriter, load_state,
    pack_state, read_checkpoint, verify_checkpoint,
)
from writer_folders import both, contents, names, PATIENCE

torch = pytest.importorskip("torch", reason="torch is not installed")


class HeldFolder(CheckpointFolder):
    "Saves only when let go, and notes what went on"
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.go, self.begun, self.running, self.most = threading.Event(), threading.Event(), 0, 0

    def save(self, *args, **kwargs):
        self.running += 1
        self.most = max(self.most, self.running)
        self.begun.set()
        try:
            assert self.go.wait(PATIENCE)
            return super().save(*args, **kwargs)
        finally: self.running -= 1


# --- what is saved

def many_tensors():
    generator = np.random.default_rng(0)
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    return {"plain": base.clone(), "transposed": base.clone().T, "strided": base.clone()[::2, 1::3],
            "scalar": torch.tensor(3.5),
            "empty": torch.empty(0, 7), "bf16": base.to(torch.bfloat16),
            "f8": base.to(torch.float8_e4m3fn), "bool": base > 7,
            "conjugate": torch.view_as_complex(base.reshape(12, 2).clone()).conj(),
            "negative": torch.view_as_complex(base.reshape(12, 2).clone()).conj().imag,
            "parameter": torch.nn.Parameter(base.clone()), "expanded": torch.ones(1).expand(5),
            "array": generator.normal(size=(3, 5)),
            "fortran": np.asfortranarray(generator.normal(size=(3, 5))),
            "big endian": np.arange(5, dtype=">i4"),
            "zero": np.zeros((0, 3)), "number": np.float32(2.5), "0-d": np.array(7),
            "mask": np.array([True, False])}


def change(tensors):
    with torch.no_grad():
        for value in tensors.values():
            is_tensor = isinstance(value, torch.Tensor)
            if is_tensor and not value.dtype.is_floating_point and value.dtype is not torch.bool:
                value.mul_(0)
            elif isinstance(value, torch.Tensor) and value.numel() and value.stride() != (0,):
                value.fill_(0)
            elif isinstance(value, np.ndarray): value[...] = 0


def test_the_moment_of_save_is_what_is_saved(tmp_path):
    tensors, metadata = many_tensors(), {"note": "before"}
    CheckpointFolder(tmp_path / "in place").save("a", tensors, metadata, 0.5)
    folder = HeldFolder(tmp_path / "thread")
    with CheckpointWriter(folder) as writer:
        writer.save("a", tensors, metadata, 0.5)
        assert folder.begun.wait(PATIENCE) and writer.busy and not names(tmp_path / "thread")
        change(tensors)
        metadata["note"] = "after"
        folder.go.set()
    assert contents(tmp_path / "thread") == contents(tmp_path / "in place")
    assert read_checkpoint(writer.path)[0]["plain"].sum() > 0  # and not what `change` made of it


@pytest.mark.skipif(not torch.cuda.is_available(),
                    reason="optional: needs an NVIDIA GPU that torch can use")
def test_tensors_on_a_gpu(tmp_path):
    "The copy is ordered before the next change, in page-locked memory"
    tensors = {f"t{n}": torch.full((1 << 22,), float(n), device="cuda")
               for n in range(8)} | {"cpu": torch.ones(3)}
    with CheckpointWriter(CheckpointFolder(tmp_path)) as writer:
        for turn in range(3):
            writer.save(f"step_{turn}", tensors)
            for value in tensors.values(): value.add_(1000)
            saved = read_checkpoint(writer.resolve("latest"))[0]
            for n in range(8): assert (saved[f"t{n}"] == n + 1000 * turn).all()
            assert (saved["cpu"] == 1 + 1000 * turn).all()


def test_where_no_memory_can_be_locked_ordinary_memory_does(monkeypatch):
    def refuse(*args, **kwargs): raise RuntimeError("no accelerator")
    monkeypatch.setattr(module, "_place", lambda value: "pinned")
    monkeypatch.setattr(torch, "empty", refuse)
    copies, arrived = module.Copier()({"w": torch.arange(5), "v": np.arange(3)})
    assert (copies["w"].tolist() == [0, 1, 2, 3, 4] and copies["v"].tolist() == [0, 1, 2]
            and arrived() == [])


def test_memory_is_used_again(tmp_path):
    copier = module.Copier()
    def place(**tensors): return copier(tensors)[0]["w"].__array_interface__["data"][0]
    first = place(w=np.ones(1_000_000), v=np.ones(10))
    assert place(w=np.zeros(1_000_000), v=np.ones(10)) == first == place(w=np.zeros(500_000,
        np.float32))
    copies, _ = copier({"w": np.ones(3_000_000), "t": torch.ones(7),
                        "u": np.arange(3, dtype=np.uint8), "v": np.ones(2)})
    assert all(np.asarray(c).__array_interface__["data"][0] % 64 == 0 for c in copies.values())
    assert (copies["w"].sum() == 3_000_000 and copies["t"].sum() == 7
            and copies["u"].tolist() == [0, 1, 2])


def test_only_arrays_that_nobody_can_change_are_not_copied():
    frozen, base = np.arange(5), np.arange(5)
    frozen.flags.writeable = False
    view = base.view()
    view.flags.writeable = False
    tensors = {"frozen": frozen, "part": frozen[1:], "view": view,
               "bytes": np.frombuffer(b"abc", np.uint8), "broadcast": np.broadcast_to(base, (2, 5)),
               "memory": np.frombuffer(memoryview(bytearray(b"abc")).toreadonly(), np.uint8)}
    copies, _ = module.Copier()(tensors)
    assert [name for name in tensors if copies[name] is tensors[name]] == ["frozen", "part",
        "bytes"]


@both
@pytest.mark.parametrize("value", [torch.eye(2).to_sparse(), torch.empty(2, device="meta"),
                                   np.array([{}]), np.ma.masked_equal([1, 2], 2), "text", 3, None,
                                   np.zeros(2, "f4,i4"), torch.zeros(2, dtype=torch.complex128)],
                                   ids=lambda v: type(v).__name__)
def test_what_cannot_be_stored_is_refused_by_name(tmp_path, value, background):
    with CheckpointWriter(CheckpointFolder(tmp_path), background) as writer:
        writer.save("a", {"good": np.ones(2), "the bad one": value})
        with pytest.raises(CheckpointError, match="'the bad one'.*cannot be stored"): writer.wait()
        assert not names(tmp_path)


# --- one at a time

def test_a_second_save_waits_for_the_first(tmp_path):
    folder, order = HeldFolder(tmp_path, keep_last=0), []
    writer = CheckpointWriter(folder)
    writer.save("epoch_1", {"w": np.ones(3)}, then=lambda path: order.append("1 written"))
    threading.Timer(0.2, lambda: (order.append("let go"), folder.go.set())).start()
    writer.save("epoch_2", {"w": np.full(3, 2.0)}, then=lambda path: order.append("2 written"))
    assert order[:2] == ["let go", "1 written"] and writer.blocked > 0.05
    writer.close()
    assert order[-1] == "2 written" and folder.most == 1
    for n in (1, 2):
        assert (read_checkpoint(tmp_path / f"epoch_{n}.safetensors")[0]["w"] == n).all()


def test_resolve_waits(tmp_path):
    folder = HeldFolder(tmp_path)
    with CheckpointWriter(folder) as writer:
        writer.save("epoch_1", {"w": np.ones(3)})
        threading.Timer(0.2, folder.go.set).start()
        assert (writer.resolve("auto").stem == writer.resolve("latest").stem == "epoch_1"
                and not writer.busy)


def test_then_comes_after_everything_else(tmp_path):
    folder, seen = CheckpointFolder(tmp_path), []
    def then(path):
        seen.append((verify_checkpoint(path).ok, folder.latest == path,
                     threading.current_thread() is not threading.main_thread()))
    for background in (True, False):
        with CheckpointWriter(folder, background) as writer:
            writer.save(f"epoch_{int(background)}", {"w": np.ones(3)}, then=then)
    assert seen == [(True, True, True), (True, True, False)]


def test_then_may_use_the_writer(tmp_path):
    "Without waiting for itself"
    found = []
    with CheckpointWriter(CheckpointFolder(tmp_path)) as writer:
        writer.save("epoch_1", {"w": np.ones(3)},
                    then=lambda path: found.append(writer.resolve("auto")))
    assert found == [writer.path]


@both
def test_retention_and_the_best_are_those_of_the_folder(tmp_path, background):
    losses = [9, 3, float("nan"), 1, 4, float("-inf"), 5, float("nan")]
    plain = CheckpointFolder(tmp_path / "a", keep_every=5, metric="loss")
    for n, loss in enumerate(losses):
        plain.save(f"epoch_{n}", {"w": np.full(3, n)}, metric_value=loss)
    folder, weights = CheckpointFolder(tmp_path / "b", keep_every=5, metric="loss"), np.zeros(3)
    with CheckpointWriter(folder, background) as writer:
        for n, loss in enumerate(losses):
            weights[:] = n
            writer.save(f"epoch_{n}", {"w": weights.astype(int)},
                        metric_value=torch.tensor(float(loss)))
    assert contents(tmp_path / "a") == contents(tmp_path / "b") and folder.best.stem == "epoch_3"


def test_a_whole_training_state(tmp_path):
    model = torch.nn.Linear(20, 20)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 20)).sum().backward()
    optimizer.step()
    with CheckpointWriter(CheckpointFolder(tmp_path)) as writer:
        expected = optimizer.state_dict()["state"][0]["exp_avg"].clone()
        writer.save("step_1", *pack_state({"model": model.state_dict(),
                                           "optimizer": optimizer.state_dict()}))
        optimizer.step()
        back, _ = load_state(writer.resolve("latest"))
    assert torch.equal(back["optimizer"]["state"][0]["exp_avg"], expected)


# --- cost

def test_threads_files_and_memory_stay_flat(tmp_path):
    weights = torch.zeros(10_000)
    with CheckpointWriter(CheckpointFolder(tmp_path)) as writer:
        def count():
            return threading.active_count(), len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
        writer.save("step_0", {"w": weights})
        writer.wait()
        gc.collect()  # what earlier tests left open does not count
        before = count()
        for n in range(1, 100): writer.save(f"step_{n}", {"w": weights})
        writer.wait()
        gc.collect()
        threads, files = count()
        assert threads <= before[0] and files <= before[1] and names(tmp_path) == ["step_98", "step_99"]
    gone = weakref.ref(writer)
    del writer
    gc.collect()
    assert gone() is None


def test_saving_blocks_for_little_more_than_a_copy(tmp_path):
    tensors = {f"t{n}": torch.ones(1 << 21) for n in range(12)}  # 100 MB
    target = torch.empty(1 << 21)
    def cost(work):
        begin = time.thread_time()
        work()
        return time.thread_time() - begin
    with CheckpointWriter(CheckpointFolder(tmp_path)) as writer:
        def save():
            writer.join()
            return cost(lambda: writer.save("model", tensors))
        save()
        saving = min(save() for _ in range(3))
    copying = min(cost(lambda: [target.copy_(t) for t in tensors.values()]) for _ in range(5))
    assert saving < 4 * copying + 0.003


def test_polling_costs_nothing(tmp_path):
    with CheckpointWriter(CheckpointFolder(tmp_path)) as writer:
        def cost(n=20_000):
            begin = time.thread_time()
            for _ in range(n): writer.poll()
            return (time.thread_time() - begin) / n
        def empty(n=20_000):
            begin = time.thread_time()
            for _ in range(n): (lambda: None)()
            return (time.thread_time() - begin) / n
        assert min(cost() for _ in range(5)) < 10 * min(empty() for _ in range(5))


@pytest.mark.slow
def test_reading_and_verifying_takes_little_more_than_reading(tmp_path):
    tensors = {f"t{n}": np.full(1 << 22, n, np.float32) for n in range(32)}  # 537 MB
    path = CheckpointFolder(tmp_path).save("model", tensors)
    sizes = [t.nbytes for t in tensors.values()]
    def raw():
        with open(path, "rb", buffering=0) as file:
            return [file.readinto(b) and b for b in (np.empty(size, np.uint8) for size in sizes)]
    def cost(work):
        begin = time.process_time()
        work()
        return time.process_time() - begin
    pairs = [(cost(raw), cost(lambda: read_checkpoint(path))) for _ in range(5)]
    assert min(b for _, b in pairs) < 1.3 * min(a for a, _ in pairs)
