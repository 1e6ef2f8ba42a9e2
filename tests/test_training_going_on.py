"What a run goes on with: folders, settings, sound, compiled modules; and rows that all processes share"
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from audiolab.apps import main
from audiolab.audio import write_audio
from audiolab.data import Loader, Segments, scan_audio
from audiolab.files import CheckpointError, read_checkpoint
from audiolab.training import Distributed, Progress, Recorder, Trainer, read_history

sys.path.insert(0, str(Path(__file__).parent))
from engine_tasks import Denoise, config, state_of
from fault_runs import one_thread  # noqa: F401


def short(**changes):
    quiet = dict(steps=4, validate_every="never", sample_every="never", save_every="2 steps",
                 warmup=0, schedule="constant")
    return config(**quiet | changes)


def resumed(folder):
    rows = [row for row in read_history(folder) if row["kind"] == "start"]
    return rows[-1]["values"]["resumed"]


# --resume RUNFOLDER, and settings

def test_a_run_folder_stands_for_its_newest_checkpoint(tmp_path):
    Trainer(Denoise(), short(), tmp_path/"run").fit()
    for name in ("run", "other"):
        assert Trainer(Denoise(), short(steps=6), tmp_path/name).fit(tmp_path/"run").step == 6
    assert resumed(tmp_path/"run") == "checkpoints/checkpoint_final.safetensors"
    assert not list((tmp_path/"run").glob("previous-*"))
    final = [state_of(tmp_path/name/"checkpoints"/"checkpoint_final.safetensors")
             for name in ("run", "other")]
    assert final[0][0] == final[1][0]
    (tmp_path/"empty").mkdir()
    with pytest.raises(CheckpointError, match="empty.*holds no sound checkpoint"):
        Trainer(Denoise(), short(), tmp_path/"new").fit(tmp_path/"empty")


@pytest.fixture(scope="module")
def vocoder(tmp_path_factory):
    "A vocoder trained for two steps, and the words of a command line that goes on with it"
    folder = tmp_path_factory.mktemp("vocoder")
    (folder/"sound").mkdir()
    rng = np.random.default_rng(0)
    for n in range(4): write_audio(folder/"sound"/f"{n}.wav", rng.normal(0, .1, 24000), 24000)
    words = ["vocoder", "train", "--output", str(folder/"run"), "--training.device", "cpu"]
    first = ["--folders", str(folder/"sound"), "--segment-seconds", ".2", "--windows", "512",
             "--validation", "0", "--model.width", "16", "--training.steps", "2",
             "--training.batch-size", "2", "--training.sample-every", "never"]
    assert main([*words, *first]) == 0
    return folder, words


def test_a_resume_without_the_first_flags_names_the_config_of_the_run(vocoder, monkeypatch, capsys):
    folder, words = vocoder
    monkeypatch.chdir(folder)
    assert main([*words, "--folders", str(folder/"sound"), "--resume", "auto"]) == 2
    said = capsys.readouterr().err
    assert "other settings than before" in said and "model.width" in said
    assert f"--config {Path('run/config.yaml')}" in said
    assert main([*words, "--config", "run/config.yaml", "--resume", "auto",
                 "--training.steps", "3"]) == 0
    assert resumed(folder/"run") == "checkpoints/checkpoint_final.safetensors"


def test_a_run_folder_whose_name_is_not_utf8(tmp_path, capsys):
    name = os.fsdecode(bytes(tmp_path/"run") + b"\xff")
    for steps in (2, 4): Trainer(Denoise(), short(steps=steps), name).fit("auto")
    assert resumed(name) == "checkpoints/checkpoint_final.safetensors"
    assert main(["vocoder", "train", "--output", name]) == 2
    said = capsys.readouterr().err
    assert "--output: expected text in UTF-8" in said and "another name" in said


# other sound

def clips(folder, seconds=1., count=6):
    folder.mkdir()
    for n in range(count):
        write_audio(folder/f"{n}.wav", np.full(int(8000*seconds), .1, np.float32), 8000)
    return Segments(scan_audio([folder])[0], 8000, .1)


def test_other_sound_under_the_same_names_is_told(tmp_path, caplog):
    before = Loader(clips(tmp_path/"a"), 2).state_dict()
    assert json.dumps(before)
    Loader(clips(tmp_path/"moved"), 2).load_state_dict(before)
    Loader(clips(tmp_path/"b"), 2).load_state_dict({k: before[k] for k in ("settings", "account")})
    assert not caplog.text
    Loader(clips(tmp_path/"longer", 2.), 2).load_state_dict(before)
    assert "6 items as before, but with other names" in caplog.text and "folders" in caplog.text
    caplog.clear()
    Loader(clips(tmp_path/"fewer", count=5), 2).load_state_dict(before)
    assert "items was 6 and is 5" in caplog.text and "other names" not in caplog.text


def test_a_run_is_told_of_other_sound(tmp_path, caplog):
    Trainer(Denoise(), short(), tmp_path).fit()

    class Renamed(Denoise):
        def data(self, loop):
            loader = super().data(loop)
            loader.plans.dataset.length = lambda index: 64
            return loader

    Trainer(Renamed(), short(steps=6), tmp_path).fit("auto")
    assert caplog.text.count("40 items as before, but with other names") == 1


# torch.compile

class Compiled(Denoise):
    "A part of its module, or all of it, is what `torch.compile` makes"
    def __init__(self, part):
        super().__init__()
        self.part = part

    def setup(self, loop):
        super().setup(loop)
        net = loop.modules["net"]
        if self.part == "part": net[0] = torch.compile(net[0], backend="eager")
        if self.part == "all":
            loop.modules["net"] = torch.compile(net, backend="eager")
            self.net = loop.modules["net"]


@pytest.fixture
def keys_as_of_old(monkeypatch):
    "Checkpoints as older versions wrote them, with what `torch.compile` puts into names"
    from audiolab.training import learner, task, weight_average
    def use():
        for module in (learner, task, weight_average):
            monkeypatch.setattr(module, "plain_name", lambda key: key)
        return monkeypatch
    return use


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("first, then", [("part", ""), ("", "part"), ("all", ""), ("", "all")])
def test_compiled_runs_go_on_uncompiled_and_the_other_way_round(
        old, first, then, tmp_path, keys_as_of_old):
    Trainer(Denoise(), short(steps=6), tmp_path/"whole").fit()
    patched = keys_as_of_old() if old else None
    Trainer(Compiled(first), short(), tmp_path/"run").fit()
    if old: patched.undo()
    names = read_checkpoint(tmp_path/"run"/"checkpoints"/"checkpoint_final.safetensors")[0]
    assert any("_orig_mod" in name for name in names) == bool(old and first)
    Trainer(Compiled(then), short(steps=6), tmp_path/"run").fit("auto")
    final = [read_checkpoint(tmp_path/name/"model_final.safetensors")[0]
             for name in ("run", "whole")]
    assert final[0].keys() == final[1].keys()
    for key, value in final[1].items(): np.testing.assert_array_equal(final[0][key], value)


class NamedAsCompiled(Denoise):
    "What it saves has the names that `torch.compile` gives, and it takes no others"
    def setup(self, loop):
        super().setup(loop)
        self.compiled = torch.compile(loop.modules["net"], backend="eager")
    def weights(self, loop): return self.compiled.state_dict(), {}
    def load_weights(self, loop, tensors, metadata):
        self.compiled.load_state_dict({name: torch.as_tensor(v) for name, v in tensors.items()})


def test_a_task_takes_back_its_weights_under_the_names_that_it_gave(tmp_path):
    Trainer(NamedAsCompiled(), short(steps=6), tmp_path/"whole").fit()
    Trainer(NamedAsCompiled(), short(), tmp_path/"run").fit()
    Trainer(NamedAsCompiled(), short(steps=6), tmp_path/"run").fit("auto")
    final = [read_checkpoint(tmp_path/name/"model_final.safetensors")[0]
             for name in ("run", "whole")]
    assert final[0].keys() == final[1].keys() and all("_orig_mod." in name for name in final[0])
    for key, value in final[1].items(): np.testing.assert_array_equal(final[0][key], value)


# rows of several processes

class Process(Distributed):
    "One of two, which knows what the other has to say"
    def __init__(self, rank, other):
        super().__init__(rank, 2)
        self.other = other
    def sum(self, values): return np.asarray(values) + self.other


def test_a_row_is_the_mean_of_all_that_was_counted_in_all_processes():
    "3 items with a loss of 2 in one, 1 with 6 in the other, and in both a number without a count"
    noted = [{"loss": (2., 3), "rate": (5., None)}, {"loss": (6., 1), "rate": (7., None)}]
    sums = [[[6., 3], [2.5, .5]], [[6., 1], [3.5, .5]]]
    for rank in (0, 1):
        told = []
        place = Process(rank, sums[1 - rank])
        recorder = Recorder(Progress(), listeners=[told.append], place=place)
        for name, (value, count) in noted[rank].items(): recorder.means.note(name, value, count)
        recorder.progress.count_step()
        recorder.write_row({}, {})
        assert recorder.epoch_means.sums == {"loss": [12., 4], "rate": [6., 1]}
        if rank == 0: assert (told[0].values["loss"], told[0].values["rate"]) == (3., 6.)


def test_an_epoch_counts_what_its_rows_counted():
    told, recorder = [], Recorder(Progress())
    recorder.audience.listeners.append(told.append)
    for loss, count in ((1., 8), (5., 2)):
        recorder.means.note("loss", loss, count)
        recorder.progress.count_step()
        recorder.write_row({}, {})
    assert [event.values["loss"] for event in told] == [1., 5.]
    assert recorder.epoch_means.means()["loss"] == 1.8
