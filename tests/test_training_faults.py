"The loop when something goes wrong: bad steps, memory, data, disks, stores, files of others; and a long run"
import os
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from audiolab.data import DataError
from audiolab.files import CheckpointError, CheckpointFolder, read_checkpoint
from audiolab.training import NotFinite, OutOfMemory, Trainer, check_task, read_history

sys.path.insert(0, str(Path(__file__).parent))
from engine_tasks import Adversarial, Denoise, Hums, config
from fault_runs import one_thread  # noqa: F401


# what goes wrong in a step

class Poisoned(Denoise):
    "Its loss is not a number in some steps"
    def __init__(self, bad, **k):
        super().__init__(**k)
        self.bad = bad
    def step(self, batch, loop):
        return super().step(
            batch | {"audio": batch["audio"]*(float("nan") if loop.step in self.bad else 1)}, loop)


def test_a_bad_step_is_skipped_counted_and_named(tmp_path):
    class Still(Poisoned):
        def setup(self, loop):
            super().setup(loop)
            loop.modules["net"].eval()
    seen, trainer = [], Trainer(Still({3, 4, 9}, statistics=False), config(steps=12), tmp_path)
    trainer.listeners.append(seen.append)
    trainer.fit()
    problems = [event.values for event in seen if event.kind == "problem"]
    assert len(problems) == 3 and "step 3" in problems[0]["message"]
    assert problems[0]["batch"][0].startswith("hum-") and problems[-1]["bad_steps"] == 3
    assert all(np.isfinite(value).all() for value in read_checkpoint(tmp_path/"model_final.safetensors")[0].values())
    assert all(np.isfinite(row["values"].get("loss", 0)) for row in read_history(tmp_path) if row["kind"] == "log")


@pytest.mark.parametrize("settings, step", [(dict(max_bad_steps=3), 12), (dict(on_nan="stop"), 10)])
def test_too_many_bad_steps_end_the_run(settings, step, tmp_path):
    with pytest.raises(NotFinite, match=rf"step {step}: the gradient of net is not finite.*learning rate"):
        Trainer(Poisoned(set(range(10, 99)), statistics=False),
                config(save_every="5 steps", **settings), tmp_path).fit()
    assert CheckpointFolder(tmp_path/"checkpoints").resolve("auto").stem == "checkpoint_step_10"


def test_memory_that_runs_out_is_told_with_a_remedy(tmp_path):
    class Greedy(Denoise):
        def step(self, batch, loop):
            if loop.step == 6: torch.empty(1 << 50)
            return super().step(batch, loop)
    with pytest.raises(OutOfMemory, match="batches of 8: reduce batch_size"):
        Trainer(Greedy(), config(save_every="5 steps"), tmp_path).fit()
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
    with pytest.raises(DataError, match="hum-7"):
        Trainer(Denoise(items=40, fault=unreadable), config(steps=100), tmp_path/"a").fit()
    # what was learnt before is saved
    assert CheckpointFolder(tmp_path/"a"/"checkpoints").resolve("auto")


# disk

def test_disk_full_is_told_and_by_default_the_run_goes_on(tmp_path, monkeypatch):
    import shutil
    real = shutil.disk_usage
    trainer, seen = Trainer(Denoise(), config(steps=12, save_every="4 steps"), tmp_path), []
    trainer.listeners.append(seen.append)
    first = tmp_path/"checkpoints"/"checkpoint_step_4.safetensors"
    def usage(path):
        return (real(path)._replace(free=10) if first.is_file() and trainer.loop.step < 12
                else real(path))
    monkeypatch.setattr("audiolab.files.atomic.shutil.disk_usage", usage)
    result = trainer.fit()
    assert result.state == "completed"
    assert any("the disk has 10 free" in event.values["message"] for event in seen
               if event.kind == "problem")
    assert (tmp_path/"checkpoints"/"checkpoint_step_4.safetensors").is_file() and (tmp_path/"checkpoints"/"checkpoint_final.safetensors").is_file()
    with pytest.raises(CheckpointError, match="disk has 10 free"):
        monkeypatch.setattr("audiolab.files.atomic.shutil.disk_usage",
                            lambda path: real(path)._replace(free=10))
        Trainer(Denoise(), config(on_save_error="stop"), tmp_path/"b").fit()


# pushing

def test_checkpoints_are_pushed_as_they_are_made(tmp_path):
    from audiolab.remote import pull
    Trainer(Denoise(), config(steps=20, save_every="5 steps", push=(tmp_path/"shelf").as_uri()),
            tmp_path/"run").fit()
    pull((tmp_path/"shelf").as_uri(), tmp_path/"back")
    for name in ("checkpoints/checkpoint_final.safetensors", "model_final.safetensors", "best_model.safetensors"):
        assert (tmp_path/"back"/name).read_bytes() == (tmp_path/"run"/name).read_bytes()
    assert Trainer(Denoise(), config(steps=30), tmp_path/"back").fit(resume="auto").step == 30


def test_a_store_that_cannot_be_reached_stops_nothing(tmp_path):
    def lose(event):
        if event.kind != "start": return
        (tmp_path/"shelf").rmdir()
        (tmp_path/"shelf").write_text("a file where a folder should be")
    result = Trainer(Denoise(), config(steps=10, push=(tmp_path/"shelf").as_uri()),
                     tmp_path/"run", [lose]).fit()
    assert result.state == "completed"
    assert any("push" in row["values"]["message"] for row in read_history(tmp_path/"run") if row["kind"] == "problem")


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
        raw = bytearray(path.read_bytes())
        raw[-5] ^= 1
        path.write_bytes(raw)
    with pytest.warns(UserWarning, match="checkpoint_final"):
        result = Trainer(Denoise(), config(steps=12), tmp_path).fit(resume="auto")
    assert result.step == 12
    assert any("checkpoint_step_9" in str(row["values"].get("resumed"))
               for row in read_history(tmp_path) if row["kind"] == "start")


# a long run

@pytest.mark.slow
def test_ten_thousand_steps_leave_memory_descriptors_and_threads_flat(tmp_path):
    class Small(Denoise):
        def data(self, loop): return Loader(Hums(64, 32), loop.config.batch_size, seed=loop.seed)
    from audiolab.data import Loader
    seen = []
    def look(event):
        if event.kind == "log" and event.step % 1000 == 0:
            seen.append((event.values["memory"], len(os.listdir("/proc/self/fd")),
                         threading.active_count(), len(list((tmp_path/"checkpoints").iterdir()))))
    Trainer(Small(), config(steps=10_000, save_every="50 steps", keep_last=2, log_every=20,
                            validate_every="500 steps"), tmp_path, [look]).fit()
    memory, descriptors, threads, files = zip(*seen)
    assert len(seen) == 10 and max(memory[2:]) < 1.03*memory[1]
    assert max(descriptors) <= min(descriptors) + 2 and max(threads) <= min(threads) + 1
    assert max(files) <= 8
