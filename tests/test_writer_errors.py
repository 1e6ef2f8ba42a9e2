"A save in a thread hides no error, and ends with its process."
import os
import signal
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pytest

from audiolab.files import (
    background_writer as module, checkpoint_folder as state, CheckpointError, CheckpointFolder,
    CheckpointWriter, read_checkpoint, verify_checkpoint,
)
from writer_folders import both, contents, names, PATIENCE


def run_python(code, *args, **env):
    return subprocess.run([sys.executable, "-c", code, *map(str, args)], capture_output=True,
                          text=True, timeout=PATIENCE, env=os.environ | env)


# --- errors

@both
def test_a_full_disk_changes_nothing_and_the_run_goes_on(tmp_path, monkeypatch, background):
    folder = CheckpointFolder(tmp_path, metric="loss")
    def full(*args): raise OSError(28, "No space left on device")
    with CheckpointWriter(folder, background) as writer:
        for n in (1, 2): writer.save(f"epoch_{n}", {"w": np.ones(4)}, metric_value=n)
        writer.wait()
        before = contents(tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr(os, "posix_fallocate", full, raising=False)
            writer.save("epoch_3", {"w": np.ones(4)}, metric_value=0,
                        then=lambda path: pytest.fail("it was not saved"))
            with pytest.raises(CheckpointError, match="epoch_3.*No space left.*untouched"):
                writer.wait()
        assert (contents(tmp_path) == before and writer.poll() is None
                and writer.path.stem == "epoch_2")
        writer.save("epoch_4", {"w": np.ones(4)}, metric_value=3)
        writer.wait()
        assert (names(tmp_path) == ["epoch_1", "epoch_2", "epoch_4"]
                and folder.latest.stem == "epoch_4" and folder.best.stem == "epoch_1")


LIMIT = """
import resource, sys
import numpy as np
from audiolab.files import CheckpointError
from audiolab.files import CheckpointFolder
from audiolab.files import CheckpointWriter
folder = CheckpointFolder(sys.argv[1])
with CheckpointWriter(folder) as writer:
    writer.save("epoch_1", {"w": np.ones(100)}); writer.wait()
    if sys.argv[2] == "limit": resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
    writer.save("epoch_2", {"w": np.zeros(25_000_000, np.uint8)})
    try: writer.wait()
    except CheckpointError as error: print(error)
    print(writer.resolve("auto").name, folder.latest.name)
"""


@pytest.mark.skipif(os.name == "nt", reason="needs resource limits")
def test_a_file_size_limit(tmp_path):
    run = run_python(LIMIT, tmp_path, "limit")
    assert "not written: File too large" in run.stdout and run.stdout.endswith("epoch_1.safetensors epoch_1.safetensors\n"), run.stdout + run.stderr
    assert sorted(contents(tmp_path)) == ["epoch_1.safetensors", "latest.json"]


def test_a_really_full_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if not hasattr(os, "geteuid") or os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o",
        "size=20m", "none", disk], capture_output=True).returncode:
        pytest.skip("a small tmpfs cannot be mounted here (needs root)")
    try:
        run = run_python(LIMIT, disk, "disk")
        assert "make room" in run.stdout and run.stdout.endswith("epoch_1.safetensors epoch_1.safetensors\n"), run.stdout + run.stderr
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        before = contents(disk)
        with CheckpointWriter(CheckpointFolder(disk)) as writer:
            writer.save("epoch_3", {"w": np.ones(3)})
            with pytest.raises(CheckpointError, match="Read-only file system"): writer.wait()
        assert contents(disk) == before
    finally: subprocess.run(["umount", disk], check=True)


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "run").write_text("not a folder")
    with CheckpointWriter(CheckpointFolder(tmp_path / "run")) as writer:
        writer.save("epoch_1", {"w": np.ones(3)})
        with pytest.raises(CheckpointError): writer.wait()
    assert (tmp_path / "run").read_text() == "not a folder"


@both
def test_errors_wait_each_for_one_who_hears_it(tmp_path, background):
    writer = CheckpointWriter(CheckpointFolder(tmp_path), background)
    def fail(path): raise ConnectionError("the store is away")
    for n in range(3): writer.save(f"epoch_{n}", {"w": np.ones(3)}, then=fail)
    writer.join()
    with pytest.raises(CheckpointError,
                       match="epoch_0.safetensors is saved, but what was to follow failed: ConnectionError: the store is away") as caught:
        writer.poll()
    assert isinstance(caught.value.__cause__, ConnectionError)
    with pytest.raises(CheckpointError, match="epoch_1") as caught: writer.close()
    assert "epoch_2" in caught.value.__notes__[0]
    writer.close()
    with pytest.raises(CheckpointError, match="closed"): writer.save("epoch_3", {})


def test_the_error_on_its_way_matters_more(tmp_path, caplog):
    with pytest.raises(ZeroDivisionError), CheckpointWriter(CheckpointFolder(tmp_path)) as writer:
        writer.save("../bad", {})
        raise ZeroDivisionError
    assert "cannot name a checkpoint" in caplog.text


def test_no_memory_for_the_copy(tmp_path, monkeypatch):
    with CheckpointWriter(CheckpointFolder(tmp_path)) as writer:
        writer.save("epoch_1", {"w": np.ones(3)})
        def none(size): raise MemoryError
        with monkeypatch.context() as patch, pytest.raises(CheckpointError,
                                                           match="background=False"):
            patch.setattr(module, "fresh_bytes", none)
            writer.save("epoch_2", {"w": np.ones(1000)})
        writer.save("epoch_3", {"w": np.ones(2000)})
    assert names(tmp_path) == ["epoch_1", "epoch_3"]


def test_no_thread_to_be_had(tmp_path, monkeypatch):
    def refuse(self): raise RuntimeError("can't start new thread")
    with CheckpointWriter(CheckpointFolder(tmp_path)) as writer:
        monkeypatch.setattr(threading.Thread, "start", refuse)
        writer.save("epoch_1", {"w": np.ones(3)})
        assert names(tmp_path) == ["epoch_1"]


def test_unsound_neighbours_are_not_lost(tmp_path, monkeypatch):
    "The only sound file stays, however many unsound ones are written after it"
    write = state.write_checkpoint
    def rotten(path, *args):
        write(path, *args)
        with open(path, "r+b") as file:
            file.seek(-1, 2)
            file.write(b"\xee")
        return path
    with CheckpointWriter(CheckpointFolder(tmp_path,
                                           keep_best=0)) as writer, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        writer.save("epoch_0", {"w": np.ones(4)})
        writer.wait()
        with monkeypatch.context() as patch:
            patch.setattr(state, "write_checkpoint", rotten)
            for n in range(1, 6): writer.save(f"epoch_{n}", {"w": np.ones(4)})
            writer.wait()
        assert writer.resolve("auto").stem == "epoch_0"


# --- the end of the process

LEAVE = """
import sys
import numpy as np
from audiolab.files import CheckpointFolder
from audiolab.files import CheckpointWriter
writer = CheckpointWriter(CheckpointFolder(sys.argv[1]))
writer.save(sys.argv[2], {"w": np.ones(20_000_000)})
if sys.argv[3:]: raise KeyboardInterrupt
"""


@pytest.mark.parametrize("how", [[], ["interrupted"]])
def test_python_waits_for_the_thread(tmp_path, how):
    run = run_python(LEAVE, tmp_path, "epoch_1", *how)
    assert (run.returncode == 0) == (not how), run.stderr
    assert verify_checkpoint(tmp_path / "epoch_1.safetensors").ok
    assert sorted(contents(tmp_path)) == ["epoch_1.safetensors", "latest.json"]


def test_an_error_that_nobody_heard_is_logged_at_the_end(tmp_path):
    run = run_python(LEAVE, tmp_path, "../bad")
    assert run.stderr.count("cannot name a checkpoint") == 1


KILL = """
import sys
import numpy as np
from audiolab.files import CheckpointFolder
from audiolab.files import CheckpointWriter
folder = CheckpointFolder(sys.argv[1])
writer = CheckpointWriter(folder)
latest = writer.resolve("auto")
step = int(latest.stem.rpartition("_")[2]) if latest else 0
weights, more = np.full(200_000, float(step)), np.full(100_000, float(step))
while True:
    step += 1; weights += 1; more += 1
    writer.save(f"step_{step}", {"weights": weights, "more": more}, {"step": str(step)})
    writer.poll()
    print(step, flush=True)
"""


def kill_while_saving(folder, kills):
    generator, newest = np.random.default_rng(0), 0
    for _ in range(kills):
        process = subprocess.Popen([sys.executable, "-c", KILL, folder], stdout=subprocess.PIPE,
                                   text=True)
        for _ in range(int(generator.integers(1, 12))): said = process.stdout.readline()
        time.sleep(generator.uniform(0, 0.01))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        path = CheckpointFolder(folder).resolve("auto")
        tensors, metadata = read_checkpoint(path)
        step = int(metadata["step"])
        assert step >= max(newest, int(said) - 1), "a save that was followed by another was durable"
        assert (tensors["weights"] == step).all() and (tensors["more"]
                                                       == step).all(), "a mixture of steps"
        assert CheckpointFolder(folder).latest is not None
        newest = step
    CheckpointFolder(folder).save(f"step_{newest + 1}", {})
    assert not [name for name in os.listdir(folder) if ".tmp-" in name]


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_kill_while_saving(tmp_path): kill_while_saving(tmp_path, 3)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_kill_while_saving_200_times(tmp_path): kill_while_saving(tmp_path, 200)
