"A run that goes back to an older checkpoint: a branch that `auto` follows, whenever it is killed"
import errno
import hashlib
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

from audiolab.files import (
    HOST_DIGEST, CheckpointError, CheckpointFolder, write_checkpoint,
)
from audiolab.training import Distributed, RunFolder, Trainer, read_history, set_up

sys.path.insert(0, str(Path(__file__).parent))
from engine_tasks import Denoise, config, network, rows, state_of
from fault_runs import one_thread  # noqa: F401


class Killed(BaseException):
    "Stands for kill -9: nothing is saved after it"


class Slower(Denoise):
    "Another rate; killed before a step, if one is named"
    def __init__(self, kill=-1, rate=1e-3):
        super().__init__()
        self.kill, self.rate = kill, rate

    def setup(self, loop):
        self.net, loop.data = loop.module("net", network()), self.data(loop)
        loop.optimizer("net", torch.optim.AdamW(self.net.parameters(), lr=self.rate))

    def step(self, batch, loop):
        if loop.step == self.kill: raise Killed
        return super().step(batch, loop)


def short(**changes):
    quiet = dict(steps=12, validate_every="3 steps", sample_every="3 steps", save_every="3 steps",
                 log_every=1, warmup=0, schedule="constant")
    return config(**quiet | changes)


def fit(folder, resume=None, task=None, place="checkpoints", **changes):
    run = RunFolder(folder, checkpoints=place)
    return Trainer(task or Slower(), short(**changes), run).fit(resume)


PLACES = "checkpoints", "."


@pytest.fixture(scope="module", params=PLACES)
def whole(request, tmp_path_factory):
    "A run of 12 steps, and where in its folder its checkpoints are"
    folder = tmp_path_factory.mktemp("whole")
    fit(folder, task=Denoise(), place=request.param)
    return folder, request.param


def digests(folder):
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in folder.rglob("*") if path.is_file() and "lock" not in path.name}


def steps(folder, kind="log"):
    return [row["step"] for row in read_history(folder) if row["kind"] == kind]


def test_auto_follows_the_branch_from_its_first_instant(whole, tmp_path):
    "Back to step 6 with another rate, killed at 8 before anything was saved"
    source, place = whole
    for name in ("killed", "unbroken"): shutil.copytree(source, tmp_path/name)
    with pytest.raises(Killed): fit(tmp_path/"killed", "checkpoint_step_6", Slower(kill=8), place)
    at = CheckpointFolder(tmp_path/"killed"/place)
    assert at.resolve("auto").stem == at.latest.stem == "checkpoint_step_6"
    fit(tmp_path/"unbroken", "checkpoint_step_6", place=place)
    result = fit(tmp_path/"killed", "auto", place=place)
    assert (result.state, result.step) == ("completed", 12)
    final = [state_of(tmp_path/name/place/"checkpoint_final.safetensors")
             for name in ("killed", "unbroken")]
    assert final[0] == final[1] != state_of(source/place/"checkpoint_final.safetensors")
    assert rows(tmp_path/"killed") == rows(tmp_path/"unbroken")
    assert steps(tmp_path/"killed") == [*range(1, 13)]
    assert not list((tmp_path/"killed").glob("previous-2"))


def test_what_was_left_is_a_run_of_its_own(whole, tmp_path):
    source, place = whole
    shutil.copytree(source, tmp_path/"run")
    before = digests(source)
    fit(tmp_path/"run", "checkpoint_step_6", place=place)
    left = tmp_path/"run"/"previous-1"
    assert set(before.values()) <= set(digests(tmp_path/"run").values())
    names = {f"{place}/checkpoint_{end}.safetensors".removeprefix("./")
             for end in ("step_9", "step_12", "final")}
    assert {"model_final.safetensors", "history.jsonl", "config.yaml", *names} <= set(digests(left))
    assert not (left/place/"checkpoint_step_6.safetensors").exists()
    assert sorted(path.name[:13] for path in (left/"samples").glob("*hum.wav")) == [
        "step_00000009", "step_00000012"]
    assert fit(left, "auto", task=Denoise(), place=place, steps=13).step == 13
    assert steps(left) == [*range(1, 14)]


def test_the_best_model_goes_with_the_branch_that_measured_it(tmp_path):
    class Valley(Slower):
        def validate(self, loop): return {"loss": abs(loop.step - self.lowest) + 1.}

    for lowest, stays in ((3, True), (9, False)):
        folder = tmp_path/str(lowest)
        task = Valley()
        task.lowest = lowest
        fit(folder, task=task)
        best = digests(folder)["best_model.safetensors"]
        with pytest.raises(Killed): fit(folder, "checkpoint_step_6", Slower(kill=6))
        assert (folder/"best_model.safetensors").exists() == stays
        assert digests(folder)["previous-1/best_model.safetensors"] == best
        at = CheckpointFolder(folder/"checkpoints").best
        assert at.stem == ("checkpoint_step_3" if stays else "checkpoint_step_6")


def test_a_branch_that_is_never_as_good_has_a_best_model_of_its_own(tmp_path):
    "Also when it is killed before it has measured anything"
    class Told(Slower):
        def validate(self, loop): return {"loss": self.losses[loop.step]}

    task = Told()
    task.losses = {3: .5, 6: .7, 9: .4, 12: .6}
    fit(tmp_path, task=task)
    with pytest.raises(Killed): fit(tmp_path, "checkpoint_step_6", Slower(kill=6))
    assert not (tmp_path/"best_model.safetensors").exists()
    task.losses = {9: .8, 12: .9}
    fit(tmp_path, "auto", task)
    assert (tmp_path/"best_model.safetensors").exists()
    told = [row["values"]["path"] for row in read_history(tmp_path) if row["kind"] == "checkpoint"]
    assert told.count("best_model.safetensors") == 2  # of steps 3 and 9


@pytest.mark.parametrize("name", ["absolute", "dots", "link"])
def test_a_checkpoint_is_ours_whatever_path_leads_to_it(name, tmp_path):
    folder = tmp_path/"run"
    fit(folder, task=Denoise())
    (tmp_path/"link").symlink_to(folder)
    where = {"absolute": folder, "dots": tmp_path/"run"/".."/"run", "link": tmp_path/"link"}[name]
    fit(folder, where/"checkpoints"/"checkpoint_step_6.safetensors")
    assert steps(folder) == [*range(1, 13)]
    starts = [row["values"]["resumed"] for row in read_history(folder) if row["kind"] == "start"]
    assert starts == [None, "checkpoints/checkpoint_step_6.safetensors"]


def test_newest_and_damaged_ones_make_no_branch(tmp_path):
    fit(tmp_path, task=Denoise())
    fit(tmp_path, "checkpoint_final", task=Denoise(), steps=15)
    path = tmp_path/"checkpoints"/"checkpoint_final.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.warns(UserWarning, match="checkpoint_final"):
        fit(tmp_path, "auto", task=Denoise(), steps=18)
    assert not list(tmp_path.glob("previous-*"))


def test_what_was_pushed_of_a_branch_is_what_a_pull_goes_on_with(tmp_path):
    from audiolab.remote import pull
    shelf = (tmp_path/"shelf").as_uri()
    fit(tmp_path/"run", task=Denoise(), push=shelf)
    with pytest.raises(Killed):
        fit(tmp_path/"run", "checkpoint_step_6", Slower(kill=11), push=shelf)
    pull(shelf, tmp_path/"back")
    fit(tmp_path/"back", "auto")
    starts = [row["step"] for row in read_history(tmp_path/"back") if row["kind"] == "start"]
    assert starts[-1] == 9


def test_a_best_model_that_a_kill_kept_from_the_store_comes_later(tmp_path, monkeypatch):
    from audiolab.remote import Pusher, pull
    shelf = (tmp_path/"shelf").as_uri()
    with monkeypatch.context() as patch:
        submit = Pusher.submit
        patch.setattr(Pusher, "submit", lambda pusher, path, kind:
                      None if kind == "best" else submit(pusher, path, kind))
        fit(tmp_path/"run", task=Denoise(), push=shelf)
    fit(tmp_path/"run", "auto", task=Denoise(), push=shelf)
    pull(shelf, tmp_path/"back")
    one, other = ((tmp_path/name/"best_model.safetensors").read_bytes() for name in ("run", "back"))
    assert one == other


def test_half_written_files_are_not_kept_aside(tmp_path):
    "Nobody would ever remove them there"
    name = f".checkpoint_step_3.safetensors.tmp-99999999-{HOST_DIGEST}01234567"
    half = tmp_path/"checkpoints"/name
    half.parent.mkdir()
    half.write_bytes(b"half")
    fit(tmp_path, steps=3)
    assert not [*tmp_path.rglob(".*.tmp-*")]


class Named(Slower):
    "Names its checkpoints as the codec does"
    def checkpoint_name(self, kind, loop):
        return f"snac_24khz_{f'iter_{loop.step}' if kind in ('step', 'epoch') else kind}"


def test_a_new_run_moves_checkpoints_of_any_name_aside(tmp_path):
    "Nothing of the old run is overwritten, pruned or gone on with; what is no run's stays"
    run, voice = tmp_path/"run", tmp_path/"run"/"anna.safetensors"
    fit(run, task=Named(), place=".")
    write_checkpoint(voice, {"w": torch.ones(3)})
    before = digests(run)
    with pytest.raises(Killed): fit(run, None, Named(kill=1), place=".")
    assert CheckpointFolder(run).files == [] and voice.exists()
    left = CheckpointFolder(run/"previous-1")
    assert left.latest == left.files[-1] == run/"previous-1"/"snac_24khz_final.safetensors"
    fit(run, None, Named(rate=2e-3), place=".")
    assert set(before.values()) <= set(digests(run).values())
    assert CheckpointFolder(run).best.name in digests(run)
    assert fit(run/"previous-1", "auto", Named(), place=".", steps=13).step == 13


class Adopts(Slower):
    "Takes up weights that no run wrote, as step 5 of one"
    def adopt(self, loop, path): return (5, 1) if path.stem == "old" else None


@pytest.mark.parametrize("name", ["old.npz", "old.safetensors"])
def test_auto_follows_a_file_that_no_run_wrote(name, whole, tmp_path):
    "It is older than all that the run saved, and is a checkpoint from the first instant"
    source, place = whole
    shutil.copytree(source, tmp_path/"run")
    write_checkpoint(tmp_path/"run"/place/name, {"w": torch.ones(3)})
    before = digests(tmp_path/"run")
    with pytest.raises(Killed): fit(tmp_path/"run", name, Adopts(kill=5), place)
    at = CheckpointFolder(tmp_path/"run"/place)
    assert at.resolve("auto").stem == at.latest.stem == "checkpoint_step_5"
    assert steps(tmp_path/"run"/"previous-1") == [*range(1, 13)]
    assert set(before.values()) <= set(digests(tmp_path/"run").values())
    assert fit(tmp_path/"run", "latest", place=place).step == 12
    assert steps(tmp_path/"run") == [*range(1, 13)]


def test_a_folder_of_the_user_stays_and_a_pipe_is_no_list(tmp_path):
    (tmp_path/".previous").mkdir()
    (tmp_path/".previous"/"thesis.txt").write_text("mine")
    run = RunFolder(tmp_path, checkpoints=".")
    run.finish_moves()
    run.begin(seed=7)
    run.step_aside()
    assert (tmp_path/".previous"/"thesis.txt").read_text() == "mine"
    os.mkfifo(tmp_path/"previous-1"/"unfinished.json")
    with pytest.raises(CheckpointError, match="not a regular file"): run.finish_moves()


# a folder that cannot be moved, such as a mount point

def refuse(monkeypatch, number, name="checkpoints"):
    "Let no folder of this name be renamed"
    def rename(source, target):
        if Path(source).name == name: raise OSError(number, os.strerror(number), str(source))
        return real(source, target)
    real = os.rename
    monkeypatch.setattr(os, "rename", rename)


@pytest.mark.parametrize("whole", ["checkpoints"], indirect=True)
def test_all_goes_back_where_one_folder_cannot_be_moved(whole, tmp_path, monkeypatch, caplog):
    folder = tmp_path/"run"
    shutil.copytree(whole[0], folder)
    before = digests(folder)
    with monkeypatch.context() as patched:
        refuse(patched, errno.EBUSY)
        with pytest.raises(OSError, match="mount point, move what it holds elsewhere") as error:
            fit(folder)
        assert error.value.filename == f"{folder}/checkpoints" and digests(folder) == before
        (folder/"previous-1").mkdir()  # a start that was killed on the way back
        (folder/"history.jsonl").rename(folder/"previous-1"/"history.jsonl")
        listed = '["history.jsonl", "checkpoints"]'
        (folder/"previous-1"/"unfinished.json").write_text(listed)
        RunFolder(folder).finish_moves()
        assert "is put back" in caplog.text and not list(folder.glob("*prev*"))
        assert digests(folder) == before
    fit(folder)
    assert set(before.values()) <= set(digests(folder/"previous-1").values())


def test_a_folder_on_another_disk_is_copied_or_stays_whole(tmp_path, monkeypatch):
    run = RunFolder(tmp_path)
    run.begin(seed=7)
    for name in ("a", "b"):
        run.checkpoints.mkdir(exist_ok=True)
        (run.checkpoints/name).write_text(name)
    refuse(monkeypatch, errno.EXDEV)
    before = digests(tmp_path)
    with monkeypatch.context() as patched:
        def full(source, target): raise OSError(errno.ENOSPC, "No space left on device")
        patched.setattr(shutil, "copy2", full)
        patched.setattr(shutil.copytree, "__defaults__", (False, None, full, False, False))
        with pytest.raises(OSError, match="nothing was"): run.step_aside()
        assert digests(tmp_path) == before and not list(tmp_path.glob("*prev*"))
    run.step_aside()
    assert {name.removeprefix("previous-1/") for name in digests(tmp_path)} == set(before)


def test_an_empty_folder_of_the_user_is_no_earlier_run(tmp_path, monkeypatch):
    "Such as a disk that is mounted there for what is to come"
    (tmp_path/"checkpoints").mkdir()
    refuse(monkeypatch, errno.EBUSY)
    assert RunFolder(tmp_path).step_aside() is None


# kills

CHANGES = "os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir"
deadly = {"left": None}  # changes of the disk until the kill; None for no kill


def _hook(event, args):
    if deadly["left"] is None or event not in CHANGES: return
    if "__pycache__" in str(args) or "run.lock" in str(args): return  # a kill frees the lock
    if deadly["left"] == 0: raise Killed
    deadly["left"] -= 1


@pytest.fixture(scope="module")
def kill_after():
    "A function that lets the process be killed before one of the changes that it makes"
    sys.addaudithook(_hook)
    yield lambda changes: deadly.update(left=changes)
    deadly["left"] = None


def begun(folder, resume, place, kill_after, changes=None):
    "Whether a run came to its first step before it was killed"
    kill_after(changes)
    try: fit(folder, resume, Slower(kill=0 if resume is None else 6), place)
    except Killed: pass
    reached = deadly["left"] != 0
    kill_after(None)
    return reached


BACK, ANEW = "checkpoint_step_6", None
EACH = [pytest.param(place, resume, 1, marks=pytest.mark.slow)
        for place in PLACES for resume in (BACK, ANEW)]


@pytest.mark.parametrize("whole, resume, every", [
    ("checkpoints", BACK, 9), ("checkpoints", ANEW, 9), *EACH], indirect=["whole"])
def test_killed_between_two_changes_of_the_folder(whole, resume, every, tmp_path, kill_after):
    "Old branch or new one, each whole, and every byte of the old one is somewhere"
    source, place = whole
    before = digests(source)
    for changes in range(0, 200, every):
        folder = tmp_path/str(changes)
        shutil.copytree(source, folder)
        done = begun(folder, resume, place, kill_after, changes)
        result = fit(folder, "auto", place=place, steps=13)
        start = [row for row in read_history(folder) if row["kind"] == "start"][-1]["step"]
        assert result.step == 13 and steps(folder) == [*range(1, 14)], changes
        now, left = digests(folder), folder/"previous-1"
        assert not any("unfinished" in name for name in now) and not list(folder.glob(".*prev*"))
        if start == 12:  # as if nothing had been
            assert not list(folder.glob("previous-*"))
            old = {name for name in before if name.startswith(("samples", "checkpoint"))
                   and "final" not in name and "json" not in name}
            assert all(now[name] == before[name] for name in old)
            assert not done
        else:
            assert start == (0 if resume is None else 6)
            assert set(before.values()) <= set(now.values()), changes
            assert steps(left) == [*range(1, 13)]
        shutil.rmtree(folder)
        if done: break
    assert 30 < changes < 190


class Second(Distributed):
    "The second of two processes, of which the first found a checkpoint"
    def __init__(self, found):
        super().__init__(1, 2)
        self.found = found
    def gather(self, text): return [str(self.found), text]
    def most(self, flags): return flags
    def sum(self, values): return values
    def wrap(self, module, averaging=True): return module


def test_only_the_main_process_moves_files(tmp_path):
    from audiolab.training.run_parts import Run
    fit(tmp_path, task=Denoise())
    before = digests(tmp_path)
    found = tmp_path/"checkpoints"/"checkpoint_step_6.safetensors"
    run = Run.make(Slower(), short(), RunFolder(tmp_path), Second(found))
    set_up(run, "checkpoint_step_6")
    run.batches.close()
    assert (run.loop.resumed, run.progress.step) == (found, 6)
    assert digests(tmp_path) == before
