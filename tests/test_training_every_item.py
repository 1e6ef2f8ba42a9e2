"Every item of an epoch is used, once, and counts as much as any other: accumulated, divided, resumed"
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from audiolab.data import Loader
from audiolab.files import (
    CheckpointFolder, pack_state, read_checkpoint, unpack_state, write_checkpoint,
)
from audiolab.training import Task, Trainer, TrainingConfig, read_history

HERE = Path(__file__).parent


class Numbers:
    "Items that are a number and its digits"
    def __init__(self, count): self.count = count
    def __len__(self): return self.count
    def item(self, index, epoch=0): return {"x": torch.tensor([index / 10, 1.]), "index": index}
    def name(self, index): return str(index)


class Line(Task):
    "Learns from numbers, and remembers which it has seen"
    name = "line"

    def __init__(self, items=13, **how): self.items, self.how, self.seen = items, how, []

    def setup(self, loop):
        torch.manual_seed(0)
        self.net = loop.module("net", torch.nn.Linear(2, 1))
        loop.optimizer("net", torch.optim.SGD(self.net.parameters(), lr=.1))
        place = {"rank": loop.rank, "world": loop.world}
        loop.data = Loader(Numbers(self.items), loop.config.batch_size, **place, **self.how)

    def step(self, batch, loop):
        self.seen += [(loop.epoch, loop.step, n) for n in batch["index"].tolist()]
        loss = (self.net(batch["x"]) - 1).square().mean()
        loop.update("net", loss)
        return {"loss": loss}


class Counted(Line):
    "Counts its items"
    def count(self, batch): return len(batch["index"])


def fit(task, folder, resume=None, **settings):
    usual = {"schedule": "constant", "validate_every": "never", "sample_every": "never",
             "save_every": "never", "device": "cpu", "batch_size": 1}
    return Trainer(task, TrainingConfig(**usual | settings), folder).fit(resume)


def weights(folder): return read_checkpoint(Path(folder)/"model_final.safetensors")[0]


def test_the_rest_of_an_epoch_makes_a_last_smaller_update(tmp_path):
    "13 batches, 5 to an update: two of 5 and one of 3, that of a mean over 3"
    task = Line()
    assert fit(task, tmp_path/"small", epochs=2, accumulate=5).step == 6
    for epoch in range(2):
        assert sorted(n for e, _, n in task.seen if e == epoch) == list(range(13))
        sizes = [sum(1 for e, s, _ in task.seen if s == 3*epoch + part) for part in range(3)]
        assert sizes == [5, 5, 3]
    fit(Line(drop_last=False), tmp_path/"large", epochs=2, batch_size=5)
    for key, value in weights(tmp_path/"large").items():
        np.testing.assert_allclose(weights(tmp_path/"small")[key], value, rtol=0, atol=1e-6)


def test_a_run_with_a_last_smaller_update_resumes_exactly(tmp_path):
    task = Line()
    fit(task, tmp_path/"whole", epochs=3, accumulate=5)
    for stop in range(1, 9):
        parts = Line()
        fit(parts, tmp_path/f"{stop}", steps=stop, accumulate=5)
        fit(parts, tmp_path/f"{stop}", "auto", epochs=3, accumulate=5)
        assert parts.seen == task.seen
        for key, value in weights(tmp_path/"whole").items():
            np.testing.assert_array_equal(weights(tmp_path/f"{stop}")[key], value)


@pytest.mark.parametrize("settings", [
    (dict(batch_size=8), dict(batch_size=4)), (dict(batch_size=4), dict(batch_size=8)),
    (dict(batch_size=4, accumulate=2), dict(batch_size=8)),
    (dict(batch_size=8), dict(batch_size=2, accumulate=4)),
    (dict(batch_size=4, accumulate=2), dict(batch_size=4, accumulate=5)),
    (dict(batch_size=4), dict(batch_size=4, accumulate=3))], ids=str)
def test_another_batch_size_or_filling_keeps_the_place_among_the_items(settings, tmp_path):
    task = Line(64)
    first, then = settings
    steps = 4
    fit(task, tmp_path, steps=steps, **first)
    result = fit(task, tmp_path, "auto", epochs=2, **then)
    assert result.reason in (f"all {result.step} steps are done", "all 2 epochs are done")
    for epoch in range(2):
        assert sorted(n for e, _, n in task.seen if e == epoch) == list(range(64))


def test_where_sizes_do_not_divide_nothing_is_left_out(tmp_path, caplog):
    task = Line(64)
    fit(task, tmp_path, steps=3, batch_size=8)
    fit(task, tmp_path, "auto", epochs=1, batch_size=16)
    counts = np.bincount([n for _, _, n in task.seen], minlength=64)
    assert counts.min() == 1 and (counts == 2).sum() == 8
    assert "8 items of this epoch come a second time" in caplog.text


def as_it_was(folder):
    "Let the newest checkpoint be one of before epochs counted items: its rows count their steps"
    path = CheckpointFolder(folder/"checkpoints").resolve("auto")
    tensors, notes = read_checkpoint(path)
    state = unpack_state(tensors, notes)["training"]
    state.pop("epoch_by_steps")
    rows = [row for row in read_history(folder) if row["kind"] == "log"]
    losses = [row["values"]["loss"] for row in rows]
    state["epoch_sums"] = {"loss": [sum(losses), len(rows)]}
    packed, more = pack_state({"training": state})
    weights = {key: value for key, value in tensors.items() if not key.startswith("training.")}
    kept = {key: value for key, value in notes.items() if key not in more}
    write_checkpoint(path, weights | packed, {**kept, **more})


def test_an_epoch_that_an_older_version_began_weighs_its_rows_alike(tmp_path):
    "16 items, 4 to a batch; 3 batches were made when rows counted their steps"
    fit(Counted(16), tmp_path/"whole", epochs=1, batch_size=4, log_every=1)
    for stops in ((3,), (2, 3)):  # saved by this version too, before or after its first row
        folder = tmp_path/str(stops[0])
        fit(Counted(16), folder, steps=stops[0], batch_size=4, log_every=1)
        as_it_was(folder)
        for steps in stops: fit(Counted(16), folder, "auto", steps=steps, batch_size=4, log_every=1)
        fit(Counted(16), folder, "auto", epochs=1, batch_size=4, log_every=1)
        means = [[row["values"]["train"]["loss"] for row in read_history(where)
                  if row["kind"] == "epoch"] for where in (folder, tmp_path/"whole")]
        np.testing.assert_allclose(*means, rtol=1e-6)


def test_a_smaller_batch_counts_its_items_in_one_process_too(tmp_path):
    "8, 8 and 5 items of one update, and rows and epochs that are means over items"
    fit(Line(21, drop_last=False), tmp_path/"large", epochs=2, batch_size=21)
    fit(Line(21, drop_last=False), tmp_path/"small", epochs=2, batch_size=8, accumulate=3)
    for key, value in weights(tmp_path/"large").items():
        np.testing.assert_allclose(weights(tmp_path/"small")[key], value, rtol=0, atol=1e-6)
    told = [[row["values"]["train"]["loss"] for row in read_history(tmp_path/name)
             if row["kind"] == "epoch"] for name in ("large", "small")]
    np.testing.assert_allclose(*told, rtol=1e-6)


@pytest.mark.parametrize("items, accumulate", [
    pytest.param(29, 1, marks=pytest.mark.slow), pytest.param(21, 3, marks=pytest.mark.slow),
    (25, 3)])
def test_items_that_fill_up_a_share_do_not_count(items, accumulate, tmp_path):
    "In batches of 8 the last has 5 items, which two processes cannot share, or one alone"
    settings = {"epochs": 3, "batch_size": 8, "accumulate": accumulate}
    fit(Line(items, drop_last=False), tmp_path/"one", **settings)
    (tmp_path/"two.py").write_text(
        "import sys; sys.path.insert(0, sys.argv[1]); from test_training_every_item import *\n"
        f"torch.set_num_threads(1); fit(Line({items}, drop_last=False), sys.argv[2], **{settings})")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([sys.executable, *launcher, tmp_path/"two.py", HERE, tmp_path/"two"],
                          capture_output=True, text=True, timeout=120)
    assert not done.returncode, done.stderr[-2000:]
    for key, value in weights(tmp_path/"one").items():
        np.testing.assert_allclose(weights(tmp_path/"two")[key], value, rtol=0, atol=1e-6)
