"How runs end: nothing is 'completed' that is not saved, and what was interrupted is finished"
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from audiolab.apps import main
from audiolab.files import CheckpointError, CheckpointFolder
from audiolab.training import ExportedWeights, NotSaved, Saver, Trainer, check_task, read_history

sys.path.insert(0, str(Path(__file__).parent))
from engine_tasks import Counting, Denoise, config, rows, state_of
from fault_runs import one_thread  # noqa: F401


def short(**changes):
    "Ten steps, saved at the end only"
    quiet = dict(validate_every="never", sample_every="never", save_every="never", warmup=0)
    return config(**dict(steps=10) | quiet | changes)


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.safetensors"))


# what cannot be saved

STATES = {"number": np.float32(1), "count": np.int64(1), "set": {1}, "path": Path("a"),
          "bytes": b"a", "key": {1.5: 0}, "array": np.array(["text"])}


@pytest.mark.parametrize("kind", STATES)
def test_a_state_that_cannot_be_stored_is_known_before_the_first_step(kind, tmp_path):
    steps = []

    class Slip(Denoise):
        def state_dict(self): return {"kept": STATES[kind]}
        def step(self, batch, loop):
            steps.append(loop.step)
            return super().step(batch, loop)

    with pytest.raises(CheckpointError, match="kept"): Trainer(Slip(), short(), tmp_path).fit()
    assert not steps and not (tmp_path/"history.jsonl").exists()
    if kind != "array":
        with pytest.raises(AssertionError, match="kept"): check_task(Slip(), short())


def test_weights_that_cannot_be_stored_are_known_before_the_first_step(tmp_path):
    class Sparse(Denoise):
        def weights(self, loop): return {"sparse": torch.eye(3).to_sparse()}, {}

    with pytest.raises(CheckpointError, match="'sparse'.*convert it to a dense tensor"):
        Trainer(Sparse(), short(), tmp_path).fit()


def test_a_state_that_becomes_a_slip_later_is_an_error_not_a_full_disk(tmp_path):
    class Late(Denoise):
        best = None
        def state_dict(self): return {"best": self.best}
        def step(self, batch, loop):
            if loop.step == 3: self.best = np.float32(1)
            return super().step(batch, loop)

    trainer = Trainer(Late(), short(save_every="2 steps"), tmp_path)
    with pytest.raises(CheckpointError, match="numpy.float32"): trainer.fit()
    assert trainer.loop.step == 4 and trainer.control.state == "failed"
    assert files(tmp_path) == ["checkpoints/checkpoint_step_2.safetensors"]


def test_a_disk_without_room_for_one_checkpoint_is_known_at_the_start(tmp_path, monkeypatch):
    import shutil
    real = shutil.disk_usage
    Trainer(Denoise(), short(steps=2), tmp_path/"run").fit()
    before = files(tmp_path)
    monkeypatch.setattr("audiolab.files.atomic.shutil.disk_usage",
                        lambda path: real(path)._replace(free=700))
    for folder in ("run", "new/deep"):
        with pytest.raises(CheckpointError, match="the disk has 700 free; make room"):
            Trainer(Denoise(), short(), tmp_path/folder).fit()
    assert files(tmp_path) == before  # nothing was moved aside for a run that cannot be


def test_what_an_optimizer_will_remember_is_counted_before_it_is_there(tmp_path, monkeypatch):
    "A checkpoint of Adam is three times its weights, and none of its moments exist at the start"
    class Large(Denoise):
        def setup(self, loop):
            super().setup(loop)
            self.more = loop.module("more", torch.nn.Linear(100, 100))
            loop.optimizer("more", torch.optim.Adam(self.more.parameters()))

        def step(self, batch, loop):
            found = super().step(batch, loop)
            loop.update("more", self.more(torch.ones(1, 100)).square().mean())
            return found

    import shutil
    real, weights = shutil.disk_usage, 4 * 100 * 101
    for free, fits in ((2.9, False), (3.5, True)):
        monkeypatch.setattr("audiolab.files.atomic.shutil.disk_usage",
                            lambda path, free=free: real(path)._replace(free=int(free*weights)))
        trainer = Trainer(Large(), short(steps=2, ema_decay=0), tmp_path/str(free))
        if fits: assert trainer.fit().state == "completed"
        else:
            with pytest.raises(CheckpointError, match="needs .* make room"): trainer.fit()
            assert trainer.loop.step == 0


# the last files

class Gone(Denoise):
    "The disk refuses checkpoints from its last step on, for some tries"
    name = "denoise"

    def __init__(self, tries, stop=False, what="checkpoint_final", **k):
        super().__init__(**k)
        self.tries, self.stop, self.what = tries, stop, what

    def step(self, batch, loop):
        if loop.step == 9 and self.stop: self.trainer.control.stop("enough")
        return super().step(batch, loop)


def refusing(monkeypatch, task):
    from audiolab.files import WriteError
    import audiolab.files.checkpoint_file as module
    real = module.durable_write

    def write(path, chunks):
        if task.what in str(path) and task.tries > 0:
            task.tries -= 1
            raise WriteError(28, "No space left on device", str(path))
        return real(path, chunks)

    monkeypatch.setattr(module, "durable_write", write)
    monkeypatch.setattr("audiolab.training.saver.RETRY_WAITS", (.01, .01, .01))


@pytest.mark.parametrize("policy", ["continue", "stop"])
@pytest.mark.parametrize("stop, what", [(False, "checkpoint_final"), (False, "model_final"),
                                        (True, "checkpoint_step_10")])
def test_last_files_are_tried_again_and_without_them_the_run_fails(stop, what, policy, tmp_path,
                                                                   monkeypatch):
    for tries, name in ((2, "a while"), (99, "for ever")):
        task = Gone(tries, stop, what)
        task.trainer = Trainer(task, short(on_save_error=policy), tmp_path/name)
        with monkeypatch.context() as patch:
            refusing(patch, task)
            if tries == 2:
                result = task.trainer.fit()
                assert (result.state, result.exit_code) == ("stopped" if stop else "completed", 0)
                assert any(what in file for file in files(tmp_path/name))
            else:
                with pytest.raises(NotSaved, match=f"{what}.*No space left"): task.trainer.fit()
                assert task.trainer.control.state == "failed"
        if tries == 99:  # there is room again
            assert Trainer(Denoise(), short(), tmp_path/name).fit("auto").state == "completed"


def test_a_run_that_could_not_be_saved_has_exit_code_1(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("audiolab.training.saver.RETRY_WAITS", (.01,))
    monkeypatch.setattr(Saver, "save", lambda self, name, *_: (_ for _ in ()).throw(
        CheckpointError("the disk is full", name)))
    words = ["vocoder", "train", "--output", str(tmp_path/"run"), "--corpus",
             str(tmp_path/"demo"), "--corpus-seconds", "10", "--segment-seconds", ".2", "--training.steps", "1", "--training.batch-size", "2",
             "--training.device", "cpu", "--training.validate-every", "never",
             "--training.sample-every", "never"]
    assert main(words) == 1
    assert "the run ends without its last files: checkpoint_final: the disk is full" in (
        capsys.readouterr().err)


# what was interrupted is finished

class Ended(Exception):
    "Stands for kill -9: nothing is saved after it"


def final_state(folder): return state_of(folder/"checkpoints"/"checkpoint_final.safetensors")


def weights(folder): return (folder/"model_final.safetensors").read_bytes()


class Last(Denoise):
    "Writes a file at its end"
    files = ("ended.txt",)
    ends = 0

    def end(self, loop):
        self.ends += 1
        (loop.folder.path/"ended.txt").write_text(str(loop.step))


def cut_off(monkeypatch, task, folder, where, **changes):
    "A run that ends without a word at one of its last instants; then what the next start makes"
    import audiolab.training.loop as loop
    import audiolab.training.trainer as trainer
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "rescue", lambda run, error: error)
        def end(*args, **k): raise Ended
        if where == "before validation": patch.setattr(loop, "_finish_run", end)
        if where == "before the final save":
            patch.setattr(loop, "save_run", lambda run, kind, last=False, save=loop.save_run:
                          end() if kind == "final" else save(run, kind, last))
        if where == "before the final weights":
            patch.setattr(loop, "export_weights",
                          lambda run, kind, last=False, export=loop.export_weights:
                          end() if kind == "final" else export(run, kind, last))
        if where == "in its end": patch.setattr(task, "end", end)
        with pytest.raises(Ended): Trainer(task(), short(**changes), folder).fit()
    again = task()
    return again, Trainer(again, short(**changes), folder).fit("auto")


INSTANTS = ("before validation", "before the final save", "before the final weights", "in its end")


@pytest.mark.parametrize("where", INSTANTS)
def test_a_run_cut_off_at_its_last_step_is_finished_by_the_next_start(where, tmp_path,
                                                                      monkeypatch):
    settings = dict(save_every="5 steps", validate_every="4 steps", keep_last=0)
    Trainer(Last(), short(**settings), tmp_path/"whole").fit()
    task, result = cut_off(monkeypatch, Last, tmp_path/"run", where, **settings)
    assert (result.state, result.step, task.ends) == ("completed", 10, 1)
    assert final_state(tmp_path/"run") == final_state(tmp_path/"whole")
    assert weights(tmp_path/"run") == weights(tmp_path/"whole")
    assert rows(tmp_path/"run") == rows(tmp_path/"whole")
    assert files(tmp_path/"run") == files(tmp_path/"whole")  # no second final checkpoint
    again = Last()
    before = (tmp_path/"run"/"model_final.safetensors").stat().st_mtime_ns
    assert Trainer(again, short(**settings), tmp_path/"run").fit("auto").state == "completed"
    after = (tmp_path/"run"/"model_final.safetensors").stat().st_mtime_ns
    assert again.ends == 0 and before == after  # a run that is finished is left alone
    assert rows(tmp_path/"run") == rows(tmp_path/"whole")


def test_a_run_stopped_in_its_last_step_is_finished_by_the_next_start(tmp_path):
    task = Gone(0, stop=True)
    task.trainer = Trainer(task, short(validate_every="5 steps"), tmp_path/"run")
    assert task.trainer.fit().state == "stopped"
    assert Trainer(Denoise(), short(validate_every="5 steps"), tmp_path/"run").fit(
        "auto").state == "completed"
    Trainer(Denoise(), short(validate_every="5 steps"), tmp_path/"whole").fit()
    assert final_state(tmp_path/"run") == final_state(tmp_path/"whole")
    assert weights(tmp_path/"run") == weights(tmp_path/"whole")


def test_a_run_that_patience_ended_is_finished_and_goes_no_further(tmp_path, monkeypatch):
    class Worse(Last):
        def validate(self, loop): return {"loss": 1. + loop.step}

    settings = dict(steps=100, validate_every="2 steps", save_every="1 step", patience=3)
    task, result = cut_off(monkeypatch, Worse, tmp_path, "before the final save", **settings)
    assert (result.state, result.step, task.ends) == ("completed", 8, 1)
    assert Trainer(Worse(), short(**settings), tmp_path).fit("auto").step == 8


def test_a_finished_run_with_more_to_do_is_finished_anew(tmp_path):
    Trainer(Last(), short(), tmp_path).fit()
    before = weights(tmp_path)
    assert Trainer(Last(), short(steps=12), tmp_path).fit("auto").step == 12
    assert weights(tmp_path) != before and (tmp_path/"ended.txt").read_text() == "12"


# stopping saves first

class Slow(Denoise):
    "Notes what is done after a stop was asked for"
    name = "denoise"

    def __init__(self, at, where="step"):
        super().__init__()
        self.at, self.where, self.after = at, where, []

    def maybe_stop(self, loop, where):
        if loop.step == self.at and where == self.where: self.trainer.control.stop("enough")

    def step(self, batch, loop):
        if loop.step == self.at - 1 and self.where == "step": self.trainer.control.stop("enough")
        return super().step(batch, loop)

    def validate(self, loop):
        self.after.append(("validate", loop.step))
        self.maybe_stop(loop, "validate")
        return super().validate(loop)

    def sample(self, loop):
        self.after.append(("sample", loop.step))
        return super().sample(loop)


@pytest.mark.parametrize("at, where, left", [
    (10, "step", []), (10, "validate", [("validate", 10)]),  # of 5 batches an epoch
    (7, "step", [])])
@pytest.mark.parametrize("every", ["5 steps", "1 epoch"])
def test_a_stop_saves_first_and_the_next_start_makes_up_for_what_was_due(at, where, left, every,
                                                                         tmp_path):
    settings = dict(steps=17, validate_every=every, sample_every=every, keep_last=0, log_every=2)
    Trainer(Denoise(), short(**settings), tmp_path/"whole").fit()
    task = Slow(at, where)
    task.trainer = Trainer(task, short(**settings), tmp_path/"run")
    result = task.trainer.fit()
    assert (result.state, result.step) == ("stopped", at)
    assert [note for note in task.after if note[1] == at] == left
    Trainer(Denoise(), short(**settings), tmp_path/"run").fit("auto")
    assert final_state(tmp_path/"run") == final_state(tmp_path/"whole")
    def important(folder):
        return [row for row in rows(folder) if row[0] != "log" or row[1] % 2 == 0]
    assert important(tmp_path/"run") == important(tmp_path/"whole")
    samples = [row["step"] for row in read_history(tmp_path/"run") if row["kind"] == "sample"]
    assert samples == [5, 10, 15]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_stopped_at_the_end_of_an_epoch_goes_on_exactly(workers, tmp_path):
    "Its epoch is over, and the validation after it is owed"
    settings = dict(steps=0, epochs=3, schedule="constant", validate_every="1 epoch", keep_last=0)
    def make(name, **k):
        task = type("Stream", (Counting,), k)(stream=True, seen=str(tmp_path/name), workers=workers)
        return Trainer(task, short(**settings), tmp_path/name)
    make("whole").fit()

    def step(self, batch, loop):
        if loop.step == 4: stopped.control.stop("enough")
        return Counting.step(self, batch, loop)
    stopped = make("run", step=step)
    assert stopped.fit().step == 5
    make("run").fit("auto")
    assert final_state(tmp_path/"run") == final_state(tmp_path/"whole")
    assert [row for row in rows(tmp_path/"run") if row[0] != "log"] == [
        row for row in rows(tmp_path/"whole") if row[0] != "log"]


def test_what_was_saved_in_a_pause_owes_what_was_due_after_it(tmp_path):
    class Paused(Denoise):
        def step(self, batch, loop):
            if loop.step == 9: trainer.control.pause()
            return super().step(batch, loop)

    def listen(event):
        if event.kind == "state" and event.values["state"] == "paused": trainer.control.save()
        if event.kind == "checkpoint": trainer.control.resume()
        if event.kind == "sample" and event.step == 10: raise SystemExit  # gone, after all of it

    settings = dict(steps=17, validate_every="5 steps", sample_every="5 steps", keep_last=0,
                    log_every=5)
    trainer = Trainer(Paused(), short(**settings), tmp_path/"run", [listen])
    with pytest.raises(SystemExit): trainer.fit()
    assert [row[:2] for row in rows(tmp_path/"run")][-3:] == [("log", 10), ("validation", 10),
                                                             ("epoch", 10)]
    Trainer(Denoise(), short(**settings), tmp_path/"run").fit("auto")
    Trainer(Denoise(), short(**settings), tmp_path/"whole").fit()
    assert final_state(tmp_path/"run") == final_state(tmp_path/"whole")
    assert rows(tmp_path/"run") == rows(tmp_path/"whole")


# the best

def test_the_best_checkpoint_holds_what_was_measured(tmp_path):
    class Valley(Denoise):
        def validate(self, loop): return {"loss": abs(loop.step - 10) + 1.}

    from audiolab.files import read_checkpoint
    for keep_last, best in ((2, "checkpoint_step_10"), (0, "checkpoint_step_14")):
        settings = dict(steps=35, validate_every="10 steps" if keep_last else "7 steps",
                        save_every="7 steps", keep_last=keep_last, ema_decay=0.)
        folder = tmp_path/str(keep_last)
        Trainer(Valley(), short(**settings), folder).fit()
        found = CheckpointFolder(folder/"checkpoints").best
        assert found.stem == best if keep_last else "checkpoint_step_7"
        model, _ = read_checkpoint(folder/"best_model.safetensors")
        tensors, _ = read_checkpoint(found)
        assert all(np.array_equal(tensors[name], value) for name, value in model.items())
        assert Trainer(Valley(), short(**settings), folder).fit("best").state == "completed"


def test_a_checkpoint_that_knows_a_best_comes_after_it(tmp_path, monkeypatch):
    "Also where writing the best takes long: a kill between the two loses no best"
    done, export, save = [], ExportedWeights.save, CheckpointFolder.save

    def slow_export(self, name, *rest):
        time.sleep(.1)
        done.append(name)
        return export(self, name, *rest)

    monkeypatch.setattr(ExportedWeights, "save", slow_export)
    monkeypatch.setattr(CheckpointFolder, "save",
                        lambda self, name, *rest: done.append(name) or save(self, name, *rest))
    Trainer(Denoise(), short(steps=2, validate_every="1 step", save_every="1 step"), tmp_path).fit()
    assert done[:2] == ["best_model", "checkpoint_step_1"]
