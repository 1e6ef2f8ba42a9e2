"What the settings say holds after a resume, and moments go to the weights that they were made for"
import logging

import numpy as np
import pytest
import torch

from audiolab.files import CheckpointError, read_checkpoint, unpack_state, write_checkpoint
from audiolab.files import pack_state
from audiolab.training import Task, Trainer, TrainingConfig


class Line(Task):
    "Two lines on numbers of its own"
    name = "line"

    def __init__(self, make, order=(0, 1)): self.make, self.order = make, order

    def setup(self, loop):
        torch.manual_seed(0)
        nets = [loop.module(name, torch.nn.Linear(4, 4)) for name in "ab"]
        loop.optimizer("both", self.make([p for n in self.order for p in nets[n].parameters()]))
        self.nets = nets

    def step(self, batch, loop):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(loop.step))
        loss = (self.nets[1](self.nets[0](x).tanh()) - x).square().mean()
        loop.update("both", loss)
        return {"loss": loss}


def config(steps):
    return TrainingConfig(steps=steps, schedule="constant", validate_every="never",
                          sample_every="never", save_every="never", device="cpu")


def fit(folder, make, steps, order=(0, 1), resume="auto"):
    trainer = Trainer(Line(make, order), config(steps), folder)
    trainer.fit(resume)
    return trainer


def adam(**settings): return lambda parameters: torch.optim.Adam(parameters, lr=.01, **settings)
def adamw(**settings): return lambda parameters: torch.optim.AdamW(parameters, lr=.01, **settings)
def sgd(**settings): return lambda parameters: torch.optim.SGD(parameters, lr=.01, **settings)


def without_groups(folder):
    "As a version that saved no settings of groups wrote it"
    path = folder/"checkpoints"/"checkpoint_final.safetensors"
    tensors, notes = read_checkpoint(path)
    state = unpack_state(tensors, notes)
    del state["training"]["optimizers"]["both"]["groups"]
    weights = {k: v for k, v in tensors.items() if not k.startswith("training.")}
    packed, packed_notes = pack_state(state)
    notes = {k: v for k, v in notes.items() if not k.startswith("audiolab.digest")}
    write_checkpoint(path, weights | packed, notes | packed_notes)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("before, after, changed", [
    (adamw(), adamw(weight_decay=.5, betas=(.1, .2)), dict(weight_decay=.5, betas=(.1, .2))),
    (adam(), adamw(), dict(weight_decay=.01, decoupled_weight_decay=True)),
    (adam(), adam(eps=1e-3), dict(eps=1e-3)),
    (sgd(momentum=.9), sgd(momentum=.5, nesterov=True), dict(momentum=.5, nesterov=True))])
def test_settings_that_were_changed_are_changed(before, after, changed, old, tmp_path, caplog):
    fit(tmp_path, before, 3)
    if old: without_groups(tmp_path)
    with caplog.at_level(logging.WARNING): run = fit(tmp_path, after, 5)
    group = run.loop.optimizers["both"].param_groups[0]
    assert {key: group[key] for key in changed} == changed
    assert "goes on with what is set now" in caplog.text
    told = [key for key in changed if f"{key}: " in caplog.text]
    assert told == [*changed] or old and told  # torch has set what makes an AdamW by itself


def test_what_was_not_changed_goes_on_as_it_was(tmp_path, caplog):
    "A task that lowers its momentum as it goes is resumed to the bit"
    class Lowering(Line):
        def step(self, batch, loop):
            for group in loop.optimizers["both"].param_groups: group["momentum"] *= .9
            return super().step(batch, loop)
    ends = []
    for name, stops in ("whole", [8]), ("parts", [3, 8]):
        for steps in stops:
            trainer = Trainer(Lowering(sgd(momentum=.9)), config(steps), tmp_path/name)
            trainer.fit("auto")
        ends.append([p.detach().numpy() for p in trainer.loop.modules["a"].parameters()])
    for one, other in zip(*ends): np.testing.assert_array_equal(one, other)
    assert "goes on with" not in caplog.text


def test_an_optimizer_that_keeps_state_in_its_groups_goes_on_as_it_was(tmp_path):
    class Counting(torch.optim.SGD):
        def step(self, closure=None):
            for group in self.param_groups: group["weight_decay"] += 1e-3
            return super().step(closure)
    def make(parameters): return Counting(parameters, lr=.01)
    fit(tmp_path, make, 3)
    without_groups(tmp_path)
    run = fit(tmp_path, make, 5)
    assert round(run.loop.optimizers["both"].param_groups[0]["weight_decay"], 9) == 5e-3


def test_moments_follow_the_names_of_parameters(tmp_path):
    "Registered in another order, equal shapes keep the moments that are theirs"
    ends = []
    for name, orders in ("same", [(0, 1), (0, 1)]), ("other", [(0, 1), (1, 0)]):
        for steps, order in zip((3, 6), orders): run = fit(tmp_path/name, adam(), steps, order)
        ends.append([p.detach().numpy() for m in "ab" for p in run.loop.modules[m].parameters()])
    for one, other in zip(*ends): np.testing.assert_array_equal(one, other)


def test_other_parameters_are_refused(tmp_path):
    "As many of the same shapes, but not those"
    def only(which): return lambda parameters: torch.optim.Adam(parameters[which:which + 2])
    fit(tmp_path, only(0), 3)
    with pytest.raises(CheckpointError, match="moved other parameters than it does now: a.bias"):
        fit(tmp_path, only(2), 5)
