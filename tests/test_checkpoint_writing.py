"The durable write: its order, kills, full disks, links and other writers."
import os
import random
import re
import shutil
import signal
import stat
import subprocess
import sys
import time

import numpy as np
import pytest

from audiolab.files import (
    being_written, CheckpointError, HOST_DIGEST, read_checkpoint, verify_checkpoint,
    write_checkpoint,
)
from checkpoint_files import ENV, run_python


def test_order_of_system_calls(tmp_path):
    if not shutil.which("strace"): pytest.skip("strace is not installed")
    code = ("import sys, numpy as np; from audiolab.files import write_checkpoint; "
            "write_checkpoint(sys.argv[1], {'w': np.ones(100_000)})")
    log, path = tmp_path / "strace.txt", tmp_path / "new" / "deep" / "model.safetensors"
    run = subprocess.run(["strace", "-f", "-y", "-o", log, "-e",
                          "trace=statfs,openat,fallocate,write,pwrite64,fsync,fdatasync,rename,renameat,renameat2,mkdir",
                          sys.executable, "-c", code, path], env=ENV, capture_output=True,
                          text=True)
    if run.returncode and re.search("ptrace|PTRACE|Operation not permitted", run.stderr):
        pytest.skip("strace is not allowed to trace here")
    assert run.returncode == 0, run.stderr
    temp = r"\.model\.safetensors\.tmp-\d+-[0-9a-f]{16}"
    steps = [("mkdir", r'mkdir\("[^"]*/new"'),
             ("sync its parent", rf"fsync\(\d+<{re.escape(str(tmp_path))}>\)"),
             ("mkdir", r'mkdir\("[^"]*/new/deep"'),
             ("free space", r'statfs\("[^"]*deep"'),
             ("create", rf'openat\(.*{temp}", O_WRONLY\|O_CREAT\|O_EXCL(\|O_CLOEXEC)?, 0666'),
             ("reserve", rf"fallocate\(\d+<.*{temp}>, 0, 0, 8\d{{5}}\)"),
             ("write header", rf"write\(\d+<.*{temp}>"),
             ("write data", rf"write\(\d+<.*{temp}>.*= 800000"),
             ("sync file", rf"fsync\(\d+<.*{temp}>\)\s+= 0"),
             ("open again", rf'openat\(.*{temp}", O_RDONLY'),
             ("rename", rf'rename\("[^"]*{temp}", "[^"]*/model\.safetensors"\)\s+= 0'),
             ("sync folder", r"fsync\(\d+<[^>]*/new/deep>\)\s+= 0")]
    lines = iter(log.read_text().splitlines())
    for step, pattern in steps:
        assert any(re.search(pattern, line) for line in lines), f"{step} did not come in its turn"
    # nothing touches the file after that
    assert not [line for line in lines if "safetensors" in line]


KILLED = """
import sys, numpy as np
from audiolab.files import write_checkpoint
version = int(sys.argv[2])
while True:
    version += 1
    write_checkpoint(sys.argv[1], {"head": np.full(1000, version), "body": np.full(700_000, version), "tail": np.array(version)})
    print(version, flush=True)
"""


def kill_campaign(folder, kills, seed):
    path, draw = folder / "model.safetensors", random.Random(seed)
    write_checkpoint(path, {"tail": np.array(0)})
    strays = 0
    for _ in range(kills):
        before = int(read_checkpoint(path)[0]["tail"])
        child = subprocess.Popen([sys.executable, "-c", KILLED, str(path), str(before)], env=ENV,
                                 stdout=subprocess.PIPE, text=True)
        child.stdout.readline()  # it is in its loop of overwriting now
        time.sleep(draw.uniform(0, 0.06))
        child.send_signal(signal.SIGKILL)
        reported = max([before + 1, *map(int, child.communicate()[0].split())])
        tensors, _ = read_checkpoint(path)
        version = int(tensors["tail"])
        assert version in (reported, reported + 1), "a version that was reported as saved is gone"
        assert all((tensor == version).all() for tensor in tensors.values())
        strays += sum(".tmp-" in name for name in os.listdir(folder))
    write_checkpoint(folder / "other.safetensors", {"tail": np.array(0)})
    assert sorted(os.listdir(folder)) == ["model.safetensors", "other.safetensors"]
    return strays


def test_kill_during_overwrite(tmp_path):
    kill_campaign(tmp_path, 15, seed=1)


@pytest.mark.slow
def test_kill_during_overwrite_200_times(tmp_path):
    assert kill_campaign(tmp_path, 200, seed=2) > 20  # so the kills did hit the writing


def test_stale_temps_are_removed_and_live_ones_kept(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    live = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    host, other = HOST_DIGEST, "00000000"
    names = {f".a.tmp-{dead.pid}-{host}00000000": False,
             f".a.tmp-{os.getpid()}-{host}00000000": False,
             f".b.tmp-{live.pid}-{host}00000000": True,
             f".a.tmp-{dead.pid}-{other}00000000": True,
             f".old.tmp-{live.pid}-{other}00000000": False, ".a.tmp-1-xyz": True,
             "a.tmp-1": True,
             f".a.tmp-{10**30}-{host}00000000": False}
    for name in names: (tmp_path / name).touch()
    os.utime(tmp_path / f".old.tmp-{live.pid}-{other}00000000", (1, 1))
    write_checkpoint(tmp_path / "model", {})
    live.communicate(b"\n")
    assert {name: (tmp_path / name).exists() for name in names} == names


def test_mode_and_links(tmp_path):
    old = os.umask(0o027)
    try:
        path = write_checkpoint(tmp_path / "a", {"w": np.ones(1)})
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        path.chmod(0o604)
        write_checkpoint(path, {"w": np.ones(2)})
        assert stat.S_IMODE(path.stat().st_mode) == 0o604
    finally: os.umask(old)
    (tmp_path / "link").symlink_to(path)
    content = path.read_bytes()
    write_checkpoint(tmp_path / "link", {})
    assert path.read_bytes() == content and not (tmp_path / "link").is_symlink()


DISK_FULL = """
import sys, shutil, numpy as np
from audiolab.files import HOST_DIGEST, being_written
from audiolab.files import checkpoint_file as checkpoint
folder, blind = sys.argv[1], sys.argv[2] == "blind"
if blind: shutil.disk_usage = lambda folder: shutil._ntuple_diskusage(10**12, 0, 10**12)  # so that the reservation has to find out
if len(sys.argv) > 3:
    import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10_000_000, 10_000_000))
try: checkpoint.write_checkpoint(folder + "/model.safetensors", {"w": np.zeros(25_000_000, np.uint8)})
except checkpoint.CheckpointError as error: print(error)
"""


@pytest.mark.parametrize("blind", ["blind", "looking"])
def test_disk_full_leaves_the_old_file(tmp_path, blind):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=20m", "none", disk]
    mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0
    if not mounted and blind == "looking":
        pytest.skip("a small tmpfs cannot be mounted here (needs root)")
    try:
        path = write_checkpoint(disk / "model.safetensors", {"w": np.ones(1_000_000, np.uint8)})
        run = run_python(DISK_FULL, disk, blind, *([] if mounted else ["limit"]))
        wanted = "make room" if blind == "looking" else "untouched"
        assert str(path) in run.stdout and wanted in run.stdout, run.stdout + run.stderr
        assert (os.listdir(disk) == ["model.safetensors"]
                and read_checkpoint(path)[0]["w"].sum() == 1_000_000)
    finally:
        if mounted: subprocess.run(["umount", disk], check=True)


def test_file_size_limit_is_a_clear_error(tmp_path):
    path = write_checkpoint(tmp_path / "model.safetensors", {"w": np.ones(3)})
    run = run_python(DISK_FULL, tmp_path, "blind", "limit")
    assert ("not written: File too large" in run.stdout and verify_checkpoint(path).ok
            and os.listdir(tmp_path) == ["model.safetensors"])


def test_failures_on_the_way_clean_up(tmp_path, monkeypatch):
    path = write_checkpoint(tmp_path / "model", {"w": np.ones(3)})
    def fail(*args): raise OSError(5, "Input/output error")
    def interrupt(*args): raise KeyboardInterrupt
    for name, function, error in [("fsync", fail, CheckpointError),
                                  ("write", fail, CheckpointError),
                                  ("replace", fail, CheckpointError),
                                  ("write", interrupt, KeyboardInterrupt),
                                  ("fsync", interrupt, KeyboardInterrupt)]:
        with monkeypatch.context() as patch, pytest.raises(error):
            patch.setattr(os, name, function)
            write_checkpoint(path, {"w": np.zeros(3)})
        assert (os.listdir(tmp_path) == ["model"] and read_checkpoint(path)[0]["w"].sum() == 3
                and not being_written)


def test_network_file_systems_without_these_calls(tmp_path, monkeypatch):
    fsync = os.fsync
    def unsupported(fd, *args):
        if stat.S_ISREG(os.fstat(fd).st_mode) and not args: return fsync(fd)
        raise OSError(22, "Invalid argument")
    monkeypatch.setattr(os, "fsync", unsupported)
    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    assert verify_checkpoint(write_checkpoint(tmp_path / "model", {"w": np.ones(3)})).ok


def test_short_writes_are_continued(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:1001]))
    path = write_checkpoint(tmp_path / "model", {"w": np.arange(9999)})
    assert read_checkpoint(path)[0]["w"].sum() == 9999 * 9998 // 2


def test_a_file_system_that_loses_the_end_is_noticed(tmp_path, monkeypatch):
    fsync = os.fsync
    def lossy(fd):
        if stat.S_ISREG(os.fstat(fd).st_mode): os.ftruncate(fd, 100)
        fsync(fd)
    path = write_checkpoint(tmp_path / "model", {"w": np.ones(3)})
    monkeypatch.setattr(os, "fsync", lossy)
    with pytest.raises(CheckpointError, match="did not keep"):
        write_checkpoint(path, {"w": np.zeros(300)})
    assert read_checkpoint(path)[0]["w"].sum() == 3


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for path in (tmp_path / "folder", tmp_path / "file" / "model", tmp_path / ("x" * 256)):
        with pytest.raises(CheckpointError, match="not written"): write_checkpoint(path, {})
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]
    assert write_checkpoint(tmp_path / ("x" * 255), {}).is_file()  # the longest name that there is


POWER = """
import os, sys, shutil, numpy as np
from audiolab.files import write_checkpoint
disk, image, snapshot, careless = sys.argv[1:]
save = lambda value: write_checkpoint(disk + "/model.safetensors", {"w": np.full(300_000, value)})
save(1); os.sync()
if careless: os.fsync = lambda fd: None
save(2)
shutil.copyfile(image, snapshot)  # what the disk holds at the moment save() returns
"""


@pytest.mark.parametrize("careless", ["", "no fsync"])
@pytest.mark.parametrize("options", ["data=ordered", "data=writeback,noauto_da_alloc"])
def test_power_cut(tmp_path, options, careless):
    if os.geteuid() or not shutil.which("mkfs.ext4"):
        pytest.skip("needs root and mkfs.ext4 for a disk in a file")
    disk, image, snapshot = tmp_path / "disk", tmp_path / "image", tmp_path / "snapshot"
    disk.mkdir()
    with open(image, "wb") as file: file.truncate(32 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    def mount(what, how):
        run = subprocess.run(["mount", "-o", "loop," + how, what, disk], capture_output=True,
                             text=True)
        if run.returncode:
            pytest.skip(f"a loop device cannot be mounted here: {run.stderr.strip()}")
    mount(image, options)
    try: run = run_python(POWER, disk, image, snapshot, careless)
    finally: subprocess.run(["umount", disk], check=True)
    assert run.returncode == 0, run.stderr
    mount(snapshot, options)  # replays the journal, as after a cut
    try: tensors, _ = read_checkpoint(disk / "model.safetensors")
    except CheckpointError: tensors = None
    finally: subprocess.run(["umount", disk], check=True)
    # without fsync the new version is not on the disk: so this test can tell
    lost = tensors is None or (tensors["w"] == 1).all()
    assert lost if careless else (tensors["w"] == 2).all()
