"Settings of an encoder's training: files of an earlier trainer, flags, and what means nothing now."
import logging
from dataclasses import fields

import pytest

from audiolab.config import ConfigError, config_cli, load_config, save_config
from audiolab.data import DataError
from audiolab.voice import (
    as_config, engine_settings, TrainConfig, VoiceTrainingConfig, warmup_share,
)

FAST = """batch_size: 64
epochs: 20
learning_rate: 1e-3
warmup_epochs: 2
early_stopping_patience: 5
save_interval: 2
"""
PRODUCTION = """batch_size: 32
epochs: 200
learning_rate: 5e-5
warmup_epochs: 10
early_stopping_patience: 20
save_interval: 10
gradient_clip: 1.0
use_amp: true
"""
WEIGHTS = """lambda_ttl: 2.0      # Emphasize style_ttl
lambda_dp: 1.0       # Standard weight for style_dp
lambda_cosine: 0.05  # Reduce cosine influence
"""
AUGMENTATION = """augment_prob: 0.7                # Apply augmentation more often
augment_noise_snr_min: 15.0      # More aggressive noise
spec_augment_time_mask: 30       # Larger time masking
"""
EVERYTHING = {  # all settings that the earlier trainer had, with its defaults
    "num_samples": 10000, "num_val_samples": 1000, "num_test_samples": 500, "texts": ["Hello."],
    "languages": ["en"], "sample_rate": 24000, "n_fft": 1024, "hop_length": 256,
    "win_length": 1024, "n_mels": 80, "fmin": 0.0, "fmax": 8000.0, "encoder_type": "cnn",
    "hidden_dim": 512, "num_layers": 6, "num_heads": 8, "dropout": 0.1,
    "style_ttl_shape": [1, 50, 256], "style_dp_shape": [1, 8, 16], "batch_size": 32,
    "learning_rate": 1e-4, "epochs": 100, "weight_decay": 1e-5, "warmup_epochs": 5,
    "gradient_clip": 1.0, "use_amp": True, "lambda_ttl": 1.0, "lambda_dp": 1.0,
    "lambda_cosine": 0.1, "early_stopping_patience": 10, "augment_noise_snr_min": 20.0,
    "augment_noise_snr_max": 40.0, "augment_time_stretch_min": 0.9,
    "augment_time_stretch_max": 1.1, "augment_pitch_shift_semitones": 1.0,
    "augment_volume_min": 0.8, "augment_volume_max": 1.2, "spec_augment_time_mask": 20,
    "spec_augment_freq_mask": 10, "augment_prob": 0.5, "onnx_dir": "../../assets/onnx",
    "voice_styles_dir": "../../assets/voice_styles", "data_dir": "./training_data",
    "checkpoint_dir": "./checkpoints", "output_dir": "./output", "num_workers": 4,
    "pin_memory": True, "log_interval": 10, "save_interval": 5, "use_wandb": False,
    "use_tensorboard": True, "seed": 42, "tts_total_step": 5, "tts_speed": 1.05,
    "style_sample_mode": "mixed", "style_perturb_std": 0.1, "style_interp_alpha_min": 0.0,
    "style_interp_alpha_max": 1.0}


def from_text(tmp_path, text, *flags):
    file = tmp_path/"train.yaml"
    file.write_text(text)
    return config_cli(TrainConfig, ["--config", str(file), *flags])


@pytest.mark.parametrize("text", [FAST, PRODUCTION, WEIGHTS, AUGMENTATION])
def test_example_files_run_as_written(tmp_path, text):
    config = from_text(tmp_path, text).config
    saved = save_config(config, tmp_path/"config.yaml")
    assert load_config(TrainConfig, saved).config == config
    engine_settings(config.training)


def test_example_files_mean_what_they_say(tmp_path):
    fast = from_text(tmp_path, FAST).config.training
    assert (fast.batch_size, fast.epochs, fast.learning_rate) == (64, 20, 1e-3)
    assert (fast.patience, fast.save_every, warmup_share(fast)) == (5, "2 epochs", .1)
    production = from_text(tmp_path, PRODUCTION).config.training
    assert production.clip_norm == 1. and production.use_amp
    assert production.save_every == "10 epochs"
    losses = from_text(tmp_path, WEIGHTS).config.losses
    assert (losses.lambda_ttl, losses.lambda_dp, losses.lambda_cosine) == (2., 1., .05)
    augmentation = from_text(tmp_path, AUGMENTATION).config.augmentation
    assert augmentation.augment_prob == .7 and augmentation.spec_augment_time_mask == 30
    assert augmentation.augment_noise_snr_min == 15.


def test_learning_rate_in_exponential_notation_is_a_number_and_saved_settings_load_again(tmp_path):
    config = from_text(tmp_path, "learning_rate: 1e-3\n").config
    assert type(config.training.learning_rate) is float
    saved = save_config(config, tmp_path/"config.yaml")
    assert "!!" not in saved.read_text() and load_config(TrainConfig, saved).config == config


def test_all_settings_of_the_earlier_trainer_are_read(tmp_path, caplog):
    with caplog.at_level(logging.WARNING): config = as_config(EVERYTHING)
    told = [record.getMessage().partition(" ")[0] for record in caplog.records]
    assert len(told) == len(set(told)), "each is told of once"
    assert {"augment_time_stretch_min", "augment_pitch_shift_semitones", "onnx_dir"} <= set(told)
    assert "use_wandb" not in told and "lambda_ttl" not in told
    usual = TrainConfig()
    assert config.encoder.trunk == "cnn" and usual.encoder.trunk == "convnext"
    for section in ("augmentation", "losses", "data", "training", "paths"):
        assert getattr(config, section) == getattr(usual, section), section


def test_settings_without_effect_that_are_zero_are_not_spoken_of(caplog):
    with caplog.at_level(logging.WARNING):
        config = as_config({"augment_pitch_shift_semitones": 0.0, "use_wandb": False})
    assert config == TrainConfig()
    assert not caplog.records


def test_flags_beat_the_file_which_beats_the_defaults(tmp_path):
    found = from_text(tmp_path, FAST, "--epochs", "7", "--lr=5e-5", "--device", "cpu")
    training = found.config.training
    assert (training.epochs, training.learning_rate, training.batch_size) == (7, 5e-5, 64)
    assert (training.seed, training.device) == (42, "cpu")
    assert found.sources["training.epochs"] == "flag"
    assert found.sources["training.batch_size"].endswith("train.yaml:1")
    assert found.sources["training.seed"] == "default"


def test_flags_in_both_spellings():
    line = "--data-dir a --checkpoint-dir b --epochs 3 --batch-size 8 --lr 1e-4 --resume auto"
    one = config_cli(TrainConfig, line.split()).config
    other = config_cli(TrainConfig, line.replace("-dir", "_dir").replace("-size", "_size").split())
    assert one == other.config
    assert (one.data.data_dir, one.paths.checkpoint_dir, one.resume) == ("a", "b", "auto")


def test_unknown_setting_names_the_nearest(tmp_path):
    with pytest.raises(ConfigError, match=r"train.yaml:1:1.*lamda.*Did you mean 'lambda_ttl'"):
        from_text(tmp_path, "lamda_ttl: 2.0\n")
    with pytest.raises(ConfigError, match="one of 'convnext', 'cnn', 'transformer' or 'ecapa'"):
        as_config({"encoder_type": "resnet"})


def test_file_of_the_earlier_trainer_with_tags_is_refused_by_line(tmp_path):
    with pytest.raises(ConfigError, match=r"train.yaml:2:.*tags"):
        from_text(tmp_path, "epochs: 2\nstyle_ttl_shape: !!python/tuple [1, 50, 256]\n")


def test_warm_up_begins_above_zero_and_leaves_half_of_the_run():
    assert warmup_share(VoiceTrainingConfig()) == .05
    assert warmup_share(VoiceTrainingConfig(epochs=3)) == .5
    assert warmup_share(VoiceTrainingConfig(epochs=10, warmup_epochs=0)) == 0
    assert warmup_share(VoiceTrainingConfig(steps=100)) == .05


def test_preset_for_a_processor_is_named_in_help_and_beaten_by_flags(capsys):
    with pytest.raises(SystemExit):
        config_cli(TrainConfig, ["--help"], presets=TrainConfig.presets)
    assert "--preset" in (said := capsys.readouterr().out) and "cpu" in said
    line = ["--preset", "cpu", "--epochs", "9"]
    found = config_cli(TrainConfig, line, presets=TrainConfig.presets)
    assert (found.config.training.learning_rate, found.config.training.epochs) == (1.5e-3, 9)


def test_sizes_of_the_encoder_are_taken_up():
    "hidden_dim, num_layers and n_mels once changed nothing, or ended in a crash"
    sizes = {"hidden_dim": 64, "num_layers": 3, "n_mels": 40}
    spec = as_config({"encoder_type": "cnn"} | sizes).encoder
    assert (spec.hidden_dim, spec.num_layers, spec.features.n_mels) == (64, 3, 40)


def test_every_short_form_leads_to_a_setting():
    known = {f.name for f in fields(TrainConfig)}
    for name, target in TrainConfig.aliases.items():
        path = target if isinstance(target, str) else target[0]
        here, *rest = path.split(".")
        assert here in known, name
        found = getattr(TrainConfig(), here)
        for key in rest: found = getattr(found, key)


def test_plan_names_data_teacher_sizes_and_steps(tmp_path):
    for split, count in (("train", 70), ("val", 3)):
        (tmp_path/split).mkdir()
        for n in range(count): (tmp_path/split/f"sample_{n:06d}.npz").touch()
    plan = as_config({"data_dir": str(tmp_path), "epochs": 10}).plan()
    assert "70 clips of a teacher that they do not name, 3 to choose the best by" in plan
    assert "32 clips at a time, 10 epochs, 30 steps, into ./checkpoints" in plan
    with pytest.raises(DataError, match="nowhere: there is no such folder.*voice generate"):
        as_config({"data_dir": "nowhere"}).plan()


def test_impossible_ranges_are_refused():
    with pytest.raises(ConfigError, match="augmentation: snr is from 50 to 40"):
        as_config({"augment_noise_snr_min": 50.}).check()
    with pytest.raises(ConfigError, match="shortest piece is longer"):
        as_config({"crop_seconds_min": 9.}).check()


def test_null_under_a_short_form_is_the_setting_s_own_null():
    assert as_config({"hidden_dim": None, "speak_samples": None}) == TrainConfig()
