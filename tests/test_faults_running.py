"""What befalls a running run: dead workers, killed processes, preemption, jumping clocks, processes that stop each other.

As a program: python test_faults_running.py CHILD key=value ...  is a run that such a thing happens to.
"""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from child_processes import children_of
from engine_tasks import Adversarial, Denoise, Hums, alive, config
from fault_runs import ENV, be_child, child_of, final, one_thread, unbroken  # noqa: F401

from audiolab.data import DataError, Loader
from audiolab.files import CheckpointFolder
from audiolab.training import Trainer, read_history



child = child_of(globals())


# --- workers

class Unpicklable(Exception):
    def __init__(self, one, two): super().__init__(one)
    def __reduce__(self): raise TypeError("cannot be pickled")


def hang(): time.sleep(3600)
def die(): os._exit(3)
def be_killed(): os.kill(os.getpid(), signal.SIGKILL)
def refuse(): raise Unpicklable(1, 2)


class Fragile(Denoise):
    "Item 7 does something terrible in the second epoch"
    def __init__(self, terrible, workers):
        super().__init__(workers)
        self.terrible = terrible
    def data(self, loop):
        def fault(index, epoch):
            if (index, epoch) == (7, 1): self.terrible()
        return Loader(Hums(40, fault=fault), loop.config.batch_size, seed=loop.seed,
                      num_workers=self.workers, timeout=1.5)


@pytest.mark.parametrize("terrible, says",
                         [(hang, "did not answer for 1.5 s"), (die, "exit code 3"), (be_killed, "SIGKILL"), (refuse, "Unpicklable")], ids=lambda v: getattr(v, "__name__", ""))
def test_a_worker_hangs_dies_or_raises_what_cannot_be_sent(terrible, says, tmp_path):
    "The run ends without waiting, names the item, has saved what was learnt, and goes on from there once the item is gone"
    with pytest.raises(DataError, match=rf"(?s){says}.*hum-7|hum-7.*{says}"):
        Trainer(Fragile(terrible, 2), config(steps=15, save_every="never", validate_every="never"),
                tmp_path/"run").fit()
    saved = CheckpointFolder(tmp_path/"run"/"checkpoints").resolve("auto")
    assert 5 <= int(saved.stem.rpartition("_")[2]) < 10
    Trainer(Denoise(), config(steps=15, save_every="never", validate_every="never"),
            tmp_path/"run").fit(resume="auto")
    assert final(tmp_path/"run") == unbroken(tmp_path/"whole", steps=15, save_every="never",
                                             validate_every="never")


def until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(.02)


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="optional: needs the shared memory of Linux")
def test_a_killed_run_leaves_no_worker_and_no_shared_memory(tmp_path):
    program = [sys.executable, str(Path(__file__).with_name("engine_tasks.py")), "denoise",
               str(tmp_path), "workers=2", "slow=0.02", "steps=100000", 'save_every="2 steps"', "keep_last=2"]
    process = subprocess.Popen(program, env=ENV | {"SAY": "1"}, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("log 9"): break
    workers = children_of(process.pid)
    assert len(workers) >= 2
    process.kill()
    process.wait()
    until(lambda: not any(alive(pid) for pid in workers), 60)
    assert not [name for name in os.listdir("/dev/shm")
                if any(f"_{pid}_" in name for pid in (process.pid, *workers))]
    assert Trainer(Denoise(2), config(steps=30, save_every="never"),
                   tmp_path).fit(resume="auto").state == "completed"


# --- a cluster that takes its machines back

JOB = """#!/bin/sh
#SBATCH --signal=USR1@60 --requeue
srun {python} {program} adversarial {folder} steps=30 'save_every="never"' slow=0.03
code=$?
if [ $code -eq 75 ]; then scontrol requeue $SLURM_JOB_ID; fi
exit $code
"""


@pytest.mark.parametrize("times", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_preempted_and_queued_again(tmp_path, times):
    "SIGUSR1, a checkpoint, exit code 75, scontrol requeue, --resume auto: as often as needed, and the end equals that of an unbroken run"
    if os.name == "nt": pytest.skip("optional: needs a shell")
    tools, folder, queue = tmp_path/"bin", tmp_path/"run", tmp_path/"queue"
    tools.mkdir()
    for name, body in {"srun": 'exec "$@"', "scontrol": f'echo "$@" >> {queue}'}.items():
        (tools/name).write_text(f"#!/bin/sh\n{body}\n")
        (tools/name).chmod(0o755)
    (tmp_path/"job.sh").write_text(JOB.format(python=sys.executable,
                                              program=Path(__file__).with_name("engine_tasks.py"),
                                              folder=folder))
    codes, asked = [], 0
    while not codes or codes[-1] == 75:
        job = subprocess.Popen(["sh", tmp_path/"job.sh"], env=ENV | {"PATH": f"{tools}:{os.environ['PATH']}", "SLURM_JOB_ID": "4711", "SAY": "1"}, stdout=subprocess.PIPE, text=True)
        for line in job.stdout:
            if asked < times and line.startswith("log"):  # the machine is wanted by somebody else
                os.kill(json.loads((folder/"run.lock").read_text())["pid"], signal.SIGUSR1)
                asked += 1
                break
        job.communicate(timeout=60)
        codes.append(job.returncode)
    assert codes == [75] * times + [0] and queue.read_text() == "requeue 4711\n" * times
    steps = [row["step"] for row in read_history(folder) if row["kind"] == "start"]
    assert len(steps) == times + 1 and steps == sorted(steps) and 0 < steps[1] and steps[-1] < 30
    assert final(folder) == unbroken(tmp_path/"whole", Adversarial, steps=30, save_every="never")


# --- clocks

def test_a_clock_that_jumps(tmp_path, monkeypatch):
    "Summer time, a wrong battery, a time server: what the run measures and when it saves depend on no calendar"
    jumps, real = np.random.default_rng(0), time.time
    monkeypatch.setattr(time, "time", lambda: real() + jumps.uniform(-1, 1) * 10**9)
    settings = dict(steps=30, save_every="10 minutes", validate_every="1 minutes", sample_every="1 minutes", log_every=1)
    Trainer(Denoise(), config(**settings), tmp_path/"run").fit()
    rows = read_history(tmp_path/"run")
    assert [row["kind"] for row in rows if row["kind"] in ("checkpoint", "sample")] == ["checkpoint"] * len([row for row in rows if row["kind"] == "checkpoint"])
    assert {row["values"]["kind"] for row in rows if row["kind"] == "checkpoint"} <= {"final", "model", "best"}
    seconds = [row["seconds"] for row in rows if row["kind"] != "start"]
    assert seconds == sorted(seconds) and 0 <= seconds[0] and seconds[-1] < 60
    for row in rows:
        if row["kind"] == "log":
            assert row["values"]["steps_per_second"] > 0 and all(0 <= v <= 1 for k, v in row["values"].items() if k.startswith("share/"))
    monkeypatch.undo()
    for n, path in enumerate(sorted((tmp_path/"run"/"checkpoints").iterdir())):
        os.utime(path, (2**31 - 10 * n,) * 2)
    assert Trainer(Denoise(), config(**settings | {"steps": 40}),
                   tmp_path/"run").fit(resume="auto").step == 40


def test_the_newest_file_is_the_one_saved_last_whatever_its_date(tmp_path):
    Trainer(Denoise(), config(steps=6, save_every="2 steps", validate_every="never"),
            tmp_path).fit()
    (tmp_path/"checkpoints"/"checkpoint_final.safetensors").unlink()
    for step in (2, 4, 6):
        os.utime(tmp_path/"checkpoints"/f"checkpoint_step_{step}.safetensors",
                 (10**9 - 10**8 * step,) * 2)
    assert CheckpointFolder(tmp_path/"checkpoints").resolve("auto").stem == "checkpoint_step_6"


# --- two processes

def stops(folder):
    "One after the other, in two processes: an unbroken run; runs stopped in step 7, 18 and 33 by one of the two, and resumed"
    from audiolab.training import Distributed
    Distributed.leave = lambda *_: None  # the next run goes on with the same group
    class Stopped(Adversarial):
        at = None
        def step(self, batch, loop):
            if loop.step == self.at and loop.rank == self.at % 2: trainer.control.stop("enough")
            return super().step(batch, loop)
    settings = dict(steps=40, save_every="never")
    for name, at in (("whole", None), ("a", 7), ("b", 18), ("c", 33)):
        task = Stopped()
        task.at = at
        trainer = Trainer(task, config(**settings), f"{folder}/{name}")
        result = trainer.fit()
        if at is None: continue
        if trainer.loop.place.main:
            print(json.dumps({"at": at, "step": result.step, "state": result.state}), flush=True)
        trainer = Trainer(Adversarial(), config(**settings), f"{folder}/{name}")
        trainer.fit(resume="auto")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_processes_stopped_by_either_resume_exactly(tmp_path):
    found = child("stops", launcher=["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"], folder=str(tmp_path))
    assert found == [{"at": at, "step": at + 1, "state": "stopped"} for at in (7, 18, 33)]
    whole = final(tmp_path/"whole")
    for name in "abc": assert final(tmp_path/name) == whole, name


if __name__ == "__main__": be_child(globals())
