"What cannot be trained on ends the command with one message that says what to change."
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

sys.path.insert(0, str(Path(__file__).parent))
from engine_tasks import Denoise, config as engine_config
from snac_runs import (
    fit, in_one_thread, last, make_corpus, parquet, published, RATE, settings, tone,
)

from audiolab.apps import program as cli
from audiolab.audio import write_audio
from audiolab.training import Trainer


@pytest.fixture(scope="module")
def corpus(tmp_path_factory): return make_corpus(tmp_path_factory.mktemp("corpus")/"sound")


@pytest.fixture(autouse=True)
def one_thread(): yield from in_one_thread()


def refused(capsys, words, *args):
    "The one message that a command ends with"
    code = cli.main(["snac", "train", *map(str, args)])
    said = capsys.readouterr().err
    assert code == 2 and "Traceback" not in said, said
    assert all(word in " ".join(said.split()) for word in words), said


def write_config(tmp_path, data, *more):
    (tmp_path/"run.json").write_text(json.dumps(settings(tmp_path/"run", data,
                                                         {"training": {"steps": 1}}, *more)))
    return "--config", tmp_path/"run.json"


def spoilt(place, make):
    place.mkdir()
    for number in range(3): make(place/f"{number}.wav")
    return place


BAD = {"silent": (lambda p: write_audio(p, np.zeros(RATE, np.float32), RATE),
                  ["none of", "silent", "below -60 dB"]),
       "not numbers": (lambda p: soundfile.write(p, np.full(RATE, np.nan, np.float32), RATE,
                                                 subtype="FLOAT"), ["none of"]),
       "unreadable": (lambda p: p.write_bytes(b"RIFF not a sound"),
                      ["none of 3 files can be read"])}


@pytest.mark.parametrize("kind", BAD)
def test_nothing_that_can_be_used(kind, capsys, tmp_path):
    make, words = BAD[kind]
    refused(capsys, [*words, "0.wav"], *write_config(tmp_path, spoilt(tmp_path/"sound", make)))
    assert not list((tmp_path/"run").glob("*.safetensors"))


def test_data_that_is_not_there(capsys, tmp_path, corpus):
    (tmp_path/"empty").mkdir()
    refused(capsys, ["empty", "holds no sound", ".wav"], *write_config(tmp_path, tmp_path/"empty"))
    refused(capsys, ["nowhere", "no such file or folder"],
            *write_config(tmp_path, tmp_path/"nowhere"))
    refused(capsys, ["'speech'", "columns are", "audio", "audio_column"],
            *write_config(tmp_path, parquet(tmp_path/"table", 1),
                          {"data": {"audio_column": "speech"}}))
    refused(capsys, ["batch_size"], *write_config(tmp_path, corpus,
                                                  {"training": {"batch_size": 4000}}))


def test_an_empty_table(capsys, tmp_path):
    import datasets
    features = datasets.Features({"audio": datasets.Audio(decode=False)})
    datasets.Dataset.from_dict({"audio": []}, features=features).to_parquet(tmp_path/"none.parquet")
    refused(capsys, ["none.parquet"], *write_config(tmp_path, tmp_path/"none.parquet"))


def test_wrong_settings(capsys, tmp_path, corpus):
    def file(text):
        (tmp_path/"run.yaml").write_text(text)
        return "--config", tmp_path/"run.yaml"
    refused(capsys, ["run.yaml:2:3", "training.lerning_rate", "Did you mean 'learning_rate'"],
            *file("training:\n  lerning_rate: 1.0\n"))
    refused(capsys, ["run.yaml:3:", "codebooks.mode", "gradient"],
            *file("\ncodebooks:\n  mode: kmeans\n"))
    refused(capsys, ["--training.batch-size", "0"], "--training.batch-size", "0")
    refused(capsys, ["24khz", "'24kHz'"], "--model", "24kHz")
    refused(capsys, ["ljspeech"], "--dataset", "ljspeach")
    refused(capsys, ["no interval"], *write_config(tmp_path, corpus,
                                                   {"training": {"save_every": "often"}}))
    refused(capsys, ["mirror the rates"], *write_config(tmp_path, corpus,
                                                        {"model": {"decoder_rates": [8, 8, 8, 2]}}))
    refused(capsys, ["best_metric", "loudness", "mel"],
            *write_config(tmp_path, corpus, {"training": {"best_metric": "loudness",
                                                          "validate_every": "1 step"},
                                             "data": {"validation": .3}}))
    refused(capsys, ["2560 samples are too few", "8192"],
            *write_config(tmp_path, corpus, {"discriminators": {"fft_sizes": [8192]}}))


def test_weights_and_checkpoints_of_something_else(capsys, tmp_path, corpus):
    refused(capsys, ["nothing", "no such file or folder"], *write_config(tmp_path, corpus),
            "--weights", tmp_path/"nothing")
    Trainer(Denoise(), engine_config(steps=1, save_every="never"), tmp_path/"denoise").fit()
    refused(capsys, ["a run of 'denoise', not one of 'snac'"], *write_config(tmp_path, corpus),
            "--resume", tmp_path/"denoise"/"checkpoints"/"checkpoint_final.safetensors")
    fit(settings(tmp_path/"wide", corpus, {"model": {"encoder_dim": 16}, "training": {"steps": 1}}))
    refused(capsys, ["another model", "'encoder_dim': 16", "tensors differ", "config.yaml"],
            *write_config(tmp_path, corpus), "--resume", last(tmp_path/"wide"))
    path = published(tmp_path/"published")/"pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:1000])
    refused(capsys, ["pytorch_model.bin", "cut off"], *write_config(tmp_path, corpus), "--weights",
            path.parent)


@pytest.mark.slow
def test_a_checkpoint_with_other_critics(capsys, tmp_path, corpus):
    fit(settings(tmp_path/"narrow", corpus, {"discriminators": {"width": 1/32},
                                             "training": {"steps": 1}}))
    refused(capsys, ["narrow", "size mismatch"], *write_config(tmp_path, corpus), "--resume",
            last(tmp_path/"narrow"))


def test_eight_channels(tmp_path):
    (tmp_path/"sound").mkdir()
    for number in range(2):
        soundfile.write(tmp_path/"sound"/f"{number}.wav",
                        np.stack([tone(number+c, .5) for c in range(8)], 1), RATE)
    result = fit(settings(tmp_path/"run", tmp_path/"sound", {"training": {"steps": 1}}))
    assert result.state == "completed"
