"Settings of T3's training: an earlier trainer's file, its words, slips, flags."
import logging
from dataclasses import fields

import pytest

from audiolab.config import config_cli, config_of, ConfigError, load_config, save_config
from audiolab.tts import (
    as_tts_config, highest_rate, LearningSettings, LessonSettings, SmallT3Settings, T3Settings,
    TTSConfig, told_to_engine,
)

SEED = {  # every key that the earlier trainer had
    "model": dict(
        name="amharic_tts", architecture="vits", hidden_channels=192, filter_channels=768,
        n_heads=2, n_layers=6, kernel_size=3, p_dropout=.1, original_vocab_size=2454,
        n_vocab=3000, use_phonemes=True, freeze_original_embeddings=True,
        freeze_until_index=2454),
    "data": dict(
        dataset_path="data/am", metadata_file="metadata.csv", sampling_rate=22050,
        filter_length=1024, hop_length=256, win_length=1024, n_mel_channels=80, mel_fmin=0,
        mel_fmax=8000, train_ratio=.85, val_ratio=.1, test_ratio=.05, batch_size=16,
        num_workers=4, pin_memory=True),
    "training": dict(
        optimizer="AdamW", learning_rate=2e-4, weight_decay=.01, betas=[.8, .99], eps=1e-9,
        lr_scheduler="ExponentialLR", lr_decay=.999875, warmup_steps=4000, max_epochs=1000,
        max_steps=500_000, save_interval=5000, eval_interval=1000, log_interval=100,
        grad_clip_thresh=1., grad_accumulation_steps=2, use_amp=True, use_ddp=True,
        gpu_ids=[0], device="cpu", early_stopping=True, patience=50, min_epochs=30),
    "finetuning": dict(
        enabled=True, pretrained_model="t3_v2.safetensors", freeze_encoder=True,
        freeze_decoder=True, freeze_vocoder=True),
    "logging": dict(
        use_wandb=True, wandb_project="a", wandb_entity="b", use_tensorboard=False,
        log_dir="logs", log_audio=False, log_spectrograms=True, log_alignments=False),
    "validation": dict(n_samples=3, sample_texts=["ሰላም"]),
    "paths": dict(tokenizer="merged.json", extended_model="t3_3000.safetensors",
                  checkpoints="models/checkpoints"),
}
KEYS = [(section, key) for section, keys in SEED.items() for key in keys]


def leaves(tree, path=""):
    for key, value in tree.items():
        here = f"{path}.{key}" if path else key
        if isinstance(value, dict): yield from leaves(value, here)
        else: yield here, value


def test_a_file_of_an_earlier_trainer_is_read_as_it_is(tmp_path):
    read = as_tts_config(SEED)
    read.check()
    model, data, training = read.model, read.data, read.training
    assert (model.base, model.rows, model.base_rows) == ("t3_3000.safetensors", 3000, 2454)
    assert (model.freeze, model.freeze_until) == ("base_rows", 2454)
    assert (data.caches, data.tokenizer) == (("data/am",), "merged.json")
    assert (data.val_ratio, data.test_ratio) == (.1, .05)
    assert (training.batch_size, training.num_workers, training.device) == (16, 4, "cpu")
    assert (training.learning_rate, training.betas, training.eps) == (2e-4, (.8, .99), 1e-9)
    assert (training.schedule, training.epoch_decay) == ("exponential", .999875)
    assert (training.warmup, training.epochs, training.steps) == (4000, 1000, 500_000)
    assert (training.save_every, training.validate_every) == ("5000 steps", "1000 steps")
    assert (training.log_every, training.clip_norm, training.accumulate) == (100, 1., 2)
    assert (training.early_stopping, training.patience, training.min_epochs) == (True, 50, 30)
    assert (read.validation.n_samples, read.validation.sample_texts) == (3, ("ሰላም",))
    assert (read.validation.audio, read.validation.alignments) == (False, False)
    assert (read.paths.output, read.paths.use_tensorboard) == ("models/checkpoints", False)
    assert load_config(TTSConfig, save_config(read, tmp_path/"config.yaml")).config == read


@pytest.mark.parametrize("section, key", KEYS)
def test_every_key_is_read_or_told_of(section, key, caplog):
    "Nothing is passed over in silence, as a third of them once was"
    value, name = SEED[section][key], f"{section}.{key}"
    with caplog.at_level(logging.WARNING): read = as_tts_config({section: {key: value}})
    if name in TTSConfig.retired:
        assert not value or f"{name} has no effect: " in caplog.text
        assert read == TTSConfig()
        return
    assert "no effect" not in caplog.text
    other = {"optimizer": "SGD", "early_stopping": False, "use_amp": False}.get(key)
    if other is None and read != TTSConfig(): return
    try: assert as_tts_config({section: {key: other}}) != TTSConfig() or value == other
    except ConfigError: pass  # it is looked at


def test_a_weaker_pretrained_model_does_not_hide_the_extended_one():
    base = as_tts_config({"finetuning": {"pretrained_model": "base.safetensors"}}).model.base
    assert base == "base.safetensors"
    assert as_tts_config(SEED).model.base == "t3_3000.safetensors"


@pytest.mark.parametrize("written, told", [
    ("training: {warmup_step: 4}", r"1:12: training\.warmup_step: .*mean 'warmup_steps'"),
    ("training: {grad_clip_tresh: 4}", r"mean 'grad_clip_thresh'"),
    ("finetuning: {pretrained_modl: x}", r"1:14: finetuning\.pretrained_modl: .*_model'"),
    ("model: {n_vocabs: 3000}", r"model\.n_vocabs: .*mean 'n_vocab'"),
    ("data: {cachs: [x]}", r"1:8: data\.cachs: .*mean .caches."),
    ("training: {lr_scheduler: ExponentalLR}", r"lr_scheduler: .*mean 'ExponentialLR'"),
    ("training: {optimizer: Adam}", r"optimizer: .*AdamW"),
    ("training: {betas: [0.9]}", r"training\.betas"),
    ("model: {freeze: yes}", r"model\.freeze: expected .*'base_rows'"),
    ("data: {val_ratio: 1.5}", r"data\.val_ratio: expected less than 1"),
    ("training: {tokens: 0}", r"training\.tokens: expected at least 1"),
])
def test_slips_are_told_with_their_line_and_what_was_meant(written, told, tmp_path):
    (tmp_path/"config.yaml").write_text(written)
    with pytest.raises(ConfigError, match=told): load_config(TTSConfig, tmp_path/"config.yaml")


@pytest.mark.parametrize("given, told", [
    ({}, "nothing to learn from: name caches, which are made by audiolab tts cache"),
    ({"data": {"caches": ["a"], "weights": [1., 2.]}}, "2 weights for 1 caches"),
    ({"data": {"caches": ["a"], "validation": ["a"]}}, "a: trained on, and yet kept apart"),
    ({"data": {"caches": ["a"], "val_ratio": .6, "test_ratio": .6}}, "leave nothing to train on"),
    ({"data": {"caches": ["a"], "prompt_seconds_min": 9.}}, "longer than prompt_seconds_max"),
    ({"data": {"caches": ["a"]}, "model": {"freeze": "lora"}}, "there is no base"),
    ({"data": {"caches": ["a"]}, "model": {"base": "b", "freeze": "layers"}}, "which blocks move"),
    ({"data": {"caches": ["a"]}, "model": {"base": "b", "base_rows": 704, "freeze_until": 2454}},
     "only the first 704 rows came with the base"),
    ({"data": {"caches": ["a"]}, "model": {"base": "b", "base_rows": 3000, "rows": 2454}},
     "nothing would be new"),
    ({"data": {"caches": ["a"]}, "training": {"epochs": 0}}, "set steps or epochs"),
])
def test_what_cannot_be_trained_is_told_before_anything_is_read(given, told):
    with pytest.raises(ConfigError, match=told): as_tts_config(given).check()


def test_true_and_false_are_words_for_what_does_not_move():
    for word, mode in ((True, "base_rows"), (False, "none"), ("text_only", "text_only")):
        read = as_tts_config({"model": {"freeze_original_embeddings": word}})
        assert read.model.freeze == mode


def test_every_key_is_a_flag_and_beats_the_file(tmp_path):
    (tmp_path/"c.yaml").write_text("training: {max_steps: 5}\ndata: {dataset_path: a}\n")
    line = ["--config", str(tmp_path/"c.yaml"), "--lr", "1e-5", "--training.max-steps", "7",
            "--freeze", "none", "--cache", "b", "--data.replay", "c", "d", "--output", "here",
            "--model.small.width", "64", "--training.betas", "0.8", "0.99"]
    read = config_cli(TTSConfig, line).config
    assert (read.training.steps, read.training.learning_rate) == (7, 1e-5)
    assert (read.data.caches, read.data.replay, read.paths.output) == (("b",), ("c", "d"), "here")
    assert (read.model.small.width, read.training.betas) == (64, (.8, .99))


@pytest.mark.parametrize("preset", TTSConfig.presets)
def test_presets_are_recipes(preset):
    read = config_cli(TTSConfig, ["--preset", preset, "--cache", "a", "--base", "b"],
                      presets=TTSConfig.presets).config
    read.check()
    assert read != config_of(TTSConfig, {"data": {"caches": ["a"]}, "model": {"base": "b"}})


def test_the_rate_is_that_of_the_case():
    rates = [highest_rate(LearningSettings(), *case) for case in ((True,), (True, True), (False,))]
    assert rates == [2e-5, 1e-4, 1e-3]
    assert highest_rate(LearningSettings(learning_rate=.5), True) == .5


def test_the_engine_does_not_stop_early_by_itself():
    told = told_to_engine(LearningSettings(patience=9, schedule="exponential", epoch_decay=.9))
    assert (told.patience, told.decay) == (0, 1.)
    assert told_to_engine(LearningSettings(use_amp=False)).precision == "float32"


def test_sections_have_words_for_every_key():
    for cls in (T3Settings, LessonSettings, LearningSettings, SmallT3Settings):
        assert all(field.name.islower() for field in fields(cls))
    assert SmallT3Settings(width=64, heads=2).t3(300, 100).feed_forward == 256
