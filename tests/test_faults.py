"""What befalls a whole training run: power cuts, full disks, lost permissions, dead workers, preemption, jumping clocks, no memory.

As a program: python test_faults.py CHILD key=value ...  is a run that such a thing happens to.
"""
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from itertools import count
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from engine_tasks import Denoise, config
from fault_runs import ENV, be_child, child_of, final, one_thread, unbroken  # noqa: F401

from audiolab.files import CheckpointError, verify_checkpoint
from audiolab.training import read_history
from audiolab.files import CheckpointFolder
from audiolab.training import OutOfMemory, Trainer

ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


child = child_of(globals())


def no_temporary_files(folder):
    return not [path for path in Path(folder).rglob(".*tmp*")
                if not path.relative_to(folder).parts[0].startswith("previous-")]


# --- power cuts, simulated with a disk in a file whose content is copied at the moment of the cut

SHORT = dict(steps=10, save_every="2 steps", keep_last=2, validate_every="never", log_every=1)


def power(disk, image, shots, careless):
    "Train on a disk; copy the disk at every system call of two saves, and whenever a checkpoint is announced"
    announced, number, real = [0], count(), {name: getattr(os, name) for name in ("fsync", "replace", "unlink")}
    def shoot(label):
        target = f"{shots}/{next(number)}"
        subprocess.run(["cp", "--sparse=always", image, target], check=True)
        sys.stdout.write(
            json.dumps({"image": target, "label": label, "announced": max(announced)}) + "\n")
        sys.stdout.flush()
    def watched(name):
        def call(*args, **kwargs):
            interesting = (not careless and threading.current_thread().name == "checkpoint writer"
                           and 4 <= trainer.loop.step <= 7)
            if interesting and name == "fsync": shoot(f"before {name}, step {trainer.loop.step}")
            result = None if careless and name == "fsync" else real[name](*args, **kwargs)
            if interesting: shoot(f"after {name}, step {trainer.loop.step}")
            return result
        return call
    def listen(event):
        if event.kind == "checkpoint" and event.values["kind"] == "step":
            announced.append(int(re.search(r"_(\d+)\.", event.values["path"])[1]))
            shoot("announced")
    trainer = Trainer(Denoise(), config(**SHORT), f"{disk}/run", [listen])
    os.sync()
    for name in real: setattr(os, name, watched(name))
    trainer.fit()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("careless", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["", "no fsync"])
@pytest.mark.parametrize("options", [pytest.param("data=ordered", marks=pytest.mark.slow), "data=writeback,noauto_da_alloc"])
def test_power_cut_at_every_step_of_a_save(tmp_path, options, careless):
    "A run resumes from a sound checkpoint, never from an older one than was announced, and ends as if nothing had happened"
    if not ROOT or not shutil.which("mkfs.ext4"): pytest.skip("needs root and mkfs.ext4 for a disk in a file")
    disk, image, shots = tmp_path/"disk", tmp_path/"image", tmp_path/"shots"
    disk.mkdir()
    shots.mkdir()
    with open(image, "wb") as file: file.truncate(24 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-J", "size=4", "-E", "lazy_itable_init=0,lazy_journal_init=0", image], check=True)
    def mount(what):
        run = subprocess.run(["mount", "-o", "loop," + options, what, disk],
                             capture_output=True, text=True)
        if run.returncode: pytest.skip(f"a loop device cannot be mounted here: {run.stderr.strip()}")
    mount(image)
    try:
        cuts = child("power", disk=str(disk), image=str(image), shots=str(shots), careless=careless)
    finally: subprocess.run(["umount", disk], check=True)
    whole, lost = unbroken(tmp_path/"whole", **SHORT), []
    for cut in cuts:
        mount(cut["image"])  # replays the journal, as after a cut
        try:
            newest = CheckpointFolder(disk/"run"/"checkpoints").resolve("auto")
            step = int(newest.stem.rpartition("_")[2]) if newest and newest.stem != "checkpoint_final" else 10 if newest else 0
            if step < cut["announced"]: lost.append(cut)
            if careless: continue
            result = Trainer(Denoise(), config(**SHORT), disk/"run").fit(resume="auto")
            assert result.state == "completed" and final(disk/"run") == whole, cut
            assert no_temporary_files(disk/"run"), cut
        finally: subprocess.run(["umount", disk], check=True)
    if careless: assert lost  # so this test can tell
    else: assert not lost and len(cuts) >= 15 and len({cut["label"] for cut in cuts}) >= 5, cuts


def train(folder, **changes):
    def listen(event):
        if event.kind == "checkpoint": os.write(1, f"announced {event.values['path']}\n".encode())
    Trainer(Denoise(), config(**changes), folder, [listen]).fit()


def test_order_of_system_calls_of_a_save_in_the_background(tmp_path):
    "File durable, renamed, folder durable; then the pointer; then what is not kept goes; and only then it is announced"
    if not shutil.which("strace"): pytest.skip("strace is not installed")
    log, folder = tmp_path/"strace.txt", tmp_path/"run"
    run = subprocess.run(["strace", "-f", "--seccomp-bpf", "-y", "-s", "300", "-o", log, "-e", "trace=fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat,write",
                          sys.executable, __file__, "train", f"folder={json.dumps(str(folder))}", "steps=8", 'save_every="2 steps"', "keep_last=2",
                          'validate_every="never"'], env=ENV, capture_output=True, text=True)
    if run.returncode and re.search("ptrace|PTRACE|Operation not permitted", run.stderr):
        pytest.skip("strace is not allowed to trace here")
    assert run.returncode == 0, run.stderr
    begun, calls = {}, []
    for line in log.read_text().splitlines():
        pid, _, text = line.partition(" ")
        if text.endswith("<unfinished ...>"): begun[pid] = text.removesuffix("<unfinished ...>")
        else:
            calls.append(begun.pop(pid, "").strip() + re.sub(r"<\.\.\. \w+ resumed>", "",
                                                             text).strip() if "resumed>" in text
                                                             else text.strip())
    where = re.escape(str(folder/"checkpoints"))
    def temp(name): return rf"{where}/\.{re.escape(name)}\.tmp-\d+-[0-9a-f]{{16}}"
    for step in (2, 4, 6, 8):
        # the next save may begin before this one is announced
        name, lines = f"checkpoint_step_{step}.safetensors", iter(calls)
        for what, pattern in [("file", rf"fsync\(\d+<{temp(name)}>\)\s*= 0"), ("rename", rf'rename\("{temp(name)}", "{where}/{re.escape(name)}"\)\s*= 0'),
                              ("folder", rf"fsync\(\d+<{where}>\)\s*= 0"), ("pointer", rf"fsync\(\d+<{temp('latest.json')}>\)\s*= 0"),
                              ("pointer renamed", rf'rename\("{temp("latest.json")}", "{where}/latest\.json"\)\s*= 0'), ("folder again", rf"fsync\(\d+<{where}>\)\s*= 0"),
                              *([("removal", rf'unlink\("{where}/checkpoint_step_{step - 4}\.safetensors"\)\s*= 0')] if step > 4 else []),
                              ("announcement", rf'write\(1<.*"announced checkpoints/{re.escape(name)}')]:
            assert any(re.search(pattern, line) for line in lines), f"step {step}: {what} did not come in its turn"
    assert not [line for line in calls if line.startswith("unlink") and "checkpoint_step_8" in line
                and "tmp" not in line]


# --- disks that refuse

CASES = {"permission": "Permission denied", "quota": "File too large", "full": "make room|No space left"}


def troubles(folder, disk):
    "All of them, in a process of its own because they limit it"
    importlib.import_module("audiolab.training.saver").RETRY_WAITS = .01, .01
    Trainer(Denoise(), config(steps=2), f"{folder}/warm").fit()  # so that everything is imported
    for how in CASES:
        for policy in ("continue", "stop", *(["to the end"] if how == "full" else ())):
            place = f"{disk if how == 'full' else folder}/{how} {policy}"
            if how != "full" or disk:
                os.mkdir(place)
                trouble(place, how, policy.replace("to the end", "continue"), 99 if policy == "to the end" else 8, f"{how} {policy}")


def trouble(folder, how, policy, until, label):
    "A run whose disk refuses checkpoints from step 4 on, until step 8; then what is there is printed"
    import resource
    folder, problems = Path(folder), []
    path = folder/"run"/"checkpoints"
    def ballast():
        with open(folder/"ballast", "wb", 0) as file:
            for size in (65536, 4096, 1):
                try:
                    while True: file.write(b"x" * size)
                except OSError: pass
    def begin():
        if how == "permission": path.chmod(0o555)
        elif how == "quota": resource.setrlimit(resource.RLIMIT_FSIZE, (next(path.glob("*_2.safetensors")).stat().st_size - 1, resource.RLIM_INFINITY))
        else: ballast()
    def end():
        if how == "permission": path.chmod(0o755)
        elif how == "quota":
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        else: (folder/"ballast").unlink()
    def listen(event):
        if event.kind == "problem": problems.append(event.values["message"])
        if event.kind == "log" and event.step == 4:
            trainer.run.saver.writer.wait()
            begin()
        if event.kind == "log" and event.step == until:
            trainer.run.saver.writer.join()
            end()
    if os.geteuid() == 0 and how == "permission":
        os.chown(folder, 65534, 65534)
        os.setegid(65534)
        os.seteuid(65534)
    trainer = Trainer(Denoise(), config(**SHORT | {"on_save_error": policy}),
                      folder/"run", [listen])
    state = error = None
    try: state = trainer.fit().state
    except CheckpointError as cause: error = str(cause)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        if os.geteuid() != os.getuid():
            os.seteuid(os.getuid())
            os.setegid(os.getgid())
    sound = sorted(p.stem for p in path.glob("*.safetensors") if verify_checkpoint(p).ok)
    steps = [row["step"] for row in read_history(folder/"run") if row["kind"] == "log"]
    print(json.dumps({"label": label, "folder": str(folder), "steps": steps, "state": state, "error": error, "problems": problems, "sound": sound, "all": sorted(p.stem for p in path.glob("*.safetensors")),
                      "temporary": not no_temporary_files(folder),
                      "lock": (folder/"run"/"run.lock").exists(), "ended": trainer.control.state}),
                      flush=True)
    (folder/"ballast").unlink(missing_ok=True)


@pytest.fixture(scope="module")
def refused(tmp_path_factory):
    "What became of runs whose disk refused, by kind and policy; for full ones a small tmpfs is needed"
    # the first not below folders that only their owner may enter
    folder, disk = Path(tempfile.mkdtemp()), tmp_path_factory.mktemp("disk")
    mounted = ROOT and subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk],
                                      capture_output=True).returncode == 0
    if ROOT: os.chmod(folder, 0o755)
    try:
        yield {found["label"]: found for found in child("troubles", folder=str(folder),
                                                        disk=str(disk) if mounted else "")}
    finally:
        if mounted: subprocess.run(["umount", disk], check=True)
        for path in folder.rglob("*/"): os.chmod(path, 0o755)  # who is not root could not remove it
        shutil.rmtree(folder)


def refused_as(refused, label):
    if label not in refused: pytest.skip("a small tmpfs cannot be mounted here (needs root)")
    found = refused[label]
    assert found["problems"] and re.search(CASES[label.split()[0]], found["problems"][0]) and "checkpoint_step_4" in found["problems"][0], found
    assert not found["temporary"] and not found["lock"] and found["sound"] == found["all"], found
    return found


@pytest.mark.parametrize("how", CASES)
def test_a_disk_that_refuses_for_a_while(refused, how, tmp_path):
    "By default the run goes on, says so, and saves again when it can; nothing that was saved before is lost"
    found = refused_as(refused, f"{how} continue")
    assert found["state"] == "completed" and len(found["problems"]) == 2, found
    assert found["sound"] == ["checkpoint_final", "checkpoint_step_10", "checkpoint_step_8"], found
    assert final(Path(found["folder"])/"run") == unbroken(tmp_path/"whole", **SHORT)
    assert found["steps"] == [*range(1, 11)]  # rows that could not be written were written later


@pytest.mark.parametrize("how", CASES)
def test_a_disk_that_refuses_may_end_the_run(refused, how):
    found = refused_as(refused, f"{how} stop")
    assert re.search(CASES[how], found["error"]) and found["ended"] == "failed" and "checkpoint_step_2" in found["sound"], found


def test_a_disk_that_stays_full(refused):
    "To the end of the run: it ends all the same, as failed, and what was saved before is there"
    found = refused_as(refused, "full to the end")
    assert found["state"] is None and found["ended"] == "failed", found
    assert "the run ends without its last files" in found["error"], found
    assert found["sound"] == ["checkpoint_step_2"] and len(found["problems"]) >= 4, found


def test_a_folder_that_cannot_be_written_from_the_start(tmp_path):
    (tmp_path/"file").write_text("not a folder")
    with pytest.raises(OSError, match="file"):
        Trainer(Denoise(), config(), tmp_path/"file"/"run").fit()
    with pytest.raises(OSError, match="proc"): Trainer(Denoise(), config(), "/proc/run").fit()


# --- memory

def memories(folder):
    for how in ("save", "step"): memory(f"{folder}/{how}", how)


def memory(folder, how):
    "A run that gets no more memory from step 6 on: for its step, or for the copies that are saved"
    import resource
    def limit(extra):
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + extra if extra else resource.RLIM_INFINITY,
                                                resource.RLIM_INFINITY))
    class Large(Denoise):
        def setup(self, loop):
            super().setup(loop)
            # 80 MB that only saving copies
            if how == "save": loop.module("ballast", torch.nn.Embedding(20_000, 1000))
        def step(self, batch, loop):
            if how == "step" and loop.step == 6:
                limit(50 << 20)
                torch.ones(100 << 20)
            if how == "save" and loop.step in (2, 6): limit(60 << 20 if loop.step == 2 else 0)
            return super().step(batch, loop)
    problems, said = [], ""
    def listen(event):
        if event.kind == "problem": problems.append(event.values["message"])
    saves = "2 steps" if how == "step" else "4 steps"
    trainer = Trainer(Large(), config(steps=8, save_every=saves, validate_every="never",
                                      ema_decay=0), folder, [listen])
    try: state = trainer.fit().state
    except OutOfMemory as error: state, said = "out of memory", str(error)
    limit(0)
    files = sorted((Path(folder)/"checkpoints").glob("*.safetensors"))
    print(json.dumps({"state": state, "said": said, "problems": problems,
                      "sound": [p.stem for p in files if verify_checkpoint(p).ok],
                      "all": [p.stem for p in files],
                      "temporary": not no_temporary_files(folder)}))


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="optional: needs the limits and /proc of Linux")
def test_no_memory(tmp_path):
    "For a step: OutOfMemory with a remedy, and whole checkpoints only. For the copy that is saved: the run goes on, and saves again when it can"
    saving, found = child("memories", folder=str(tmp_path))
    assert found["state"] == "out of memory"
    assert "at step 6 with batches of 8: reduce batch_size" in found["said"]
    assert found["sound"] == found["all"] == ["checkpoint_step_2", "checkpoint_step_4", "checkpoint_step_6"] and not found["temporary"]
    assert Trainer(Denoise(), config(steps=8, save_every="never", ema_decay=0),
                   tmp_path/"step").fit(resume="auto").state == "completed"
    assert saving["state"] == "completed" and any(
        "no memory" in text for text in saving["problems"]) and not saving["temporary"], saving
    assert saving["sound"] == saving["all"] and "checkpoint_final" in saving["all"] and "checkpoint_step_4" not in saving["all"], saving


if __name__ == "__main__": be_child(globals())
