"How runs end: nothing is 'completed' that is not saved, and what was interrupted is finished"
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from audiolab.apps import main
from audiolab.files import CheckpointError
from audiolab.training import NotSaved, Saver, Trainer, check_task

sys.path.insert(0, str(Path(__file__).parent))
from engine_tasks import Denoise, config


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
    words = ["vocoder", "train", "--output", str(tmp_path/"run"), "--corpus", str(tmp_path/"demo"), "--corpus-seconds", "10",
             "--segment-seconds", ".2", "--training.steps", "1", "--training.batch-size", "2",
             "--training.device", "cpu", "--training.validate-every", "never",
             "--training.sample-every", "never"]
    assert main(words) == 1
    assert "the run ends without its last files: checkpoint_final: the disk is full" in (
        capsys.readouterr().err)
