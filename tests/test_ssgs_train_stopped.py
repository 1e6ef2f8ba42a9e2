"SSGS runs that are told to stop or killed, in the background, and in several processes."
import json
import os
import random
import signal
import time
from functools import partial

import numpy as np
import pytest

from audiolab.apps import main
from audiolab.files import CheckpointFolder, verify_checkpoint
from audiolab.ssgs import SpectralStateGuidedSynthesis, ssgs_trainer, train_model
from audiolab.training import RunLock, read_history, send

from child_processes import Fork, forked_ranks
from ssgs_runs import (
    SIX, load, names, same_parameters, short_measures, short_pieces, train,  # noqa: F401
)


@pytest.fixture(scope="module")
def music(tmp_path_factory):
    "A folder of four pieces, cut to 3 s."
    return short_pieces(tmp_path_factory.mktemp("music"), tmp_path_factory.mktemp("whole"))


@pytest.fixture(autouse=True)
def quiet(caplog): caplog.set_level("INFO", "audiolab")


@pytest.fixture(scope="module")
def run(music, tmp_path_factory):
    "A finished run of five iterations."
    out = tmp_path_factory.mktemp("run")
    assert train(music, out, checkpoint_interval=2, **SIX) == 0
    return out


# ---- stopped and killed

def files_of(folder): return sorted(folder.iterdir())


@pytest.mark.parametrize("number,code",
                         [(signal.SIGTERM, 143),
                          pytest.param(signal.SIGUSR1, 75, marks=pytest.mark.slow)])
def test_a_run_told_to_stop_saves_and_goes_on_later(music, tmp_path, number, code):
    out = tmp_path/"out"
    child = Fork(partial(train, music, out, n_states=16, n_iterations=100000, tolerance=0,
                         checkpoint_interval=2))
    try:
        deadline = time.monotonic() + 120
        while not (out/"checkpoint_epoch_2.safetensors").exists() and child.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(.01)
        child.send_signal(number)
        said = child.communicate(timeout=60)[1]
    finally: child.kill()
    assert child.returncode == code and "--resume auto" in said and "Traceback" not in said
    stopped = load(CheckpointFolder(out).resolve("auto"))
    assert stopped.iteration >= 2 and f"iteration {stopped.iteration}" in said
    assert (out/f"checkpoint_epoch_{stopped.iteration}.safetensors").exists()
    more = stopped.iteration + 3  # in all
    assert train(music, out, resume="auto", n_iterations=more, checkpoint_interval=0) == 0
    unbroken, _ = train_model(files_of(music), n_states=16, n_em_iterations=stopped.iteration + 3,
                              tolerance=0., checkpoint_dir=tmp_path/"unbroken",
                              checkpoint_interval=0)
    same_parameters(out/"checkpoint_final.safetensors", unbroken)


def until(total, files, out):
    "Train until `total` iterations are done, from wherever the folder stands; in a process."
    pid = os.fork()
    if pid: return pid
    code = 1
    try:
        if not (out/"checkpoint_final.safetensors").exists():
            train_model(files, n_states=12, n_em_iterations=total, checkpoint_dir=out,
                        checkpoint_interval=1, resume_from="auto", tolerance=0.)
        code = 0
    finally: os._exit(code)


def kill_and_go_on(music, tmp_path, kills, total=12):
    out, files, rng = tmp_path/"out", files_of(music), random.Random(kills)
    unbroken, _ = train_model(files, n_states=12, n_em_iterations=total,
                              checkpoint_dir=tmp_path/"unbroken", checkpoint_interval=0,
                              tolerance=0.)
    started = time.monotonic()
    os.waitpid(until(total, files, tmp_path/"timed"), 0)
    lasts, killed = time.monotonic() - started, 0
    while killed < kills:
        pid = until(total, files, out)
        deadline, ended = time.monotonic() + rng.uniform(.05, .9)*lasts/(1 + killed % 3), None
        while ended is None and time.monotonic() < deadline:
            time.sleep(.002)
            ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        os.kill(pid, signal.SIGKILL)
        killed += os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        # whole files, whenever it died
        for path in out.glob("*.safetensors"): assert verify_checkpoint(path).ok
        # it got to the end: once more from the beginning
        if (out/"checkpoint_final.safetensors").exists():
            same_parameters(out/"checkpoint_final.safetensors", unbroken)
            out = tmp_path/f"out{killed}"
    assert os.waitstatus_to_exitcode(os.waitpid(until(total, files, out), 0)[1]) == 0
    same_parameters(out/"checkpoint_final.safetensors", unbroken)
    assert not [p for p in out.iterdir() if ".tmp" in p.name]


forks = pytest.mark.skipif(not hasattr(os, "fork"),
                           reason="optional: needs a system with fork and SIGKILL")


@forks
def test_killed_three_times(music, tmp_path): kill_and_go_on(music, tmp_path, 3)


@forks
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_fifty_times(music, tmp_path): kill_and_go_on(music, tmp_path, 50)


def test_auto_begins_with_the_usual_folders_where_there_is_no_checkpoint(
    music, tmp_path, monkeypatch):
    for folder in ("training_001", "training_002"): (tmp_path/folder).mkdir()
    for i, path in enumerate(sorted(music.iterdir())):
        (tmp_path/f"training_00{1 + i % 2}"/path.name).write_bytes(path.read_bytes())
    monkeypatch.chdir(tmp_path)
    for done in (2, 4):
        assert main(["ssgs", "train", "--resume", "auto", "--n-states", "6", "--n-iterations",
                     str(done), "--tolerance", "0"]) == 0
        assert load("models/checkpoint_final.safetensors").iteration == done


def test_resume_keeps_what_makes_the_model_and_says_so(run, tmp_path, caplog):
    final = run/"checkpoint_final.safetensors"
    assert train(None, tmp_path, resume=final, n_states=9, n_iterations=30, tolerance=.5) == 0
    assert "n_states stays 6" in caplog.text and "lpc_order" not in caplog.text
    model = load(tmp_path/"checkpoint_final.safetensors")
    # the new tolerance stops it
    assert model.n_states == 6 and model.tolerance == .5 and model.iteration < 35
    model, _ = train_model(None, n_em_iterations=1, checkpoint_dir=tmp_path/"other",
                           resume_from=final, device="cpu:0")
    assert model.device == "cpu:0" and model.tolerance == 0


# ---- on the common loop

@pytest.mark.parametrize("mode", ["batch", "incremental", "online"])
def test_resume_is_exact_in_every_mode(music, tmp_path, mode):
    how = dict(n_states=6, mode=mode, tolerance=0., checkpoint_interval=3)
    unbroken, _ = train_model(files_of(music), n_em_iterations=6, checkpoint_dir=tmp_path/"a",
                              **how)
    for artifacts in (True, False):
        out = tmp_path/f"b{artifacts}"
        train_model(files_of(music), n_em_iterations=3, checkpoint_dir=out, artifacts=artifacts,
                    **how)
        resumed, _ = train_model(None, n_em_iterations=6, checkpoint_dir=out, resume_from="auto",
                                 artifacts=artifacts)
        same_parameters(resumed, unbroken)
        rows = [row for row in read_history(out) if row["kind"] == "log"]
        assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
        assert [row["values"]["per_frame"] for row in rows] == [row["per_frame"]
                                                                for row in unbroken.history]


def test_models_that_no_run_wrote_are_resumed(music, tmp_path):
    unbroken, _ = train_model(files_of(music), n_states=6, n_em_iterations=5, tolerance=0.,
                              checkpoint_dir=tmp_path/"a")
    model = SpectralStateGuidedSynthesis(n_states=6, tolerance=0.).train(
        files_of(music), n_em_iterations=2)
    for i, artifacts in enumerate((True, False)):
        saved = model.save_checkpoint(tmp_path/f"mine{i}", include_training_artifacts=artifacts)
        assert train(None, tmp_path/f"b{i}", resume=saved, n_iterations=3,
                     checkpoint_interval=4) == 0
        same_parameters(tmp_path/f"b{i}"/"checkpoint_final.safetensors", unbroken)
        assert load(tmp_path/f"b{i}"/"checkpoint_epoch_4.safetensors").iteration == 4
    legacy = unbroken.export_model(tmp_path/"old.npz")
    assert train(music, tmp_path/"c", resume=legacy, n_iterations=2) == 0
    assert load(tmp_path/"c"/"checkpoint_final.safetensors").iteration == unbroken.iteration + 2


def test_a_resumed_run_reads_its_checkpoint_once(music, run, tmp_path, monkeypatch):
    import audiolab.files.checkpoint_file
    import audiolab.ssgs.model
    import audiolab.training.training_state
    read, real = [], audiolab.files.checkpoint_file.read_checkpoint
    for module in (audiolab.training.training_state, audiolab.ssgs.model):
        monkeypatch.setattr(module, "read_checkpoint", lambda path, *a, **k: read.append(path)
                            or real(path, *a, **k))
    assert train(music, tmp_path, resume=run/"checkpoint_epoch_4.safetensors", n_iterations=1) == 0
    assert read == [run/"checkpoint_epoch_4.safetensors"]
    same_parameters(tmp_path/"checkpoint_final.safetensors", run/"checkpoint_final.safetensors")


def test_no_iterations_still_make_a_model(music, run, tmp_path):
    assert train(music, tmp_path/"a", n_states=6, n_iterations=0) == 0
    assert {"checkpoint_initial.safetensors", "checkpoint_final.safetensors", "model_final.npz",
            "test_generation.wav"} <= set(names(tmp_path/"a"))
    assert train(None, tmp_path/"b", resume=run/"checkpoint_final.safetensors", n_iterations=0) == 0
    same_parameters(tmp_path/"b"/"checkpoint_final.safetensors", run/"checkpoint_final.safetensors")


def test_a_run_that_cannot_begin_leaves_an_earlier_one_alone(music, tmp_path):
    assert train(music, tmp_path/"out", **SIX) == 0
    before = {p: p.read_bytes() for p in (tmp_path/"out").iterdir()}
    (tmp_path/"bad").mkdir()
    (tmp_path/"bad"/"0.wav").write_bytes(b"RIFF")
    assert train(tmp_path/"bad", tmp_path/"out") == 2
    assert train(music, tmp_path/"out", n_states=4000) == 2
    with RunLock(tmp_path/"out"): assert train(music, tmp_path/"out") == 2
    assert {p: p.read_bytes() for p in (tmp_path/"out").iterdir()} == before


def test_a_run_in_the_background_is_steered(music, tmp_path):
    events = []
    trainer = ssgs_trainer(music, tmp_path, n_states=6, n_iterations=10**6, tolerance=-99.,
                           checkpoint_interval=0, listeners=[events.append])

    def wait(until):
        deadline = time.monotonic() + 60
        while not until() and time.monotonic() < deadline: time.sleep(.01)
        assert until()
    trainer.fit(background=True)
    wait(lambda: any(event.kind == "log" for event in events))
    trainer.control.pause()
    wait(lambda: any(event.kind == "state" for event in events))
    trainer.control.sample()
    wait(lambda: any(event.kind == "sample" for event in events))
    paused = trainer.task.model.iteration
    sound, = next(event for event in events if event.kind == "sample").values["samples"]
    assert sound.sample_rate == 16000 and len(sound.audio) == 48000
    assert np.abs(sound.audio).max() > .1
    time.sleep(.1)
    assert trainer.task.model.iteration == paused
    trainer.control.resume()
    wait(lambda: trainer.task.model.iteration > paused + 3)
    send(tmp_path, "stop")
    result = trainer.join(60)
    assert result.state == "stopped" and result.exit_code == 0
    assert load(CheckpointFolder(tmp_path).resolve("auto")).iteration == result.step
    saved = [path.name for path in tmp_path.glob("checkpoint_epoch_*")]
    assert saved == [f"checkpoint_epoch_{result.step}.safetensors"]


def test_a_run_is_watched(music, tmp_path):
    pytest.importorskip("ipywidgets", reason="optional: the panel needs ipywidgets")
    from audiolab.watch import watch
    trainer = ssgs_trainer(music, tmp_path, n_states=6, n_iterations=5, tolerance=0.,
                           sample_every="5 epochs")
    monitor = watch(trainer, interval=.05)
    trainer.join(60)
    assert monitor.wait()
    assert "iteration 5/5" in monitor.headline.value and "per_frame" in monitor.numbers.value
    assert len(monitor.curves.value) > 1000 and monitor.sample.name == "generation"


# ---- several processes

def several(n, folder, out, *flags, **named):
    "Start `audiolab ssgs train --processes n`."
    return Fork(partial(train, folder, out, *flags, processes=n, **named))


def finish(child):
    said = child.communicate(timeout=240)[1]
    assert child.returncode == 0, said
    return said


@pytest.mark.parametrize("mode,dtype",
                         [("batch", "float64"),
                          *(pytest.param(mode, "float32", marks=pytest.mark.slow)
                            for mode in ("batch", "incremental", "online"))])
def test_processes_share_the_work_and_change_nothing(music, tmp_path, mode, dtype):
    how = dict(n_states=6, n_iterations=10, tolerance=0, mode=mode, dtype=dtype,
               checkpoint_interval=0)
    ranks = forked_ranks(partial(train, music, tmp_path/"two", **how))
    assert train(music, tmp_path/"one", **how) == 0
    said = "".join(map(finish, ranks))
    # to the last bit, so within any tolerance
    same_parameters(tmp_path/"two"/"checkpoint_final.safetensors",
                    tmp_path/"one"/"checkpoint_final.safetensors")
    # online too, where the objective falls now and then: that is no rest
    assert load(tmp_path/"one"/"checkpoint_final.safetensors").iteration == 10
    assert said.count("iteration 10/10, per_frame") == 1
    assert names(tmp_path/"two") == names(tmp_path/"one")
    assert json.loads((tmp_path/"two"/"run.json").read_text())[-1]["processes"] == 2


@pytest.mark.slow
def test_the_number_of_processes_may_change_on_the_way(music, tmp_path):
    how = dict(tolerance=0, checkpoint_interval=0)
    assert train(music, tmp_path/"one", n_states=6, n_iterations=9, **how) == 0
    finish(several(2, music, tmp_path/"out", n_states=6, n_iterations=3, **how))
    assert train(None, tmp_path/"out", resume="auto", n_iterations=6, **how) == 0
    finish(several(2, None, tmp_path/"out", resume="auto", n_iterations=9, **how))
    same_parameters(tmp_path/"out"/"checkpoint_final.safetensors",
                    tmp_path/"one"/"checkpoint_final.safetensors")
    assert [row["step"] for row in read_history(tmp_path/"out")
            if row["kind"] == "log"] == list(range(1, 10))


@pytest.mark.slow
def test_processes_report_bad_input(music, tmp_path):
    (tmp_path/"bad").mkdir()
    for i in range(2): (tmp_path/"bad"/f"{i}.wav").write_bytes(b"RIFF")
    child = several(2, tmp_path/"bad", tmp_path/"out")
    said = child.communicate(timeout=240)[1]
    assert child.returncode and "none of the 2 files" in said, said


@pytest.mark.parametrize("number,code",
                         [(signal.SIGTERM, 143),
                          pytest.param(signal.SIGUSR1, 75, marks=pytest.mark.slow)])
def test_processes_told_to_stop_save_once(music, tmp_path, number, code):
    out = tmp_path/"out"
    child = several(2, music, out, n_states=6, n_iterations=100000, tolerance=0,
                    checkpoint_interval=2)
    try:
        deadline = time.monotonic() + 240
        while not (out/"checkpoint_epoch_2.safetensors").exists() and child.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(.01)
        child.send_signal(number)
        said = child.communicate(timeout=120)[1]
    finally: child.kill()
    assert child.returncode == code, said
    stopped = load(CheckpointFolder(out).resolve("auto"))
    assert said.count("stopped at iteration") == 1
    assert f"iteration {stopped.iteration} and saved" in said
    saved = [row["values"]["path"] for row in read_history(out) if row["kind"] == "checkpoint"]
    assert saved.count(f"checkpoint_epoch_{stopped.iteration}.safetensors") == 1
    more = stopped.iteration + 3  # in all
    assert train(None, out, resume="auto", n_iterations=more, tolerance=0) == 0
    unbroken, _ = train_model(files_of(music), n_states=6, n_em_iterations=stopped.iteration + 3,
                              tolerance=0., checkpoint_dir=tmp_path/"unbroken",
                              checkpoint_interval=0)
    same_parameters(out/"checkpoint_final.safetensors", unbroken)
