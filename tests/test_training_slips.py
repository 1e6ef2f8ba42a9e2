"Slips of a task's author and of who writes settings are told early, by name, with the remedy"
import logging

import pytest
import torch

from audiolab.config import ConfigError, load_config
from audiolab.training import Task, Trainer, TrainingConfig


class Line(Task):
    def __init__(self, found=None, update=True, make=None, net=None):
        self.found, self.update, self.net = found, update, net or torch.nn.Linear(2, 1)
        self.make = make or (lambda parameters: torch.optim.SGD(parameters, lr=.1))

    def setup(self, loop):
        self.forward = loop.module("net", self.net)
        loop.optimizer("net", self.make(self.net.parameters()))

    def inputs(self): return torch.ones(3, 2)

    def step(self, batch, loop):
        loss = self.forward(self.inputs()).square().mean()
        if self.update: loop.update("net", loss)
        return {"loss": loss} if self.found is None else self.found[0]


def fit(folder, task, steps=2):
    config = TrainingConfig(steps=steps, schedule="constant", validate_every="never",
                            sample_every="never", device="cpu")
    return Trainer(task, config, folder).fit()


@pytest.mark.parametrize("found, said", [
    (None, "must return a dict of named numbers.*returned NoneType"),
    ({"loss": "low"}, "returned as 'loss' a str"),
    ({"loss": torch.ones(3)}, r"returned as 'loss' a Tensor of the shape \[3\]")])
def test_what_a_step_must_not_return(found, said, tmp_path):
    with pytest.raises(TypeError, match=said): fit(tmp_path, Line((found,)))


def test_a_forgotten_update_is_told_once(tmp_path, caplog):
    with caplog.at_level(logging.WARNING): fit(tmp_path, Line(update=False), 5)
    assert caplog.text.count("has not called loop.update(name, loss): nothing is trained") == 1


def test_optimizers_and_gradients_that_cannot_be_driven(tmp_path):
    with pytest.raises(TypeError, match="LBFGS.*use AdamW or SGD"):
        fit(tmp_path, Line(make=torch.optim.LBFGS))
    task = Line(net=torch.nn.Embedding(4, 1, sparse=True))
    task.inputs = lambda: torch.tensor([1, 2])
    with pytest.raises(TypeError, match="sparse.*Embedding.sparse=False"): fit(tmp_path, task)


def test_settings_are_checked_before_work_starts(tmp_path):
    path = tmp_path/"config.yaml"
    path.write_text("steps: 99999999999999999999999\nvalidate_every: 10 min\nsave_every: 500\n"
                    "keep_last: 1\n")
    with pytest.raises(ConfigError) as caught: load_config(TrainingConfig, path)
    said = str(caught.value)
    for words in ('save_every', 'Write "500 steps"', "validate_every", "'10 min' is no interval",
                  "keep_last", "0 (all) or at least 2", "steps"):
        assert words in said
    for good in "500 steps", "500", "1 epoch", "10 minutes", "never", "0":
        path.write_text(f"save_every: '{good}'\n")
        assert load_config(TrainingConfig, path).config.save_every == good
