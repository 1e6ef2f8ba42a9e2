"""The interface of an earlier trainer of SNAC: its examples as they stood, its names and flags.

The examples are run as text, with `training` replaced by `audiolab.snac`. Data sets that they fetch
from the Hub are folders of the same names here, which are taken first; where an example begins a
training of days, the size of the networks and the number of steps are exchanged, and nothing else.
"""
import importlib, json, os, re
from pathlib import Path

import numpy as np
import pytest
import torch

from audiolab.apps import program as cli
from audiolab.audio import write_audio
from audiolab.config import config_cli
from audiolab.snac import as_config, create_training_config, DATASET_CONFIGS, train, TrainConfig

EXAMPLES = {
    "whole training": '''
from training import train_main, create_training_config

# Create configuration
config = create_training_config(
    dataset_path="bad49wolf/ljspeech-simple",
    batch_size=16,
    learning_rate=6e-4,
    streaming=False
)

# Start training
train_main(config)
''',
    "components": '''
from training import AudioDataset, MultiPeriodDiscriminator
from training.losses import mel_spectrogram_loss
from training.config import create_snac_24khz_config

# Use components separately for custom training loops
dataset = AudioDataset("path/to/dataset")
discriminator = MultiPeriodDiscriminator()
config = create_snac_24khz_config()
''',
    "speech": '''
config = create_training_config(
    dataset_path="bad49wolf/ljspeech-simple",
    batch_size=16,
    streaming=False
)
''',
    "large": '''
config = create_training_config(
    dataset_path="mozilla-foundation/common_voice_16_1",
    batch_size=8,
    streaming=True  # Important for large datasets
)
''',
    "custom model": '''
from training.config import create_snac_24khz_config

# Get base config and modify
model_config = create_snac_24khz_config()
model_config["codebook_size"] = 8192  # Larger codebook
model_config["encoder_dim"] = 128     # Larger model

config = {
    "model": model_config,
    "training": {...},
    "data": {...}
}
'''}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def here(tmp_path, monkeypatch):
    "A working folder with a little sound under the names that examples use"
    monkeypatch.chdir(tmp_path)
    for name in ("bad49wolf/ljspeech-simple", "path/to/dataset"):
        Path(name).mkdir(parents=True)
        for number in range(3):
            t = np.arange(12000*(number+1))/24000
            noise = np.random.default_rng(number).normal(size=len(t))
            sound = .2*np.sin(2*np.pi*(200+90*number)*t) + .02*noise
            write_audio(Path(name)/f"{number}.wav", sound.astype(np.float32), 24000)
    return tmp_path


def run_example(name, **known):
    exec(compile(re.sub(r"\btraining(?=[. ]|$)(?=\S* import)", "audiolab.snac", EXAMPLES[name]),
                 name, "exec"), known)
    return known


TINY = {"encoder_dim": 8, "decoder_dim": 64, "codebook_size": 64}
QUICK = {"discriminators": {"width": 1/16, "periods": [2, 3], "fft_sizes": [512]},
         "training": {"num_iterations": 2, "validate_every": "never", "save_every": "never",
                      "device": "cpu", "log_interval": 1}}


@pytest.fixture
def short(monkeypatch):
    "Trainings have small networks and two steps; what the settings asked for is kept"
    asked, original = [], train.as_config
    def shrunk(config):
        if isinstance(config, TrainConfig): return config
        asked.append(original(config))
        merged = {key: dict(part) if isinstance(part, dict) else part
                  for key, part in config.items()}
        for key, part in ({"model": TINY} | QUICK).items(): merged[key] = merged.get(key, {}) | part
        merged["training"]["batch_size"] = 2
        return original(merged)
    monkeypatch.setattr(train, "as_config", shrunk)
    return asked


# ---- examples

def test_a_whole_training(here, short, capsys):
    run_example("whole training")
    config, = short
    assert (config.data.dataset_path, config.training.batch_size, config.training.learning_rate,
            config.data.streaming) == ("bad49wolf/ljspeech-simple", 16, 6e-4, False)
    assert (config.training.steps, config.model.encoder_dim,
            config.paths.checkpoint_dir) == (800_000, 48, "./checkpoints")
    written = {path.name for path in Path("checkpoints").iterdir()}
    assert {"config.json", "pytorch_model.bin", "snac_24khz_final.safetensors",
            "history.jsonl"} <= written
    assert Path("logs").is_dir()
    from audiolab.snac import from_pretrained
    assert from_pretrained("checkpoints").config["encoder_dim"] == 8


def test_components(here):
    found = run_example("components")
    dataset, critic, config = found["dataset"], found["discriminator"], found["config"]
    assert len(dataset) == 3 and dataset[0].shape == (19200,) and dataset[0].dtype == torch.float32
    outputs, maps = critic(dataset[1][None, None])
    assert len(outputs) == len(maps) == 5 and config["sampling_rate"] == 24000
    assert float(found["mel_spectrogram_loss"](dataset[0][None], dataset[0][None])) == 0


@pytest.mark.parametrize("name, batch, streaming", [("speech", 16, False), ("large", 8, True)])
def test_settings(name, batch, streaming):
    config = as_config(run_example(name, create_training_config=create_training_config)["config"])
    # 0.8 s in whole frames
    assert (config.training.batch_size, config.data.streaming,
            config.segment_samples) == (batch, streaming, 20480)
    assert config.training.decay == .999994 and config.training.save_every == "10000 steps"
    assert config.training.log_every == 100


def test_a_model_of_your_own(here, short):
    found = run_example("custom model")["config"]
    # the example leaves these to the reader
    config = as_config({"model": found["model"], "training": {}, "data": {}})
    assert (config.model.codebook_size, config.model.encoder_dim,
            config.model.decoder_dim) == (8192, 128, 1024)
    from audiolab.snac import SNAC
    with torch.device("meta"): assert SNAC(**found["model"]).codebook_size == 8192


# ---- names

NAMES = {
    "audiolab.snac": "AudioDataset MultiPeriodDiscriminator MultiScaleSTFTDiscriminator "
                     "feature_matching_loss discriminator_loss generator_loss stft_loss "
                     "mel_spectrogram_loss create_snac_24khz_config create_training_config "
                     "train_main",
    "audiolab.snac.dataset": "AudioDataset",
    "audiolab.snac.discriminators": "MultiPeriodDiscriminator MultiScaleSTFTDiscriminator "
                                    "PeriodDiscriminator STFTDiscriminator",
    "audiolab.snac.losses": "feature_matching_loss discriminator_loss generator_loss "
                            "mel_spectrogram_loss stft_loss",
    "audiolab.snac.config": "create_snac_24khz_config create_snac_32khz_config "
                            "create_snac_44khz_config create_training_config DATASET_CONFIGS",
    "audiolab.snac.train": "main setup_models setup_optimizers setup_dataset train_step "
                           "save_checkpoint",
}


@pytest.mark.parametrize("module", NAMES)
def test_names(module):
    found = importlib.import_module(module)
    for name in NAMES[module].split(): assert getattr(found, name) is not None
    if module == "audiolab.snac":
        assert found.train_main is train.train_main is train.main and found.main is train.main


def test_signatures():
    "The arguments that were there come first and keep their defaults"
    from inspect import signature
    from audiolab.snac import AudioDataset
    def begins(function, names, **defaults):
        found = signature(function).parameters
        assert list(found)[:len(names.split())] == names.split()
        for name, value in defaults.items(): assert found[name].default == value, name
    begins(AudioDataset.__init__,
           "self dataset_path sample_rate segment_length split streaming audio_column",
           sample_rate=24000, segment_length=.8, split="train", streaming=False,
           audio_column="audio")
    begins(create_training_config, "dataset_path batch_size learning_rate num_iterations streaming",
           dataset_path="bad49wolf/ljspeech-simple", batch_size=16, learning_rate=6e-4,
           num_iterations=800_000, streaming=False)
    begins(train.setup_models, "config device")
    begins(train.setup_optimizers, "generator mpd msd config")
    begins(train.setup_dataset, "config")
    begins(train.train_step, "real_audio generator mpd msd optim_g optim_d device iteration",
           iteration=0)
    begins(train.save_checkpoint,
           "iteration generator mpd msd optim_g optim_d scheduler_g scheduler_d config "
           "checkpoint_dir")
    begins(train.main, "config", config=None)


def test_settings_are_as_they_were():
    config = create_training_config()
    assert config["training"] == {"batch_size": 16, "learning_rate": 6e-4, "lr_decay": .999994,
                                  "num_iterations": 800_000, "save_interval": 10_000,
                                  "log_interval": 100, "validation_interval": 1000}
    assert config["data"] == {"dataset_path": "bad49wolf/ljspeech-simple", "audio_column": "audio",
                              "split": "train", "streaming": False, "segment_length": .8}
    assert config["paths"] == {"checkpoint_dir": "./checkpoints", "log_dir": "./logs"}
    assert DATASET_CONFIGS.keys() == {"ljspeech", "common_voice", "librispeech", "vctk"}
    assert [DATASET_CONFIGS[name]["streaming"]
            for name in ("ljspeech", "common_voice", "librispeech",
                         "vctk")] == [False, True, True, False]
    for dataset in DATASET_CONFIGS.values():
        assert dataset["model_config"] == "24khz"
        assert {"dataset_path", "audio_column", "split"} <= dataset.keys()


def test_a_loop_of_old(here):
    "All pieces of the older trainer, called as it called them"
    config = create_training_config("path/to/dataset", 2)
    config |= {"discriminators": QUICK["discriminators"]}
    config["model"] |= TINY
    generator, mpd, msd = train.setup_models(config, torch.device("cpu"))
    optim_g, optim_d, scheduler_g, scheduler_d = train.setup_optimizers(generator, mpd, msd, config)
    for real in train.setup_dataset(config):
        values = train.train_step(real, generator, mpd, msd, optim_g, optim_d, torch.device("cpu"),
                                  0)
        scheduler_g.step()
        scheduler_d.step()
        break
    assert all(np.isfinite(float(values[name]))
               for name in ("loss_g loss_d mel_loss stft_loss gen_adv_loss fm_loss mel_weight "
                            "stft_weight").split())
    path = train.save_checkpoint(1, generator, mpd, msd, optim_g, optim_d, scheduler_g, scheduler_d,
                                 config, "checkpoints")
    assert path.name == "snac_24khz_iter_1.safetensors"
    assert json.loads(Path("checkpoints/config.json").read_text())["encoder_dim"] == 8


# ---- the command line

def resolved(*words):
    return config_cli(TrainConfig, list(map(str, words)), prog="audiolab snac train").config


@pytest.mark.parametrize("words, expected", [
    ([], {"data.dataset_path": "bad49wolf/ljspeech-simple", "training.batch_size": 16,
          "training.learning_rate": 6e-4, "training.steps": 800_000, "data.streaming": False,
          "training.seed": 0, "resume": None, "model.encoder_dim": 48}),
    (["--dataset", "ljspeech"], {"data.dataset_path": "bad49wolf/ljspeech-simple"}),
    (["--dataset", "librispeech"], {"data.dataset_path": "openslr/librispeech_asr",
                                    "data.dataset_config": "all", "data.split": "train.clean.100",
                                    "data.streaming": True}),
    (["--dataset_path", "your-dataset", "--batch_size", 8, "--streaming"],
     {"data.dataset_path": "your-dataset", "training.batch_size": 8, "data.streaming": True}),
    (["--dataset", "common_voice", "--dataset_path", "other"],
     {"data.dataset_path": "other", "data.streaming": True}),
    (["--dataset", "common_voice", "--no-streaming"], {"data.streaming": False}),
    (["--learning_rate", 6e-4, "--num_iterations", 10],
     {"training.learning_rate": 6e-4, "training.steps": 10}),
    (["--learning-rate=1e-4", "--num-iterations=7"],
     {"training.learning_rate": 1e-4, "training.steps": 7}),
    (["--model", "44khz"], {"model.sampling_rate": 44100, "model.attn_window_size": 32,
                            "model.encoder_rates": (2, 3, 8, 8)}),
    (["--model", "32khz", "--model.codebook-size", 1024],
     {"model.sampling_rate": 32000, "model.codebook_size": 1024}),
    (["--resume", "auto", "--seed", 3, "--weights", "hubertsiuzdak/snac_24khz", "--freeze_tokens",
      "--device", "cpu", "--checkpoint_dir", "run", "--processes", 2],
     {"resume": "auto", "training.seed": 3, "fine_tuning.weights": "hubertsiuzdak/snac_24khz",
      "fine_tuning.freeze_tokens": True, "training.device": "cpu",
      "paths.checkpoint_dir": "run", "training.processes": 2})])
def test_flags(words, expected):
    config = resolved(*words)
    for name, value in expected.items():
        found = config
        for part in name.split("."): found = getattr(found, part)
        assert found == value, name


def test_flags_beat_the_file_that_beats_what_is_named_in_it(tmp_path):
    "Also where a flag is the default"
    old = create_training_config("from-the-file", 4, 1e-3, 50, True)
    old["paths"] = {"checkpoint_dir": "from-the-file"}  # log_dir has a default that no flag says
    path = tmp_path/"my_config.json"
    path.write_text(json.dumps(old))
    file = resolved("--config", path)
    assert file == as_config(old)
    assert (file.training.batch_size, file.training.learning_rate, file.training.steps,
            file.data.streaming) == (4, 1e-3, 50, True)
    flags = resolved("--config", path, "--batch_size", 16, "--learning_rate", "6e-4",
                     "--num_iterations", 800_000, "--no-streaming", "--dataset_path",
                     "bad49wolf/ljspeech-simple",
                     "--checkpoint_dir", "./checkpoints")
    assert flags == TrainConfig()  # every flag is a default, and wins
    before = resolved("--batch_size", 16, "--config", path)
    assert before.training.batch_size == 16 and before.training.learning_rate == 1e-3
    path.write_text(json.dumps({"model": "44khz", "dataset": "common_voice",
                                "data": {"streaming": False}, "training": {"num_iterations": 5}}))
    named = resolved("--config", path, "--seed", 0)
    assert (named.model.sampling_rate, named.data.dataset_config, named.data.streaming,
            named.training.steps) == (44100, "en", False, 5)
    assert resolved("--config", path, "--model", "24khz").model.sampling_rate == 24000


def test_dry_run_tells_what_would_be_done(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my_config.json").write_text(json.dumps(create_training_config("here", 4)))
    assert cli.main(["snac", "train", "--config", "my_config.json", "--batch_size", "16", "--model",
                     "32khz", "--streaming", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"batch_size: 16 .*flag", said)
    assert re.search(r"dataset_path: here .*my_config.json", said)
    assert re.search(r"sampling_rate: 32000 .*flag", said)
    assert "(32000 Hz, widths 64 and 1536; pieces of" in said
    assert "on here (streamed), 16 pieces at a time, 800000 steps, into ./checkpoints" in said
    assert os.listdir() == ["my_config.json"]


def test_the_command_of_old(here, short, monkeypatch, capsys):
    "`train_snac.py --config my_config.json` to its end"
    config = create_training_config("path/to/dataset", 2, num_iterations=2)
    for key, part in ({"model": TINY} | QUICK).items(): config[key] = config.get(key, {}) | part
    Path("my_config.json").write_text(json.dumps(config))
    assert cli.main(["snac", "train", "--config", "my_config.json", "--checkpoint_dir", "run"]) == 0
    assert Path("run/pytorch_model.bin").is_file()
    assert Path("run/snac_24khz_final.safetensors").is_file()
