"Slips of a task's author and of who writes settings are told early, by name, with the remedy"
import logging
import os
from dataclasses import dataclass

import pytest
import torch

from audiolab.apps import main
from audiolab.config import ConfigError, load_config
from audiolab.remote import StorageError, check_push
from audiolab.snac import TrainConfig as SnacConfig
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
    try: torch.linalg.vector_norm(torch.ones(3).to_sparse())
    except NotImplementedError:
        with pytest.raises(TypeError, match="sparse.*Embedding.sparse=False"): fit(tmp_path, task)
    else: assert fit(tmp_path, task).state == "completed"  # later versions of torch can


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


# what a command says before it works

NO_RUN = ["vocoder", "train", "--training.steps", "1", "--validation", "0"]


@pytest.mark.parametrize("words, said", [
    (["--windows", "-5"], "windows[0]: expected at least 16, found -5"),
    (["--windows", "1"], "windows[0]: expected at least 16, found 1"),
    (["--windows", "512", str(10**9)], "windows[1]: expected at most 65536"),
    (["--windows"], "--windows: expected at least 1 elements"),
    (["--training.device", "meta"], "'meta' computes nothing here"),
    (["--training.device", "xpu"], "'xpu' computes nothing here"),
    (["--training.push", "ftp://x"], "--training.push: ftp://x: not an address that can be used"),
    (["--training.push", "hf://x"], "--training.push: hf://x: the repository is missing"),
    (["--training.save-every", "10 min"], "--training.save-every: '10 min' is no interval"),
    (["--training.best-metric", "acc"], "best_metric: 'acc' is not among what validation of"),
])
def test_a_command_that_cannot_work_says_why_and_makes_nothing(words, said, tmp_path, monkeypatch,
                                                               capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*NO_RUN, *words]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [NO_RUN, ["snac", "train"]])
def test_a_dry_run_refuses_a_best_metric_that_is_not_measured(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*words, "--training.best-metric", "accuracy", "--dry-run"]) == 2
    assert "best_metric: 'accuracy' is not among" in capsys.readouterr().err
    assert main([*words, "--dry-run"]) == 0
    assert "# Plan" in capsys.readouterr().out and not list(tmp_path.iterdir())


@pytest.mark.parametrize("words, said", [
    (["--training.validate-every", "10 min"], "validate-every: '10 min' is no interval"),
    (["--training.steps", "9" * 30], "--training.steps: expected at most"),
    (["--training.betas", "5", "5"], "betas"),
    (["--discriminators.periods", "0"], "periods[0]: expected at least 1, found 0"),
    (["--discriminators.fft-sizes", "-1"], "fft_sizes[0]: expected at least 16, found -1"),
    (["--training.best-metric", "loss"], "'loss' is not among what validation of 'snac' measures")])
def test_a_codec_that_cannot_be_trained(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["snac", "train", *words]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_store_without_credentials_is_known_before_the_first_step(tmp_path, monkeypatch):
    pytest.importorskip("boto3", reason="needs boto3")
    for name in [name for name in os.environ if name.startswith("AWS_")]: monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path/"none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    task = Line()
    task.step = None  # nothing gets so far
    config = TrainingConfig(steps=2, schedule="constant", push="s3://bucket/run", device="cpu")
    with pytest.raises(StorageError, match="no usable credentials; set AWS_ACCESS_KEY_ID"):
        Trainer(task, config, tmp_path/"run").fit()
    assert not any(tmp_path.rglob("*.*"))


def test_nobody_logged_in_to_the_hub_is_known_before_the_first_step(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub", reason="needs huggingface_hub")
    monkeypatch.setattr(hub, "get_token", lambda: None)
    config = TrainingConfig(steps=2, schedule="constant", push="hf://me/model", device="cpu")
    with pytest.raises(StorageError, match="no usable token; log in with"):
        Trainer(Line(), config, tmp_path/"run").fit()
    assert not any(tmp_path.rglob("*.*"))


def test_a_service_that_is_down_is_told_and_waited_for(caplog):
    pytest.importorskip("boto3", reason="needs boto3")
    problem = StorageError("cannot be reached", "s3://bucket", "unreachable", True)
    class Down:
        url = "s3://bucket"
        def head(self, name): raise problem
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("audiolab.remote.pusher.open_store", lambda url: Down())
        check_push("s3://bucket/run", patience=.01)
    assert "cannot be reached; it will be tried again" in caplog.text


@dataclass
class Outer:
    training: TrainingConfig
    name: str = "run"
    more: TrainingConfig | None = None


def test_a_section_whose_keys_are_all_commented_out_is_all_defaults(tmp_path):
    path = tmp_path/"config.yaml"
    path.write_text("training:\n#  steps: 5\nmore:\nname: a\n")
    found = load_config(Outer, path).config
    assert (found.training, found.more, found.name) == (TrainingConfig(), None, "a")
    path.write_text("training:\nlearning_rate: .5\n")  # under another name of a key of it
    assert load_config(SnacConfig, path).config.training.learning_rate == .5
    path.write_text("training: 5\n")
    with pytest.raises(ConfigError, match="config.yaml:1:11: training: expected a mapping"):
        load_config(Outer, path)


def test_an_interval_of_settings_made_in_python_names_its_key(tmp_path):
    for key in ("validate_every", "sample_every", "save_every"):
        with pytest.raises(ConfigError, match=f"{key}: 'often' is no interval"):
            Trainer(Line(), TrainingConfig(steps=1, **{key: "often"}), tmp_path)


def test_a_pipe_in_place_of_a_configuration_blocks_nobody(tmp_path):
    os.mkfifo(tmp_path/"config.yaml")
    with pytest.raises(ConfigError, match="it is not a regular file"):
        load_config(TrainingConfig, tmp_path/"config.yaml")
