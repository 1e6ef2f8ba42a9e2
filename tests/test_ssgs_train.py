"`audiolab ssgs train` from end to end: flags, file names, unreadable files, resuming, and runs that are told to stop or killed."
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from audiolab.audio import probe_audio, read_audio, write_audio
from audiolab.files import CheckpointError, verify_checkpoint
from audiolab.apps import main
from audiolab.training import RunLock, send
from audiolab.audio import instrument_corpus
from audiolab.training import read_history
from audiolab.ssgs import SpectralStateGuidedSynthesis, TrainConfig, ssgs_trainer, train_model
from audiolab.files import CheckpointFolder

load = SpectralStateGuidedSynthesis.load_checkpoint
AUDIOLAB = [sys.executable, "-W", "ignore", "-c", "import sys; from audiolab.apps import main; sys.exit(main())"]


@pytest.fixture(scope="module")
def music(tmp_path_factory):
    "A folder of four pieces, cut to 3 s."
    folder = tmp_path_factory.mktemp("music")
    for path in instrument_corpus(tmp_path_factory.mktemp("whole"), n_files=4, seed=2): write_audio(folder/path.name, read_audio(path, duration=3.)[0], 16000)
    return folder


@pytest.fixture(autouse=True)
def quiet(caplog): caplog.set_level("INFO", "audiolab")


def train(folder, out, *flags, **named):
    flags = [str(f) for f in flags] + [word for key, value in named.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    return main(["ssgs", "train", *(["--folders", str(folder)] if folder else []), "--checkpoint-dir", str(out), *flags])


def names(folder): return sorted(p.name for p in Path(folder).iterdir())


def digests(folder):
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in Path(folder).rglob("*")
            if p.suffix in (".safetensors", ".npz", ".wav") or "training_history" in p.name}


def same_parameters(a, b):
    a, b = (o if isinstance(o, SpectralStateGuidedSynthesis) else load(o) for o in (a, b))
    for name in ("initial", "transition", "means", "covariances"): np.testing.assert_array_equal(getattr(a.hmm, name), getattr(b.hmm, name))
    assert a.iteration == b.iteration and a.history == b.history


SIX = dict(n_states=6, n_iterations=5, tolerance=0)


@pytest.fixture(scope="module")
def run(music, tmp_path_factory):
    "A finished run of five iterations."
    out = tmp_path_factory.mktemp("run")
    assert train(music, out, checkpoint_interval=2, **SIX) == 0
    return out


# ---- flags and files

def test_files_of_a_run(run):
    assert set(names(run)) - {"latest.json", "config.yaml", "run.json", "history.jsonl"} == {"checkpoint_initial.safetensors", "checkpoint_epoch_2.safetensors", "checkpoint_epoch_4.safetensors",
        "checkpoint_final.safetensors", "model_final.npz", "test_generation.wav", "training_history.json"}
    models = {p.stem: load(p) for p in run.glob("*.safetensors")}
    assert [models[f"checkpoint_{o}"].iteration for o in ("initial", "epoch_2", "epoch_4", "final")] == [0, 2, 4, 5]
    final = models["checkpoint_final"]
    assert final.n_states == 6 and final.sample_rate == 16000 and len(final.files) == 4 and final.has_audio
    assert all(verify_checkpoint(p).ok for p in run.glob("*.safetensors"))
    rows = [row["values"] for row in read_history(run) if row["kind"] == "log"]
    assert [row["per_frame"] for row in rows] == [row["per_frame"] for row in final.history] and {"change", "occupancy_entropy"} < rows[1].keys()
    history = json.loads((run/"training_history.json").read_text())
    assert history == final.history and [row["iteration"] for row in history] == [1, 2, 3, 4, 5]
    info = probe_audio(run/"test_generation.wav")
    assert abs(info.duration - 3) < 1e-6 and info.sample_rate == 16000 and np.abs(read_audio(run/"test_generation.wav")[0]).max() > .1
    assert SpectralStateGuidedSynthesis.load_model(run/"model_final.npz").n_states == 6


def test_defaults_are_those_that_were_promised():
    config = TrainConfig()
    assert (config.folders, config.sample_rate, config.n_states, config.n_iterations, config.checkpoint_dir, config.checkpoint_interval, config.resume, config.recursive) == (
        ("training_001", "training_002"), 16000, 34, 20, "models", 5, None, False)
    assert config.extensions == (".mp3", ".wav", ".flac", ".ogg")


def test_every_flag_reaches_the_model(music, tmp_path):
    flags = ["--recursive", "--extensions", ".wav", ".flac", "--auto-n-states", "--no-artifacts"]
    assert train(music, tmp_path, *flags, sample_rate=8000, n_iterations=1, checkpoint_interval=0, lpc_order=8, frame_size=512, hop_size=128, smoothness_weight=2, mode="incremental",
                 tolerance=.01, dtype="float64", seed=9) == 0
    assert not list(tmp_path.glob("*epoch*"))
    model = load(tmp_path/"checkpoint_final.safetensors")
    assert (model.sample_rate, model.lpc_order, model.frame_size, model.hop_size, model.smoothness_weight, model.mode, model.tolerance, model.dtype, model.seed) == (
        8000, 8, 512, 128, 2., "incremental", .01, "float64", 9)
    assert model.n_states in (8, 16, 24, 32, 34, 42) and not model.has_audio
    assert probe_audio(tmp_path/"test_generation.wav").sample_rate == 8000


def test_several_folders_extensions_and_depth(music, tmp_path):
    (tmp_path/"a"/"deep").mkdir(parents=True)
    (tmp_path/"b").mkdir()
    sound = read_audio(sorted(music.iterdir())[0], duration=1.)[0]
    for name in ("a/1.wav", "a/2.FLAC", "a/deep/3.ogg", "b/4.wav", "a/.hidden.wav"): write_audio(tmp_path/name, sound, 16000) if not name.endswith("FLAC") else write_audio(tmp_path/"a"/"2.flac", sound, 16000)
    (tmp_path/"a"/"notes.txt").write_text("no sound")
    (tmp_path/"a"/"2.flac").rename(tmp_path/"a"/"2.FLAC")
    used = lambda out: [str(Path(f).relative_to(tmp_path)) for f in load(tmp_path/out/"checkpoint_final.safetensors").files]
    both = [str(tmp_path/"a"), str(tmp_path/"b")]
    for out, flags, expected in (("m1", [], ["a/1.wav", "a/2.FLAC", "b/4.wav"]), ("m2", ["--recursive"], ["a/1.wav", "a/2.FLAC", "a/deep/3.ogg", "b/4.wav"]),
                                 ("m3", ["--recursive", "--extensions", ".ogg"], ["a/deep/3.ogg"]), ("m4", ["--extensions", "wav", "ogg"], ["a/1.wav", "b/4.wav"])):
        assert main(["ssgs", "train", "--folders", *both, "--checkpoint-dir", str(tmp_path/out), "--n-states", "2", "--n-iterations", "1", *flags]) == 0
        assert sorted(used(out)) == expected


def test_config_file_equals_flags(music, run, tmp_path):
    file = tmp_path/"train.yaml"
    file.write_text(f"folders: [{music}]\nn_states: 6\nn_iterations: 7\ntolerance: 0\ncheckpoint_interval: 2\ncheckpoint_dir: {tmp_path/'out'}\n")
    assert main(["ssgs", "train", "--config", str(file), "--n-iterations", "5"]) == 0  # a flag beats the file
    same_parameters(tmp_path/"out"/"checkpoint_final.safetensors", run/"checkpoint_final.safetensors")
    np.testing.assert_array_equal(read_audio(tmp_path/"out"/"test_generation.wav")[0], read_audio(run/"test_generation.wav")[0])


def test_dry_run_says_what_would_happen_and_does_nothing(music, tmp_path, capsys):
    assert train(music, tmp_path/"out", "--dry-run", n_states=7) == 0
    said = capsys.readouterr().out
    assert not (tmp_path/"out").exists() and "n_states: 7" in said and "flag" in said and "default" in said and "4 files" in said and "7 states" in said
    assert train(tmp_path/"missing", tmp_path/"out", "--dry-run") == 0
    assert "cannot run" in capsys.readouterr().out or "0 files" in said


def test_progress_is_reported(music, tmp_path, caplog):
    assert train(music, tmp_path, **SIX) == 0
    text = caplog.text
    assert "4 files, 12.0 s" in text and "6 states of order 18" in text and str(tmp_path) in text
    assert all(f"iteration {n}/5, per_frame" in text for n in range(1, 6)) and "Epoch" not in text


# ---- what cannot work

def test_unreadable_files_are_named_skipped_and_counted(music, tmp_path, caplog):
    folder = tmp_path/"mixed"
    folder.mkdir()
    for path in music.iterdir(): (folder/path.name).write_bytes(path.read_bytes())
    whole = next(iter(music.iterdir())).read_bytes()
    for name, data in (("broken.wav", b"RIFF"), ("empty.wav", b""), ("cut.wav", whole[:len(whole)//2])): (folder/name).write_bytes(data)
    assert train(folder, tmp_path/"out", **SIX) == 0
    assert "3 of 7 files" in caplog.text and all(name in caplog.text for name in ("broken.wav", "empty.wav", "cut.wav"))
    model = load(tmp_path/"out"/"checkpoint_final.safetensors")
    assert len(model.files) == 4 and not any("broken" in f for f in model.files)
    assert train(folder, tmp_path/"strict", max_unreadable=.1) == 2
    assert not list((tmp_path/"strict").glob("*.safetensors"))


def fails(capsys, *args, code=2):
    assert main(["ssgs", "train", *map(str, args)]) == code
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


def test_clear_failure_when_nothing_can_be_read(tmp_path, capsys):
    (tmp_path/"bad").mkdir()
    for i in range(3): (tmp_path/"bad"/f"{i}.wav").write_bytes(b"RIFF")
    said = fails(capsys, "--folders", tmp_path/"bad", "--checkpoint-dir", tmp_path/"out")
    assert "none of the 3 files" in said and "0.wav" in said and not list((tmp_path/"out").glob("*")) if (tmp_path/"out").exists() else True


def test_clear_failure_without_files(tmp_path, capsys, music):
    (tmp_path/"empty").mkdir()
    assert "--recursive" in fails(capsys, "--folders", tmp_path/"empty", "--checkpoint-dir", tmp_path/"out")
    assert "missing" in fails(capsys, "--folders", tmp_path/"missing", "--checkpoint-dir", tmp_path/"out")
    assert "no audio files" in fails(capsys, "--folders", music, "--extensions", ".mp3", "--checkpoint-dir", tmp_path/"out")
    assert not (tmp_path/"out").exists() or not names(tmp_path/"out")


@pytest.mark.parametrize("flags,text", [(["--n-states", "0"], "n"), (["--n-states", "many"], "n"), (["--sample-rate", "5"], "rate"), (["--n-iterations", "-1"], "iterations"), (["--mode", "magic"], "mode"),
                                        (["--n-state", "3"], "n-states"), (["--max-unreadable", "2"], "unreadable"), (["--n-states", "4000"], "4000 states"),
                                        (["--frame-size", "128"], "frame_size")])
def test_wrong_flags_are_explained(music, tmp_path, capsys, flags, text):
    assert text in fails(capsys, "--folders", music, "--checkpoint-dir", tmp_path/"out", *flags)


def test_resume_from_nothing_and_from_nonsense(music, tmp_path, capsys):
    assert "nowhere" in fails(capsys, "--folders", music, "--resume", "nowhere.safetensors", "--checkpoint-dir", tmp_path/"out")
    (tmp_path/"text.safetensors").write_text("no model")
    assert "text.safetensors" in fails(capsys, "--folders", music, "--resume", tmp_path/"text.safetensors", "--checkpoint-dir", tmp_path/"out")


# ---- resuming

def test_resume_goes_on_counting_and_overwrites_nothing(music, tmp_path):
    unbroken, out = tmp_path/"unbroken", tmp_path/"out"
    assert train(music, unbroken, checkpoint_interval=2, **SIX | dict(n_iterations=8)) == 0
    assert train(music, out, checkpoint_interval=2, **SIX) == 0
    before = digests(out)
    assert train(None, out, resume=out/"checkpoint_final.safetensors", n_iterations=3, checkpoint_interval=2) == 0
    after = digests(out)
    assert set(before.values()) <= set(after.values())  # every byte of the first run is still there
    assert {k: after[k] for k in before if "initial" in k or "epoch" in k} == {k: v for k, v in before.items() if "initial" in k or "epoch" in k}
    assert {"checkpoint_epoch_6.safetensors", "checkpoint_epoch_8.safetensors", "checkpoint_final.previous-1.safetensors", "model_final.previous-1.npz"} <= set(after)
    same_parameters(out/"checkpoint_final.safetensors", unbroken/"checkpoint_final.safetensors")
    for n in (6, 8): same_parameters(out/f"checkpoint_epoch_{n}.safetensors", unbroken/f"checkpoint_epoch_{n}.safetensors")
    np.testing.assert_array_equal(read_audio(out/"test_generation.wav")[0], read_audio(unbroken/"test_generation.wav")[0])
    assert train(music, out, checkpoint_interval=2, **SIX) == 0  # a new run into the same folder
    assert set(after.values()) <= set(digests(out).values())
    assert {f"previous-1/{name}" for name in after} <= set(digests(out)) and set(names(out)) == set(names(unbroken)) - {"checkpoint_epoch_6.safetensors", "checkpoint_epoch_8.safetensors"} | {"previous-1"}


@pytest.mark.parametrize("which", ["auto", "checkpoint_epoch_2", "file"])
def test_resume_from_minimal_checkpoints(music, run, tmp_path, which):
    assert train(music, tmp_path, "--no-artifacts", checkpoint_interval=1, **SIX | dict(n_iterations=2)) == 0
    assert not load(tmp_path/"checkpoint_final.safetensors").has_audio
    resume = tmp_path/"checkpoint_epoch_2.safetensors" if which == "file" else which
    assert train(None, tmp_path, "--no-artifacts", resume=resume, n_iterations=3) == 0  # the files are where they were
    same_parameters(tmp_path/"checkpoint_final.safetensors", run/"checkpoint_final.safetensors")


def test_minimal_checkpoint_whose_files_have_gone_says_what_to_do(music, run, tmp_path, capsys):
    folder = tmp_path/"music"
    folder.mkdir()
    for path in music.iterdir(): (folder/path.name).write_bytes(path.read_bytes())
    assert train(folder, tmp_path/"out", "--no-artifacts", **SIX | dict(n_iterations=2)) == 0
    folder.rename(tmp_path/"moved")
    said = fails(capsys, "--resume", "auto", "--checkpoint-dir", tmp_path/"out")
    assert "--folders" in said and "music" in said
    assert train(tmp_path/"moved", tmp_path/"out", "--no-artifacts", resume="auto", n_iterations=3) == 0
    same_parameters(tmp_path/"out"/"checkpoint_final.safetensors", run/"checkpoint_final.safetensors")


def test_auto_begins_anew_in_an_empty_folder_and_passes_over_damage(music, run, tmp_path):
    assert train(music, tmp_path, resume="auto", checkpoint_interval=1, **SIX | dict(n_iterations=3)) == 0
    newest = CheckpointFolder(tmp_path).resolve("auto")
    assert newest.name == "checkpoint_final.safetensors"
    data = bytearray(newest.read_bytes())
    data[len(data)//2] ^= 4
    newest.write_bytes(data)
    with pytest.warns(UserWarning, match="checkpoint_final"): assert train(music, tmp_path, resume="auto", n_iterations=2) == 0
    same_parameters(tmp_path/"checkpoint_final.safetensors", run/"checkpoint_final.safetensors")
    with pytest.raises(CheckpointError): load(tmp_path/"checkpoint_final.previous-1.safetensors")  # kept as it was, damage and all


def test_training_stops_where_nothing_is_gained_and_says_so(music, tmp_path, caplog):
    assert train(music, tmp_path, n_states=3, n_iterations=60, tolerance=.01, checkpoint_interval=0) == 0
    assert "converged" in caplog.text and load(tmp_path/"checkpoint_final.safetensors").iteration < 60


# ---- stopped and killed

def files_of(folder): return sorted(folder.iterdir())


@pytest.mark.parametrize("number,code", [(signal.SIGTERM, 143), pytest.param(signal.SIGUSR1, 75, marks=pytest.mark.slow)])
def test_a_run_told_to_stop_saves_and_goes_on_later(music, tmp_path, number, code):
    out = tmp_path/"out"
    command = [*AUDIOLAB, "ssgs", "train", "--folders", str(music), "--checkpoint-dir", str(out), "--n-states", "16", "--n-iterations", "100000", "--tolerance", "0", "--checkpoint-interval", "2"]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while not (out/"checkpoint_epoch_2.safetensors").exists() and child.poll() is None and time.monotonic() < deadline: time.sleep(.01)
        child.send_signal(number)
        said = child.communicate(timeout=60)[1]
    finally: child.kill()
    assert child.returncode == code and "--resume auto" in said and "Traceback" not in said
    stopped = load(CheckpointFolder(out).resolve("auto"))
    assert stopped.iteration >= 2 and f"iteration {stopped.iteration}" in said and (out/f"checkpoint_epoch_{stopped.iteration}.safetensors").exists()
    assert train(music, out, resume="auto", n_iterations=3, checkpoint_interval=0) == 0
    unbroken, _ = train_model(files_of(music), n_states=16, n_em_iterations=stopped.iteration + 3, tolerance=0., checkpoint_dir=tmp_path/"unbroken", checkpoint_interval=0)
    same_parameters(out/"checkpoint_final.safetensors", unbroken)


def until(total, files, out):
    "Train until `total` iterations are done, from wherever the folder stands; in a process of its own."
    pid = os.fork()
    if pid: return pid
    code = 1
    try:
        newest = CheckpointFolder(out).resolve("auto")
        done = load(newest).iteration if newest else 0
        if done < total or not (out/"checkpoint_final.safetensors").exists():
            train_model(files, n_states=12, n_em_iterations=total - done, checkpoint_dir=out, checkpoint_interval=1, resume_from="auto", tolerance=0.)
        code = 0
    finally: os._exit(code)


def kill_and_go_on(music, tmp_path, kills, total=12):
    out, files, rng = tmp_path/"out", files_of(music), random.Random(kills)
    unbroken, _ = train_model(files, n_states=12, n_em_iterations=total, checkpoint_dir=tmp_path/"unbroken", checkpoint_interval=0, tolerance=0.)
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
        for path in out.glob("*.safetensors"): assert verify_checkpoint(path).ok  # whole files, whenever it died
        if (out/"checkpoint_final.safetensors").exists():  # it got to the end: once more from the beginning
            same_parameters(out/"checkpoint_final.safetensors", unbroken)
            out = tmp_path/f"out{killed}"
    assert os.waitstatus_to_exitcode(os.waitpid(until(total, files, out), 0)[1]) == 0
    same_parameters(out/"checkpoint_final.safetensors", unbroken)
    assert not [p for p in out.iterdir() if ".tmp" in p.name]


forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="optional: needs a system with fork and SIGKILL")


@forks
def test_killed_three_times(music, tmp_path): kill_and_go_on(music, tmp_path, 3)


@forks
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_fifty_times(music, tmp_path): kill_and_go_on(music, tmp_path, 50)


def test_auto_begins_with_the_usual_folders_where_there_is_no_checkpoint(music, tmp_path, monkeypatch):
    for folder in ("training_001", "training_002"): (tmp_path/folder).mkdir()
    for i, path in enumerate(sorted(music.iterdir())): (tmp_path/f"training_00{1 + i % 2}"/path.name).write_bytes(path.read_bytes())
    monkeypatch.chdir(tmp_path)
    for done in (2, 4):
        assert main(["ssgs", "train", "--resume", "auto", "--n-states", "6", "--n-iterations", "2", "--tolerance", "0"]) == 0
        assert load("models/checkpoint_final.safetensors").iteration == done


def test_resume_keeps_what_makes_the_model_and_says_so(run, tmp_path, caplog):
    final = run/"checkpoint_final.safetensors"
    assert train(None, tmp_path, resume=final, n_states=9, n_iterations=30, tolerance=.5) == 0
    assert "n_states stays 6" in caplog.text and "lpc_order" not in caplog.text
    model = load(tmp_path/"checkpoint_final.safetensors")
    assert model.n_states == 6 and model.tolerance == .5 and model.iteration < 35  # the new tolerance stops it
    model, _ = train_model(None, n_em_iterations=1, checkpoint_dir=tmp_path/"other", resume_from=final, device="cpu:0")
    assert model.device == "cpu:0" and model.tolerance == 0


# ---- on the common loop

@pytest.mark.parametrize("mode", ["batch", "incremental", "online"])
def test_resume_is_exact_in_every_mode(music, tmp_path, mode):
    how = dict(n_states=6, mode=mode, tolerance=-99., checkpoint_interval=3)  # online, the objective falls now and then
    unbroken, _ = train_model(files_of(music), n_em_iterations=6, checkpoint_dir=tmp_path/"a", **how)
    for artifacts in (True, False):
        out = tmp_path/f"b{artifacts}"
        train_model(files_of(music), n_em_iterations=3, checkpoint_dir=out, artifacts=artifacts, **how)
        resumed, _ = train_model(None, n_em_iterations=3, checkpoint_dir=out, resume_from="auto", artifacts=artifacts)
        same_parameters(resumed, unbroken)
        rows = [row for row in read_history(out) if row["kind"] == "log"]
        assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6] and [row["values"]["per_frame"] for row in rows] == [row["per_frame"] for row in unbroken.history]


def test_models_that_no_run_wrote_are_resumed(music, tmp_path):
    unbroken, _ = train_model(files_of(music), n_states=6, n_em_iterations=5, tolerance=0., checkpoint_dir=tmp_path/"a")
    model = SpectralStateGuidedSynthesis(n_states=6, tolerance=0.).train(files_of(music), n_em_iterations=2)
    for i, artifacts in enumerate((True, False)):
        saved = model.save_checkpoint(tmp_path/f"mine{i}", include_training_artifacts=artifacts)
        assert train(None, tmp_path/f"b{i}", resume=saved, n_iterations=3, checkpoint_interval=4) == 0
        same_parameters(tmp_path/f"b{i}"/"checkpoint_final.safetensors", unbroken)
        assert load(tmp_path/f"b{i}"/"checkpoint_epoch_4.safetensors").iteration == 4
    legacy = unbroken.export_model(tmp_path/"old.npz")
    assert train(music, tmp_path/"c", resume=legacy, n_iterations=2) == 0
    assert load(tmp_path/"c"/"checkpoint_final.safetensors").iteration == 2


def test_a_resumed_run_reads_its_checkpoint_once(music, run, tmp_path, monkeypatch):
    import audiolab.files.checkpoint_file
    import audiolab.ssgs.model
    import audiolab.training.training_state
    read, real = [], audiolab.files.checkpoint_file.read_checkpoint
    for module in (audiolab.training.training_state, audiolab.ssgs.model): monkeypatch.setattr(module, "read_checkpoint", lambda path, *a, **k: read.append(path) or real(path, *a, **k))
    assert train(music, tmp_path, resume=run/"checkpoint_epoch_4.safetensors", n_iterations=1) == 0
    assert read == [run/"checkpoint_epoch_4.safetensors"]
    same_parameters(tmp_path/"checkpoint_final.safetensors", run/"checkpoint_final.safetensors")


def test_no_iterations_still_make_a_model(music, run, tmp_path):
    assert train(music, tmp_path/"a", n_states=6, n_iterations=0) == 0
    assert {"checkpoint_initial.safetensors", "checkpoint_final.safetensors", "model_final.npz", "test_generation.wav"} <= set(names(tmp_path/"a"))
    assert train(None, tmp_path/"b", resume=run/"checkpoint_final.safetensors", n_iterations=0) == 0
    same_parameters(tmp_path/"b"/"checkpoint_final.safetensors", run/"checkpoint_final.safetensors")


def test_a_run_that_cannot_begin_leaves_an_earlier_one_alone(music, tmp_path):
    assert train(music, tmp_path/"out", **SIX) == 0
    before = {p: p.read_bytes() for p in (tmp_path/"out").iterdir()}
    (tmp_path/"bad").mkdir()
    (tmp_path/"bad"/"0.wav").write_bytes(b"RIFF")
    assert train(tmp_path/"bad", tmp_path/"out") == 2 and train(music, tmp_path/"out", n_states=4000) == 2
    with RunLock(tmp_path/"out"): assert train(music, tmp_path/"out") == 2
    assert {p: p.read_bytes() for p in (tmp_path/"out").iterdir()} == before


def test_a_run_in_the_background_is_steered(music, tmp_path):
    events = []
    trainer = ssgs_trainer(music, tmp_path, n_states=6, n_iterations=10**6, tolerance=-99., checkpoint_interval=0, listeners=[events.append])

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
    assert sound.sample_rate == 16000 and len(sound.audio) == 48000 and np.abs(sound.audio).max() > .1
    time.sleep(.1)
    assert trainer.task.model.iteration == paused
    trainer.control.resume()
    wait(lambda: trainer.task.model.iteration > paused + 3)
    send(tmp_path, "stop")
    result = trainer.join(60)
    assert result.state == "stopped" and result.exit_code == 0
    assert load(CheckpointFolder(tmp_path).resolve("auto")).iteration == result.step
    assert [path.name for path in tmp_path.glob("checkpoint_epoch_*")] == [f"checkpoint_epoch_{result.step}.safetensors"]


def test_a_run_is_watched(music, tmp_path):
    pytest.importorskip("ipywidgets", reason="optional: the panel needs ipywidgets")
    from audiolab.watch import watch
    trainer = ssgs_trainer(music, tmp_path, n_states=6, n_iterations=5, tolerance=0., sample_every="5 epochs")
    monitor = watch(trainer, interval=.05)
    trainer.join(60)
    assert monitor.wait()
    assert "iteration 5/5" in monitor.headline.value and "per_frame" in monitor.numbers.value and len(monitor.curves.value) > 1000 and monitor.sample.name == "generation"


# ---- several processes

def several(n, folder, out, *flags, **named):
    "Start `audiolab ssgs train` in n processes."
    words = [str(f) for f in flags] + [w for k, v in named.items() for w in (f"--{k.replace('_', '-')}", str(v))]
    return subprocess.Popen([*AUDIOLAB, "ssgs", "train", *(["--folders", str(folder)] if folder else []), "--checkpoint-dir", str(out), "--processes", str(n), *words],
                            stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def finish(child):
    said = child.communicate(timeout=240)[1]
    assert child.returncode == 0, said
    return said


@pytest.mark.parametrize("mode,dtype", [("batch", "float64"), *(pytest.param(mode, "float32", marks=pytest.mark.slow) for mode in ("batch", "incremental", "online"))])
def test_processes_share_the_work_and_change_nothing(music, tmp_path, mode, dtype):
    how = dict(n_states=6, n_iterations=10, tolerance=0, mode=mode, dtype=dtype, checkpoint_interval=0)
    said = finish(several(2, music, tmp_path/"two", **how))
    assert train(music, tmp_path/"one", **how) == 0
    same_parameters(tmp_path/"two"/"checkpoint_final.safetensors", tmp_path/"one"/"checkpoint_final.safetensors")  # to the last bit, so within any tolerance
    last = load(tmp_path/"one"/"checkpoint_final.safetensors").iteration  # online, the objective soon falls once, which ends it
    assert (last == 10 or mode == "online") and said.count(f"iteration {last}/10, per_frame") == 1 and names(tmp_path/"two") == names(tmp_path/"one")
    assert json.loads((tmp_path/"two"/"run.json").read_text())[-1]["processes"] == 2


@pytest.mark.slow
def test_the_number_of_processes_may_change_on_the_way(music, tmp_path):
    how = dict(tolerance=0, checkpoint_interval=0)
    assert train(music, tmp_path/"one", n_states=6, n_iterations=9, **how) == 0
    finish(several(2, music, tmp_path/"out", n_states=6, n_iterations=3, **how))
    assert train(None, tmp_path/"out", resume="auto", n_iterations=3, **how) == 0
    finish(several(2, None, tmp_path/"out", resume="auto", n_iterations=3, **how))
    same_parameters(tmp_path/"out"/"checkpoint_final.safetensors", tmp_path/"one"/"checkpoint_final.safetensors")
    assert [row["step"] for row in read_history(tmp_path/"out") if row["kind"] == "log"] == list(range(1, 10))


@pytest.mark.slow
def test_processes_report_bad_input(music, tmp_path):
    (tmp_path/"bad").mkdir()
    for i in range(2): (tmp_path/"bad"/f"{i}.wav").write_bytes(b"RIFF")
    child = several(2, tmp_path/"bad", tmp_path/"out")
    said = child.communicate(timeout=240)[1]
    assert child.returncode and "none of the 2 files" in said, said


@pytest.mark.parametrize("number,code", [(signal.SIGTERM, 143), pytest.param(signal.SIGUSR1, 75, marks=pytest.mark.slow)])
def test_processes_told_to_stop_save_once(music, tmp_path, number, code):
    out = tmp_path/"out"
    child = several(2, music, out, n_states=16, n_iterations=100000, tolerance=0, checkpoint_interval=2)
    try:
        deadline = time.monotonic() + 240
        while not (out/"checkpoint_epoch_2.safetensors").exists() and child.poll() is None and time.monotonic() < deadline: time.sleep(.01)
        child.send_signal(number)
        said = child.communicate(timeout=120)[1]
    finally: child.kill()
    assert child.returncode == code, said
    stopped = load(CheckpointFolder(out).resolve("auto"))
    assert said.count("stopped at iteration") == 1 and f"iteration {stopped.iteration} and saved" in said
    saved = [row["values"]["path"] for row in read_history(out) if row["kind"] == "checkpoint"]
    assert saved.count(f"checkpoint_epoch_{stopped.iteration}.safetensors") == 1
    assert train(None, out, resume="auto", n_iterations=3, tolerance=0) == 0
    unbroken, _ = train_model(files_of(music), n_states=16, n_em_iterations=stopped.iteration + 3, tolerance=0., checkpoint_dir=tmp_path/"unbroken", checkpoint_interval=0)
    same_parameters(out/"checkpoint_final.safetensors", unbroken)
