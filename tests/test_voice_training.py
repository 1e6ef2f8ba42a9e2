"Runs of an encoder: exact resume, files, lines and curves of an earlier trainer, refusals."
import io
import json
import logging
import os
import shutil
import signal

import numpy as np
import pytest
import torch
from child_processes import over, two
from run_remains import state, weights
from voice_runs import epochs, fit, settings, small_lessons, stopped_at

from audiolab.apps import Command, COMMANDS, main
from audiolab.config import load_config
from audiolab.files import CheckpointError
from audiolab.training import read_history
from audiolab.voice import (
    as_config, found_checkpoint, load_encoder, StyleSpace, train_voice, TrainConfig,
    voice_train_command, VoiceTags,
)
from audiolab.watch import TensorBoardLogger, TerminalProgress


@pytest.fixture(scope="module")
def lessons(tmp_path_factory): return small_lessons(tmp_path_factory.mktemp("lessons")/"set")


@pytest.fixture(scope="module")
def whole(lessons, tmp_path_factory):
    "A run that nobody disturbs: its folder, and what it said"
    folder, said = tmp_path_factory.mktemp("whole")/"run", io.StringIO()
    progress = TerminalProgress(interval=0, style="lines", stream=said)
    result = fit(settings(lessons, folder), listeners=[progress])
    assert (result.state, result.exit_code, result.step) == ("completed", 0, 6)
    return folder, said.getvalue()


def same_run(one, other):
    for name in ("final_checkpoint", "best_model", "model_final"):
        file = f"{name}.safetensors"
        assert weights(one/file) == weights(other/file), name
    assert state(one/"final_checkpoint.safetensors") == state(other/"final_checkpoint.safetensors")
    assert epochs(one) == epochs(other)
    assert (one/"test_metrics.json").read_bytes() == (other/"test_metrics.json").read_bytes()


@pytest.mark.parametrize("workers, step", [(0, 1), (0, 3), (2, 4)])
def test_a_run_that_goes_on_in_mid_epoch_ends_as_if_it_had_not_stopped(lessons, whole, tmp_path,
                                                                        workers, step):
    "Dropout, augmentation, random pieces, average of weights: all to the bit"
    given = settings(lessons, tmp_path/"run", num_workers=workers)
    assert stopped_at(given, step).state == "stopped"
    assert fit(given, "auto").state == "completed"
    same_run(whole[0], tmp_path/"run")


def test_a_finished_run_that_is_asked_to_go_on_says_that_it_is_finished(lessons, whole, tmp_path):
    given = settings(lessons, tmp_path/"run", epochs=1)
    fit(given)
    before = (tmp_path/"run"/"best_model.safetensors").read_bytes()
    assert voice_train_command(as_config(given | {"resume": "auto"})) == 0
    assert "all 3 steps are done" in fit(given, "auto").reason
    assert (tmp_path/"run"/"best_model.safetensors").read_bytes() == before
    longer = fit(settings(lessons, tmp_path/"run", epochs=2), "auto")
    assert longer.step == 6 and len(epochs(tmp_path/"run")) == 2


def test_two_processes_learn_what_one_does(lessons, tmp_path):
    "Up to the test split at the end, which one of them measures alone"
    def given(name): return settings(lessons, tmp_path/name, dropout=0., epochs=1)
    fit(given("one"))
    pids = two(lambda: fit(given("two")))
    assert [over(pid, 120) for pid in pids] == [0, 0]
    one, other = (json.loads((tmp_path/name/"test_metrics.json").read_text())
                  for name in ("one", "two"))
    for name, value in one["best_model"].items():
        assert other["best_model"][name] == pytest.approx(value, abs=2e-3), name
    (row,), (same,) = epochs(tmp_path/"one"), epochs(tmp_path/"two")
    for name in ("train_loss", "val_loss", "val_centred_cosine"):
        assert same[name] == pytest.approx(row[name], abs=2e-3), name


def test_files_have_the_names_that_people_know(lessons, whole):
    folder, _ = whole
    names = "best_model", "final_checkpoint", "checkpoint_epoch_1", "checkpoint_epoch_2"
    for name in names: assert (folder/f"{name}.safetensors").is_file(), name
    config = load_config(TrainConfig, folder/"config.yaml").config
    assert config == as_config(settings(lessons, folder))
    rows = json.loads((folder/"training_history.json").read_text())
    wanted = {"epoch", "train_loss", "val_loss", "train_cosine_sim", "val_cosine_sim", "lr", "time"}
    assert [row["epoch"] for row in rows] == [1, 2] and wanted <= rows[0].keys()
    assert all(np.isfinite(row[name]) for row in rows for name in wanted)


def test_the_history_is_there_before_the_run_ends(lessons, tmp_path):
    "It was once written at the end only, and an interruption lost all of it"
    given = settings(lessons, tmp_path/"run")
    stopped_at(given, 4)
    assert [row["epoch"] for row in epochs(tmp_path/"run")] == [1]


def test_lines_of_an_epoch_and_the_mean_voice_beside(whole):
    _, said = whole
    lines = said.splitlines()
    first = next(n for n, line in enumerate(lines) if line.startswith("Epoch 1/2 - "))
    told = "\n".join(lines[first:first + 8])
    assert "  Train Loss: " in told and "  Val Loss: " in told
    assert [told.count(part) for part in ("(TTL: ", ", DP: ", ", Cosine: ")] == [2, 2, 2]
    assert "  Train Cosine Sim: " in told and ", Val Cosine Sim: " in told
    assert "Centred Cosine: " in told and "Mean Voice: " in told and "  Learning Rate: " in told
    assert "✓ New best validation loss: " in told


def test_curves_have_the_names_that_people_know(lessons, tmp_path):
    pytest.importorskip("tensorboard", reason="optional: needs tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    given = settings(lessons, tmp_path/"run", epochs=1)
    fit(given, listeners=[TensorBoardLogger(tags=VoiceTags())])
    tags = EventAccumulator(str(tmp_path/"run"/"logs")).Reload().Tags()["scalars"]
    parts = "loss", "loss_ttl", "loss_dp", "loss_cosine", "cosine_sim"
    wanted = {f"{place}/{name}" for place in ("train", "val") for name in parts}
    assert wanted | {"train/lr", "epoch/train_loss", "epoch/val_loss", "epoch/lr"} <= set(tags)


def test_the_first_step_moves_and_the_warm_up_ends_at_the_highest_rate(lessons, tmp_path):
    "The rate of the first step was once 0"
    fit(settings(lessons, tmp_path/"run", epochs=4, warmup_epochs=1))
    rates = [row["values"]["learning_rate"] for row in read_history(tmp_path/"run")
             if row["kind"] == "log"]
    assert rates[:4] == pytest.approx([1e-3, 2e-3, 3e-3, 3e-3]) and 0 < rates[-1] < 1e-3


def test_fewer_clips_than_a_batch_are_learnt_from(lessons, tmp_path):
    "They were once left out, and the loss of no step at all was 0"
    fit(settings(lessons, tmp_path/"run", batch_size=32))
    assert [row["train_loss"] > 0 for row in epochs(tmp_path/"run")] == [True, True]
    assert read_history(tmp_path/"run")[-1]["step"] == 2


def test_steps_of_every_epoch_are_counted_on(whole):
    "They once began anew in each epoch, or where a run was taken up"
    steps = [row["step"] for row in read_history(whole[0]) if row["kind"] == "log"]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_a_missing_folder_of_lessons_is_named_and_ends_with_2(tmp_path, capsys, monkeypatch):
    "It once ended with 0"
    target = "audiolab.voice:TrainConfig:voice_train_command"
    monkeypatch.setitem(COMMANDS, ("voice", "train"), Command(target, "train an encoder"))
    line = ["voice", "train", "--data-dir", str(tmp_path/"nowhere"), "--checkpoint-dir"]
    assert main([*line, str(tmp_path/"run")]) == 2
    assert "nowhere: there is no such folder; make lessons" in capsys.readouterr().err
    assert not (tmp_path/"run").exists()


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_is_saved_and_says_by_its_exit_code(lessons, whole, tmp_path, number,
                                                              code):
    "Ctrl-C once left no checkpoint and no history, and ended with 0"
    given = settings(lessons, tmp_path/"run")
    def interrupt(event):
        if event.kind == "log" and event.step == 4: os.kill(os.getpid(), number)
    result = fit(given, listeners=[interrupt])
    assert (result.state, result.exit_code, result.step) == ("stopped", code, 5)
    assert len(epochs(tmp_path/"run")) == 1
    assert fit(given, "auto").state == "completed"
    assert weights(tmp_path/"run"/"model_final.safetensors") == weights(
        whole[0]/"model_final.safetensors")


def test_names_with_pt_are_those_of_safetensors(lessons, whole, tmp_path, caplog):
    run = tmp_path/"run"
    given = settings(lessons, run)
    stopped_at(given, 4)
    with caplog.at_level(logging.INFO):
        result = train_voice(given | {"resume": str(run/"checkpoint_epoch_1.pt")}, [])
    assert "checkpoint_epoch_1.safetensors" in caplog.text and result.step == 6
    assert weights(run/"model_final.safetensors") == weights(whole[0]/"model_final.safetensors")


def test_checkpoint_of_another_trainer_is_refused_unopened(tmp_path):
    torch.save({"epoch": 3}, tmp_path/"checkpoint_epoch_3.pt")
    with pytest.raises(CheckpointError, match="another trainer.*could run a program.*train anew"):
        found_checkpoint(str(tmp_path/"checkpoint_epoch_3.pt"))


def test_lessons_of_another_teacher_are_refused_before_work_starts(lessons, whole, tmp_path):
    "A style of one version of a synthesizer is noise to the next one"
    shutil.copytree(lessons, tmp_path/"v3")
    about = json.loads((tmp_path/"v3"/"dataset.json").read_text())
    about["space"]["revision"] = "another"
    (tmp_path/"v3"/"dataset.json").write_text(json.dumps(about))
    start = whole[0]/"checkpoint_epoch_1.safetensors"
    with pytest.raises(CheckpointError, match="an encoder for parametric@.*lessons are of .*another"):
        fit(settings(tmp_path/"v3", tmp_path/"run"), start)
    assert not (tmp_path/"run"/"history.jsonl").exists()


def test_the_best_encoder_opens_and_says_whose_styles_it_speaks_of(lessons, whole):
    encoder = load_encoder(whole[0])
    assert encoder.space.teacher == "parametric" and encoder.spec.hidden_dim == 16
    rng = np.random.default_rng(0)
    style = encoder.style(rng.standard_normal(24_000).astype(np.float32)*.1, 24_000)
    assert style.space == encoder.space and isinstance(style.space, StyleSpace)


def test_the_test_split_is_measured_once_and_beside_the_mean_voice(whole):
    found = json.loads((whole[0]/"test_metrics.json").read_text())
    assert found["clips"] == 4 and {"best_model", "model_final", "mean_voice"} <= found.keys()
    assert np.isfinite(list(found["best_model"].values())).all()


def test_checkpoints_beyond_the_newest_go_but_the_best_stays(lessons, tmp_path):
    fit(settings(lessons, tmp_path/"run", epochs=6, keep_checkpoints=3))
    left = sorted((tmp_path/"run").glob("checkpoint_epoch_*.safetensors"))
    assert 3 <= len(left) <= 4 and (tmp_path/"run"/"best_model.safetensors").is_file()


def test_patience_ends_a_run_that_gets_no_better(lessons, tmp_path):
    result = fit(settings(lessons, tmp_path/"run", epochs=50, lr=1e-12, early_stopping_patience=2))
    assert result.step <= 12 and "has not become better for 2" in result.reason


def test_samples_are_spoken_by_the_parametric_teacher(lessons, tmp_path):
    fit(settings(lessons, tmp_path/"run", epochs=1, speak_samples=None,
                 training={"sample_every": "1 epoch"}))
    assert len(list((tmp_path/"run"/"samples").glob("*.wav"))) == 4  # two, each with its original
