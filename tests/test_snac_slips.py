"Slips of settings, and what users of the package snac and of the earlier trainer write"
import json

import pytest

from audiolab.config import ConfigError, load_config
from audiolab.snac import TrainConfig


# ---- settings

@pytest.mark.parametrize("key, words", [
    ("num_iteration", "Did you mean 'num_iterations'?"), ("lr", "Did you mean 'learning_rate'?"),
    ("log_intervall", "Did you mean 'log_interval'?"), ("segmentlength", "'data.segment_length'"),
    ("xyzzy", "processes, learning_rate, betas, weight_decay, num_iterations, lr_decay")])
def test_mistyped_keys_are_led_to_own_and_other_names(tmp_path, key, words):
    (tmp_path/"run.json").write_text(json.dumps({"training": {key: 3}}))
    with pytest.raises(ConfigError, match=f"run.json:1:15: training.{key}: unknown key") as error:
        load_config(TrainConfig, tmp_path/"run.json")
    assert words in str(error.value)


def test_a_wrong_word_in_a_file_is_told_with_the_file(tmp_path):
    (tmp_path/"run.json").write_text('{\n "model": "24kz"}')
    with pytest.raises(ConfigError) as error: load_config(TrainConfig, tmp_path/"run.json")
    assert str(error.value).startswith(f"{tmp_path/'run.json'}:2:11: model: ")
    assert "Did you mean '24khz'?" in str(error.value)
