"From losses to weights: groups, counted accumulation, several validation sets, pauses that free the device, less memory"
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from audiolab.files import read_checkpoint
from audiolab.training import (
    BatchCursor, Filling, Learner, Progress, Shelf, Trainer, TrainingConfig, read_history,
)

sys.path.insert(0, str(Path(__file__).parent))
from engine_tasks import Denoise, Words, both_ended, config, pair, state_of
from fault_runs import one_thread  # noqa: F401


def final(folder): return state_of(Path(folder)/"checkpoints"/"checkpoint_final.safetensors")


# --- groups of parameters

class Grouped(Denoise):
    "Two groups: the first layer slower, clipped by itself, without decay"
    name = "grouped"

    def setup(self, loop):
        super().setup(loop)
        first, rest = list(loop.modules["net"][0].parameters()), list(
            loop.modules["net"][1:].parameters())
        groups = [{"params": rest}, {"params": first, "name": "first", "lr": 1e-4,
                                     "weight_decay": 0., "clip_norm": .01}]
        loop.optimizer("both", torch.optim.AdamW(groups, lr=1e-3, weight_decay=.1))

    def step(self, batch, loop):
        loss = (self.net(batch["audio"][:, None])[:, 0] - batch["clean"]).square().mean()
        loop.update("both", loss)
        return {"loss": loss}


def test_a_schedule_multiplies_the_rate_of_each_group(tmp_path):
    trainer = Trainer(Grouped(), config(steps=9, log_every=1), tmp_path)
    trainer.fit()
    rows = [row["values"] for row in read_history(tmp_path) if row["kind"] == "log"]
    for row in rows: assert row["learning_rate/both/first"] == pytest.approx(.1*row["learning_rate/both"])
    assert len({row["learning_rate/both"] for row in rows}) > 3
    assert [group["weight_decay"]
            for group in trainer.loop.optimizers["both"].param_groups] == [.1, 0.]
    assert all(row["gradient_norm/both"] >= row["gradient_norm/both/first"] > 0 for row in rows)


def test_a_group_is_clipped_by_its_own_limit():
    one, other = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    learner = Learner(TrainingConfig(schedule="constant", clip_norm=1.))
    learner.optimizer(
        "o", torch.optim.SGD([{"params": [one]}, {"params": [other], "clip_norm": .1}], lr=1.))
    learner.begin_turn()
    learner.update("o", 3*one.sum() + 4*other.sum())
    assert one.detach().norm().item() == pytest.approx(1.)
    assert other.detach().norm().item() == pytest.approx(.1)


def test_a_resumed_run_keeps_the_groups_of_its_settings(tmp_path):
    Trainer(Grouped(), config(steps=20, save_every="10 steps"), tmp_path/"whole").fit()
    Trainer(Grouped(), config(steps=20, save_every="never"), tmp_path/"on").fit(
        resume=tmp_path/"whole"/"checkpoints"/"checkpoint_step_10.safetensors")
    assert final(tmp_path/"on") == final(tmp_path/"whole")


# --- accumulation by what is counted

def weights(folder): return read_checkpoint(Path(folder)/"model_final.safetensors")[0]


SUMS = dict(steps=6, schedule="constant", clip_norm=0., ema_decay=0., save_every="never",
            validate_every="never", sample_every="never")


def test_sums_over_micro_batches_equal_one_large_batch(tmp_path):
    "Texts of 1 to 9 tokens: six batches of 2 are as one of 12, although they hold different numbers of tokens"
    Trainer(Words(), config(**SUMS, batch_size=12), tmp_path/"large").fit()
    Trainer(Words(), config(**SUMS, batch_size=2, accumulate=6), tmp_path/"small").fit()
    for key, value in weights(tmp_path/"large").items():
        np.testing.assert_allclose(weights(tmp_path/"small")[key], value, rtol=0, atol=1e-6)


def test_a_mean_of_means_would_not(tmp_path):
    class Means(Words):
        def count(self, batch): return None
        def loss(self, batch): return super().loss(batch)/batch["lengths"].sum()
    Trainer(Words(), config(**SUMS, batch_size=12), tmp_path/"large").fit()
    Trainer(Means(), config(**SUMS, batch_size=2, accumulate=6), tmp_path/"small").fit()
    assert max(abs(value - weights(tmp_path/"small")[key]).max() for key,
               value in weights(tmp_path/"large").items()) > 1e-4


def test_an_update_takes_as_many_batches_as_it_takes_to_count_enough(tmp_path):
    task = Words()
    Trainer(task, config(**SUMS | {"epochs": 2, "steps": 0, "warmup": 0.}, batch_size=2,
                         accumulate_count=40), tmp_path).fit()
    counted = {}
    for step, tokens in task.seen: counted[step] = counted.get(step, 0) + tokens
    assert all(tokens < 40 + 18 for tokens in counted.values()) and len(counted) > 4
    assert sum(tokens < 40 for tokens in counted.values()) <= 2  # the rest of each epoch
    assert len({sum(1 for seen, _ in task.seen if seen == step) for step in counted}) > 1


def test_counted_runs_resume_exactly_at_every_step(tmp_path):
    settings = SUMS | dict(steps=12, batch_size=2, accumulate_count=30, log_every=5)
    Trainer(Words(), config(**settings | {"save_every": "1 step", "keep_last": 0}), tmp_path/"whole").fit()
    for step in range(1, 12):
        saved = tmp_path/"whole"/"checkpoints"/f"checkpoint_step_{step}.safetensors"
        Trainer(Words(), config(**settings), tmp_path/f"{step}").fit(resume=saved)
        assert final(tmp_path/f"{step}") == final(tmp_path/"whole"), step


@pytest.mark.parametrize("how", [{"accumulate": 3}, {"accumulate_count": 45}])
def test_two_processes_count_together(how, tmp_path):
    "Each has half of every batch and other numbers of tokens; the weights are those of one process"
    settings = SUMS | {"batch_size": 4} | how
    Trainer(Words(), config(**settings), tmp_path/"one").fit()
    words = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    codes, out, err = both_ended(pair("words", tmp_path/"two", *words))
    assert codes == [0, 0], out + err
    for key, value in weights(tmp_path/"one").items(): np.testing.assert_allclose(weights(tmp_path/"two")[key], value, rtol=0, atol=1e-6)


def test_counting_needs_a_task_that_counts(tmp_path):
    with pytest.raises(ValueError, match="needs a task that counts, which 'denoise' does not"):
        Trainer(Denoise(), config(accumulate_count=100), tmp_path).fit()


def test_a_run_may_change_how_updates_are_filled():
    class Ten:
        def __len__(self): return 10
        def batches(self, epoch, start=0): return iter(range(start, 10))
    counted = Progress(batch=2, taken=6)
    assert BatchCursor(Ten(), counted, 2).next_update() == [6, 7]
    assert (counted.batch, counted.taken) == (3, 8)
    batched = Progress(batch=2)
    assert BatchCursor(Ten(), batched, Filling(3, 2, lambda b: 1)).next_update() == [6, 7]
    assert batched.taken == 8


# --- several validation sets

class TwoSets(Denoise):
    "Measures on a clean and on a noisy set"
    def validate(self, loop):
        loss = super().validate(loop)["loss"]
        return {"clean": {"loss": loss, "weight": 3}, "noisy": {"loss": 1/(1 + loop.step)}}


def test_sets_have_names_and_the_best_is_chosen_by_one_of_them(tmp_path):
    result = Trainer(TwoSets(), config(steps=21, best_metric="noisy/loss"), tmp_path).fit()
    rows = [row["values"] for row in read_history(tmp_path) if row["kind"] == "validation"]
    assert [list(row) for row in rows] == [["clean/loss", "noisy/loss"]]*3 and result.best == 1/22
    with pytest.raises(ValueError, match="best_metric 'loss' is not among what validation measures: clean/loss, noisy/loss"):
        Trainer(TwoSets(), config(), tmp_path/"other").fit()


# --- a pause that frees the device

def spoiling(tensor):
    "Store a copy, and let another run write where the tensor was"
    copied = tensor.clone()
    tensor.fill_(127 if not tensor.is_floating_point() else float("nan"))
    return copied


def test_a_pause_takes_everything_off_the_device_and_back(tmp_path, monkeypatch):
    "Weights, running statistics, what optimizers remember and averages: spoilt where they were, the run ends as one without a pause"
    Trainer(Denoise(), config(save_every="never"), tmp_path/"whole").fit()
    moved = []
    class Spoiling(Shelf):
        def __init__(self, tensors): super().__init__(tensors, spoiling)
        def put(self):
            super().put()
            moved.append(len(self.kept))
    monkeypatch.setattr("audiolab.training.loop.Shelf", Spoiling)
    trainer = Trainer(Denoise(), config(save_every="never", pause_frees_device=True), tmp_path/"paused")

    def listen(event):
        if event.kind == "log" and event.step == 21: trainer.control.pause()
        if event.kind == "state" and event.values["state"] == "paused": trainer.control.sample()
        if event.kind == "sample" and moved: trainer.control.resume()
    trainer.listeners.append(listen)
    trainer.fit()
    # weights, statistics, what Adam keeps of each weight, averages
    assert moved == [6 + 3 + 3*6 + 6]*2
    assert [row["values"]["state"] for row in read_history(tmp_path/"paused") if row["kind"] == "state"] == ["paused", "running"]
    assert final(tmp_path/"paused") == final(tmp_path/"whole")


# --- less memory, less time

def test_recomputed_activations_change_nothing(tmp_path):
    "Dropout, batch statistics and all, to the bit"
    for name in ("plain", "anew"): Trainer(Denoise(), config(recompute=name == "anew", save_every="never"), tmp_path/name).fit()
    assert final(tmp_path/"anew") == final(tmp_path/"plain")


def test_parts_are_compiled_where_the_settings_ask_for_it(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(self))
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    Learner(TrainingConfig()).networks.add("net", net)
    Learner(TrainingConfig(compile=True)).networks.add("net", net)
    Learner(TrainingConfig(compile=True)).networks.add("net", net, parts=net)
    assert compiled == [net, *net]
