"The loop: exact resume at every step, control, faults, several processes"
import json, os, signal, subprocess, sys, threading, time
from pathlib import Path

import numpy as np
import pytest
import torch

from audiolab.files import CheckpointError, read_checkpoint
from audiolab.training import RunLocked
from audiolab.data import DataError
from audiolab.training import read_history
from audiolab.files import CheckpointFolder
from audiolab.training import NotFinite, OutOfMemory, Trainer, TrainingConfig, check_task

sys.path.insert(0, str(Path(__file__).parent))
from engine_tasks import Adversarial, Denoise, Hums, Mixture, config, rows, state_of


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads(); torch.set_num_threads(1); yield; torch.set_num_threads(before)


def copy_run(source, target, step):
    "A run as it was on the disk after the save of a step"
    (target/"checkpoints").mkdir(parents=True)
    for path in (source/"checkpoints").glob("*.safetensors"):
        if path.stem == f"checkpoint_step_{step}": (target/"checkpoints"/path.name).write_bytes(path.read_bytes())
    (target/"history.jsonl").write_bytes((source/"history.jsonl").read_bytes())


@pytest.mark.parametrize("task", [Denoise, Adversarial, Mixture])
def test_resume_is_exact_at_every_step(task, tmp_path):
    "Weights, optimizers, averages, counters and history of a run resumed at any step equal those of one that was never stopped"
    Trainer(task(), config(), tmp_path/"whole").fit()
    whole = state_of(tmp_path/"whole"/"checkpoints"/"checkpoint_final.safetensors")
    history = rows(tmp_path/"whole")
    for step in range(1, 40):
        copy_run(tmp_path/"whole", tmp_path/f"from_{step}", step)
        result = Trainer(task(), config(save_every="never"), tmp_path/f"from_{step}").fit(resume="auto")
        assert (result.state, result.step) == ("completed", 40)
        assert state_of(tmp_path/f"from_{step}"/"checkpoints"/"checkpoint_final.safetensors") == whole, f"resumed at step {step}"
        assert rows(tmp_path/f"from_{step}") == history, f"resumed at step {step}"


@pytest.mark.parametrize("workers, after", [(0, 2), (2, 0), (1, 2)])
def test_resume_does_not_depend_on_workers(workers, after, tmp_path):
    Trainer(Denoise(workers), config(), tmp_path/"whole").fit()
    whole = state_of(tmp_path/"whole"/"checkpoints"/"checkpoint_final.safetensors")
    for step in (5, 13, 22):
        copy_run(tmp_path/"whole", tmp_path/f"from_{step}", step)
        Trainer(Denoise(after), config(save_every="never"), tmp_path/f"from_{step}").fit(resume="auto")
        assert state_of(tmp_path/f"from_{step}"/"checkpoints"/"checkpoint_final.safetensors") == whole


def test_accumulation_equals_the_large_batch(tmp_path):
    "Four batches of 4 move the weights as one of 16 does, where items do not see each other"
    results = []
    for name, settings in {"large": dict(batch_size=16), "accumulated": dict(batch_size=4, accumulate=4)}.items():
        Trainer(Denoise(statistics=False), config(**settings, steps=8, ema_decay=0, save_every="never"), tmp_path/name).fit()
        results.append(read_checkpoint(tmp_path/name/"model_final.safetensors")[0])
    for key in results[0]: np.testing.assert_allclose(results[0][key], results[1][key], atol=1e-5)


def test_bfloat16_trains_and_keeps_weights_in_float32(tmp_path):
    result = Trainer(Denoise(), config(precision="bfloat16"), tmp_path).fit()
    tensors = read_checkpoint(tmp_path/"model_final.safetensors")[0]
    assert result.state == "completed" and {str(value.dtype) for value in tensors.values()} <= {"float32", "int64"}


def test_best_and_final_hold_the_averaged_weights(tmp_path):
    trainer = Trainer(Denoise(), config(ema_decay=.95), tmp_path)
    trainer.fit()
    loop, final = trainer.loop, read_checkpoint(tmp_path/"model_final.safetensors")[0]
    with loop.average.swapped():
        for key, value in loop.modules["net"].state_dict().items(): np.testing.assert_array_equal(final[f"net.{key}"], value.numpy())
    best = min(row["values"]["loss"] for row in read_history(tmp_path) if row["kind"] == "validation")
    assert trainer.result.best == best and (tmp_path/"best_model.safetensors").is_file()


def test_early_stopping(tmp_path):
    class Worse(Denoise):
        def validate(self, loop): return {"loss": 1. + loop.step}
    result = Trainer(Worse(), config(validate_every="2 steps", patience=3), tmp_path).fit()
    assert (result.state, result.step, result.best) == ("completed", 8, 3.) and "not become better" in result.reason


def test_a_nan_metric_never_wins(tmp_path):
    class Odd(Denoise):
        def validate(self, loop): return {"loss": float("nan") if loop.step != 14 else 5.}
    assert Trainer(Odd(), config(), tmp_path).fit().best == 5.


def test_wrong_metric_names_those_there_are(tmp_path):
    with pytest.raises(ValueError, match="accuracy.*is not among.*loss"): Trainer(Denoise(), config(best_metric="accuracy"), tmp_path).fit()


def test_a_run_needs_an_end_and_an_interval_that_can_be_read(tmp_path):
    with pytest.raises(ValueError, match="set steps or epochs"): Trainer(Denoise(), TrainingConfig(), tmp_path)
    with pytest.raises(ValueError, match="no interval"): Trainer(Denoise(), config(save_every="often"), tmp_path)
    with pytest.raises(ValueError, match="smaller batch_size"): Trainer(Denoise(items=3), config(), tmp_path).fit()


def test_an_earlier_run_is_moved_aside(tmp_path):
    for _ in range(3): Trainer(Denoise(), config(steps=2), tmp_path).fit()
    assert sorted(path.name for path in tmp_path.glob("previous-*")) == ["previous-1", "previous-2"]
    assert (tmp_path/"previous-1"/"checkpoints"/"checkpoint_final.safetensors").is_file()


def test_two_runs_in_one_folder(tmp_path):
    trainer = Trainer(Denoise(slow=.02), config(steps=10_000), tmp_path)
    trainer.fit(background=True)
    while not (tmp_path/"run.lock").exists(): time.sleep(.01)
    with pytest.raises(RunLocked, match="works in it"): Trainer(Denoise(), config(), tmp_path).fit(resume="auto")
    trainer.control.stop()
    assert trainer.join(30).state == "stopped"


# control

def test_pause_resume_stop_and_sample_from_another_thread(tmp_path):
    seen, trainer = [], Trainer(Denoise(slow=.002), config(steps=100_000, save_every="never"), tmp_path)
    trainer.listeners.append(seen.append)
    trainer.fit(background=True)
    wait_for(lambda: any(event.kind == "log" for event in seen))
    trainer.control.pause(); wait_for(lambda: seen[-1].kind == "state")
    step = trainer.loop.step; time.sleep(.2); assert trainer.loop.step == step
    trainer.control.resume(); wait_for(lambda: trainer.loop.step > step)
    trainer.control.sample(); wait_for(lambda: any(event.kind == "sample" for event in seen))
    trainer.control.stop(); result = trainer.join(30)
    assert (result.state, result.reason) == ("stopped", "stopped by hand")
    assert CheckpointFolder(tmp_path/"checkpoints").resolve("auto").stem == f"checkpoint_step_{result.step}"
    assert [event.values["state"] for event in seen if event.kind == "state"] == ["paused", "running"]


def test_an_error_in_the_background_is_raised_by_join(tmp_path):
    class Broken(Denoise):
        def step(self, batch, loop): raise ZeroDivisionError("in the middle of a step")
    trainer = Trainer(Broken(), config(), tmp_path); trainer.fit(background=True)
    with pytest.raises(ZeroDivisionError): trainer.join()
    assert trainer.control.state == "failed" and not list(tmp_path.glob("checkpoints/*"))  # half a step is not saved


def test_a_run_in_the_background_is_stopped_and_saved_when_python_ends(tmp_path):
    code = ("import sys, time; sys.path.insert(0, sys.argv[1])\nfrom engine_tasks import *\n"
            "trainer = Trainer(Denoise(slow=.01), config(steps=10_000, save_every='never'), sys.argv[2]); trainer.fit(background=True)\n"
            "while trainer.loop is None or trainer.loop.step < 5: time.sleep(.01)")
    done = subprocess.run([sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "terminate" not in done.stderr and CheckpointFolder(tmp_path/"checkpoints").resolve("auto")
    assert read_history(tmp_path)[-1]["values"]["reason"] == "Python ended"


def test_a_run_in_the_background_stays_in_its_folder(tmp_path, monkeypatch):
    "A notebook that goes to another folder does not take the checkpoints along"
    (tmp_path/"elsewhere").mkdir(); monkeypatch.chdir(tmp_path)
    trainer = Trainer(Denoise(slow=.002), config(steps=100_000, save_every="5 steps"), "run")
    trainer.fit(background=True)
    wait_for(lambda: trainer.loop is not None and trainer.loop.step > 3)
    monkeypatch.chdir("elsewhere")
    reached = trainer.loop.step
    wait_for(lambda: trainer.loop.step > reached+10)
    trainer.control.stop(); result = trainer.join(30)
    assert not list((tmp_path/"elsewhere").iterdir()) and str(result.folder) == "run"
    latest = CheckpointFolder(tmp_path/"run/checkpoints").resolve("auto")
    assert latest.stem == f"checkpoint_step_{result.step}" and read_history(tmp_path/"run")[-1]["kind"] == "end"


def test_a_failure_outside_a_step_is_saved_first(tmp_path):
    class Deaf(Denoise):
        def validate(self, loop): raise OSError("the loudspeaker is gone")
    with pytest.raises(OSError, match="loudspeaker"): Trainer(Deaf(), config(save_every="never"), tmp_path).fit()
    assert CheckpointFolder(tmp_path/"checkpoints").resolve("auto").stem == "checkpoint_step_7"
    assert read_history(tmp_path)[-1]["values"]["state"] == "failed"


def test_a_listener_that_fails_loses_its_place_not_the_run(tmp_path, caplog):
    def broken(event): raise KeyError("widget")
    seen, trainer = [], Trainer(Denoise(), config(steps=5), tmp_path, [broken])
    trainer.listeners.append(seen.append)
    assert trainer.fit().state == "completed" and seen[-1].kind == "end" and broken not in trainer.listeners and "listener failed" in caplog.text


def wait_for(condition, seconds=30):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(.005)


def start(task, folder, *words, launcher=(), **environment):
    command = [sys.executable, *launcher, str(Path(__file__).with_name("engine_tasks.py")), task, str(folder), *words]
    return subprocess.Popen(command, env=os.environ | {"SAY": "1", "OMP_NUM_THREADS": "1"} | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_line(process, start_of_line):
    for line in process.stdout:
        if line.startswith(start_of_line): return line
    raise AssertionError(process.stderr.read())


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143), pytest.param(signal.SIGUSR1, 75, marks=pytest.mark.slow)])
def test_signals_save_and_end(number, code, tmp_path):
    process = start("denoise", tmp_path, "slow=0.01", "steps=100000", 'save_every="never"')
    wait_for_line(process, "log")
    process.send_signal(number)
    process.communicate(timeout=60)
    last = CheckpointFolder(tmp_path/"checkpoints").resolve("auto")
    assert process.returncode == code and last.stem == f"checkpoint_step_{read_history(tmp_path)[-1]['step']}"


def test_a_second_signal_ends_at_once(tmp_path):
    "It does not wait for a step that would take hours; two different ones are never one wish delivered twice"
    process = start("denoise", tmp_path, "slow=10000", "steps=100000")
    wait_for_line(process, "start"); time.sleep(.5)
    process.send_signal(signal.SIGINT); process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode != 0 and not [row for row in read_history(tmp_path) if row["kind"] == "log"]


# what goes wrong in a step

class Poisoned(Denoise):
    "Its loss is not a number in some steps"
    def __init__(self, bad, **k): super().__init__(**k); self.bad = bad
    def step(self, batch, loop): return super().step(batch | {"audio": batch["audio"]*(float("nan") if loop.step in self.bad else 1)}, loop)


def test_a_bad_step_is_skipped_counted_and_named(tmp_path):
    class Still(Poisoned):
        def setup(self, loop): super().setup(loop); loop.modules["net"].eval()
    seen, trainer = [], Trainer(Still({3, 4, 9}, statistics=False), config(steps=12), tmp_path)
    trainer.listeners.append(seen.append)
    trainer.fit()
    problems = [event.values for event in seen if event.kind == "problem"]
    assert len(problems) == 3 and "step 3" in problems[0]["message"] and problems[0]["batch"][0].startswith("hum-") and problems[-1]["bad_steps"] == 3
    assert all(np.isfinite(value).all() for value in read_checkpoint(tmp_path/"model_final.safetensors")[0].values())
    assert all(np.isfinite(row["values"].get("loss", 0)) for row in read_history(tmp_path) if row["kind"] == "log")


@pytest.mark.parametrize("settings, step", [(dict(max_bad_steps=3), 12), (dict(on_nan="stop"), 10)])
def test_too_many_bad_steps_end_the_run(settings, step, tmp_path):
    with pytest.raises(NotFinite, match=rf"step {step}: the gradient of net is not finite.*learning rate"):
        Trainer(Poisoned(set(range(10, 99)), statistics=False), config(save_every="5 steps", **settings), tmp_path).fit()
    assert CheckpointFolder(tmp_path/"checkpoints").resolve("auto").stem == "checkpoint_step_10"


def test_memory_that_runs_out_is_told_with_a_remedy(tmp_path):
    class Greedy(Denoise):
        def step(self, batch, loop):
            if loop.step == 6: torch.empty(1 << 50)
            return super().step(batch, loop)
    with pytest.raises(OutOfMemory, match="batches of 8: reduce batch_size"): Trainer(Greedy(), config(save_every="5 steps"), tmp_path).fit()
    assert CheckpointFolder(tmp_path/"checkpoints").resolve("auto").stem == "checkpoint_step_5"


def test_a_task_that_ignores_its_data_is_caught():
    class Pretender(Denoise):
        def step(self, batch, loop):
            loss = self.net(torch.ones(2, 1, 64)).square().mean()
            loop.update("net", loss)
            return {"loss": loss}
    for task in (Denoise, Adversarial): check_task(task())
    with pytest.raises(AssertionError, match="depends on the batch"): check_task(Pretender())


# data that fails

def unreadable(index, epoch):
    if index == 7: raise DataError("hum-7: cannot be read")


def test_unreadable_items_are_counted_named_and_limited(tmp_path):
    with pytest.raises(DataError, match="hum-7"): Trainer(Denoise(items=40, fault=unreadable), config(steps=100), tmp_path/"a").fit()
    assert CheckpointFolder(tmp_path/"a"/"checkpoints").resolve("auto")  # what was learnt before is saved


# disk

def test_disk_full_is_told_and_by_default_the_run_goes_on(tmp_path, monkeypatch):
    import shutil
    real = shutil.disk_usage
    trainer, seen = Trainer(Denoise(), config(steps=12, save_every="4 steps"), tmp_path), []
    trainer.listeners.append(seen.append)
    first = tmp_path/"checkpoints"/"checkpoint_step_4.safetensors"
    def usage(path): return real(path)._replace(free=10) if first.is_file() and trainer.loop.step < 12 else real(path)
    monkeypatch.setattr("audiolab.files.atomic.shutil.disk_usage", usage)
    result = trainer.fit()
    assert result.state == "completed" and any("the disk has 10 free" in event.values["message"] for event in seen if event.kind == "problem")
    assert (tmp_path/"checkpoints"/"checkpoint_step_4.safetensors").is_file() and (tmp_path/"checkpoints"/"checkpoint_final.safetensors").is_file()
    with pytest.raises(CheckpointError, match="disk has 10 free"):
        monkeypatch.setattr("audiolab.files.atomic.shutil.disk_usage", lambda path: real(path)._replace(free=10))
        Trainer(Denoise(), config(on_save_error="stop"), tmp_path/"b").fit()


# pushing

def test_checkpoints_are_pushed_as_they_are_made(tmp_path):
    from audiolab.remote import pull
    Trainer(Denoise(), config(steps=20, save_every="5 steps", push=(tmp_path/"shelf").as_uri()), tmp_path/"run").fit()
    pull((tmp_path/"shelf").as_uri(), tmp_path/"back")
    for name in ("checkpoints/checkpoint_final.safetensors", "model_final.safetensors", "best_model.safetensors"):
        assert (tmp_path/"back"/name).read_bytes() == (tmp_path/"run"/name).read_bytes()
    assert Trainer(Denoise(), config(steps=30), tmp_path/"back").fit(resume="auto").step == 30


def test_a_store_that_cannot_be_reached_stops_nothing(tmp_path):
    (tmp_path/"shelf").write_text("a file where a folder should be")
    result = Trainer(Denoise(), config(steps=10, push=(tmp_path/"shelf").as_uri()), tmp_path/"run").fit()
    assert result.state == "completed" and any("push" in row["values"]["message"] for row in read_history(tmp_path/"run") if row["kind"] == "problem")


# another run's checkpoint

def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    Trainer(Denoise(), config(steps=2), tmp_path/"a").fit()
    with pytest.raises(CheckpointError, match="a run of 'denoise', not one of 'adversarial'"):
        Trainer(Adversarial(), config(), tmp_path/"b").fit(resume=tmp_path/"a"/"checkpoints"/"checkpoint_final.safetensors")
    class Wider(Denoise):
        def setup(self, loop):
            super().setup(loop)
            loop.modules["net"][0] = torch.nn.Conv1d(1, 5, 9)
    with pytest.raises(CheckpointError, match=r"another model.*net\.0\.weight has the shape \[4, 1, 9\], not \[5, 1, 9\]"):
        Trainer(Wider(), config(), tmp_path/"c").fit(resume=tmp_path/"a"/"checkpoints"/"checkpoint_final.safetensors")


def test_resume_auto_passes_over_a_damaged_checkpoint(tmp_path):
    Trainer(Denoise(), config(steps=10), tmp_path).fit()
    for name in ("checkpoint_final", "checkpoint_step_10"):
        path = tmp_path/"checkpoints"/f"{name}.safetensors"
        raw = bytearray(path.read_bytes()); raw[-5] ^= 1; path.write_bytes(raw)
    with pytest.warns(UserWarning, match="checkpoint_final"): result = Trainer(Denoise(), config(steps=12), tmp_path).fit(resume="auto")
    assert result.step == 12 and any("checkpoint_step_9" in str(row["values"].get("resumed")) for row in read_history(tmp_path) if row["kind"] == "start")


# a long run

@pytest.mark.slow
def test_ten_thousand_steps_leave_memory_descriptors_and_threads_flat(tmp_path):
    class Small(Denoise):
        def data(self, loop): return Loader(Hums(64, 32), loop.config.batch_size, seed=loop.seed)
    from audiolab.data import Loader
    seen = []
    def look(event):
        if event.kind == "log" and event.step % 1000 == 0:
            seen.append((event.values["memory"], len(os.listdir("/proc/self/fd")), threading.active_count(), len(list((tmp_path/"checkpoints").iterdir()))))
    Trainer(Small(), config(steps=10_000, save_every="50 steps", keep_last=2, log_every=20, validate_every="500 steps"), tmp_path, [look]).fit()
    memory, descriptors, threads, files = zip(*seen)
    assert len(seen) == 10 and max(memory[2:]) < 1.03*memory[1] and max(descriptors) <= min(descriptors) + 2 and max(threads) <= min(threads) + 1 and max(files) <= 8


# several processes

def torchrun(task, folder, *words, processes=2, **environment):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return start(task, folder, *words, launcher=launcher, **environment)


def ended(process, timeout=120):
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def test_two_processes_equal_one_and_resume_into_each_other(tmp_path):
    "The same global batches: the loss curve agrees to 1e-4, and a run may change its number of processes"
    words = ["statistics=false", "ema_decay=0", "warmup=0"]
    one = Trainer(Denoise(statistics=False), config(ema_decay=0, warmup=0), tmp_path/"one").fit()
    code, out, err = ended(torchrun("denoise", tmp_path/"two", *words))
    assert code == 0, err
    loss = lambda folder: np.array([row["values"]["loss"] for row in read_history(folder) if row["kind"] in ("log", "validation")])
    np.testing.assert_allclose(loss(tmp_path/"two"), loss(tmp_path/"one"), rtol=1e-4)
    assert out.count("\nend 40") == 1 and one.step == 40  # logged once
    for source, name in (("two", "two_to_one"), ("one", "one_to_two")):
        copy_run(tmp_path/source, tmp_path/name, 17)
        if name == "two_to_one": Trainer(Denoise(statistics=False), config(ema_decay=0, warmup=0, save_every="never"), tmp_path/name).fit(resume="auto")
        else:
            code, out, err = ended(torchrun("denoise", tmp_path/name, *words))
            assert code == 0, out + err
        np.testing.assert_allclose(loss(tmp_path/name), loss(tmp_path/"one"), rtol=1e-4)


@pytest.mark.slow
def test_two_processes_resume_exactly_and_stop_together(tmp_path):
    "SIGTERM to the launcher: both stop after the same step, one checkpoint, and the resumed run equals an unbroken one"
    code, _, err = ended(torchrun("adversarial", tmp_path/"whole"))
    assert code == 0, err
    process = torchrun("adversarial", tmp_path/"stopped", "slow=0.05")
    wait_for_line(process, "log 12")
    process.send_signal(signal.SIGTERM)
    ended(process)
    assert 12 <= read_history(tmp_path/"stopped")[-1]["step"] < 40 and read_history(tmp_path/"stopped")[-1]["values"]["state"] == "stopped"
    code, out, err = ended(torchrun("adversarial", tmp_path/"stopped"))
    assert code == 0, out + err
    final = [state_of(tmp_path/name/"checkpoints"/"checkpoint_final.safetensors") for name in ("whole", "stopped")]
    assert final[0] == final[1]


@pytest.mark.slow
def test_two_nodes_equal_one(tmp_path):
    "Two launchers of one process each, which meet on the loopback, give the weights of one launcher with two processes, bit for bit"
    assert ended(torchrun("adversarial", tmp_path/"one"))[0] == 0
    import socket
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); port = s.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "t"]
    nodes = [start("adversarial", tmp_path/"two", launcher=launcher) for _ in range(2)]
    assert [ended(node)[0] for node in nodes] == [0, 0]
    final = [state_of(tmp_path/name/"checkpoints"/"checkpoint_final.safetensors") for name in ("one", "two")]
    assert final[0] == final[1]


@pytest.mark.parametrize("stream", [pytest.param(False, marks=pytest.mark.slow), True])
def test_two_processes_see_each_item_once_also_after_a_kill(stream, tmp_path):
    "80 items in epochs of 10 batches of 8, killed in the second epoch and resumed"
    words = ["items=80", f"stream={json.dumps(stream)}", f'seen="{tmp_path}/seen"', "epochs=2", "steps=0", 'schedule="constant"', "warmup=0", 'save_every="1 step"']
    process = torchrun("counting", tmp_path/"run", "slow=0.05", *words)
    wait_for_line(process, "log 12")
    ranks = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    for pid in [*ranks, process.pid]: os.kill(int(pid), signal.SIGKILL)
    process.communicate()
    code, _, err = ended(torchrun("counting", tmp_path/"run", *words))
    assert code == 0, err
    seen = {}
    for rank in (0, 1):
        for line in (tmp_path/f"seen.{rank}").read_text().splitlines(): step, epoch, ids = json.loads(line); seen[rank, step] = epoch, ids
    assert {step for _, step in seen} == set(range(20))
    for epoch in (0, 1):
        ids = [name for number, names in seen.values() if number == epoch for name in names]
        assert len(ids) == 80 and len(set(ids)) == 80


def test_the_launcher_or_a_rank_is_killed(tmp_path):
    "Nothing is left running, and the run resumes"
    for victim in ("launcher", "rank"):
        process = torchrun("denoise", tmp_path/victim, "slow=0.02", "steps=100000", 'save_every="2 steps"', "keep_last=2")
        wait_for_line(process, "log 9")
        ranks = [int(p) for p in subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()]
        assert len(ranks) == 2
        os.kill(process.pid if victim == "launcher" else ranks[1], signal.SIGKILL)
        wait_for(lambda: not any(alive(pid) for pid in ranks), 60)
        process.kill(); process.communicate()
        assert Trainer(Denoise(), config(steps=20, save_every="never"), tmp_path/victim).fit(resume="auto").step >= 20


def alive(pid):
    try: return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError: return False


# kill -9

def kill_until_done(folder, kills, rng, words):
    killed = 0
    while True:
        process = start("adversarial", folder, *words)
        if killed >= kills: return ended(process)[0], killed
        first = process.stdout.readline()
        if not first: raise AssertionError(process.stderr.read())
        try: process.wait(rng.uniform(0, .5))
        except subprocess.TimeoutExpired: process.kill(); killed += 1
        process.communicate()
        assert not process.returncode or process.returncode == -signal.SIGKILL
        if process.returncode == 0: return 0, killed


def check_kills(tmp_path, kills, steps):
    words = [f"steps={steps}", 'save_every="3 steps"', "keep_last=3", "slow=0.004", 'validate_every="50 steps"']
    assert ended(start("adversarial", tmp_path/"whole", *words))[0] == 0
    code, killed = kill_until_done(tmp_path/"killed", kills, np.random.default_rng(0), words)
    assert code == 0
    final = [state_of(tmp_path/name/"checkpoints"/"checkpoint_final.safetensors") for name in ("whole", "killed")]
    assert final[0] == final[1]
    assert rows(tmp_path/"killed") == rows(tmp_path/"whole")
    assert not [path for path in (tmp_path/"killed").rglob(".*tmp*")], "temporary files are left"
    return killed


def test_kill_9_at_random_instants(tmp_path):
    assert check_kills(tmp_path, 3, 200) == 3


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_kill_9_two_hundred_times(tmp_path):
    "Whenever it is killed it resumes, and the end equals that of an unbroken run bit for bit"
    killed = 0
    for round in range(8): killed += check_kills(tmp_path/str(round), 25, 1200)
    assert killed >= 200
