"Runs of a tiny codec for tests: settings, sound, folders, and processes that run a function."
import io
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from child_processes import forked, over, two  # noqa: F401 - tests of the codec have them here
from engine_tasks import rows

from audiolab.audio import write_audio
from audiolab.files import read_checkpoint, unpack_state
from audiolab.snac import (
    as_config, CodebookTrainer, save_pretrained, setup_models, setup_optimizers, SNAC,
    snac_trainer,
)

RATE = 16000


TINY = {"sampling_rate": RATE, "encoder_dim": 8, "encoder_rates": [2, 4, 5, 8], "decoder_dim": 64,
        "decoder_rates": [8, 5, 4, 2], "codebook_size": 64}


def merged(a, b):
    return {**a, **{k: merged(a[k], v) if isinstance(v, dict) and isinstance(a.get(k), dict) else v
                    for k, v in b.items()}}


def settings(folder, data, *more):
    "Of a run that is over soon"
    found = {"model": TINY, "data": {"dataset_path": str(data), "segment_length": .16,
                                     "validation": 0},
             "discriminators": {"width": 1/16, "periods": [2, 3], "fft_sizes": [512], "warmup": 2,
                                "precision": "float32"},
             "training": {"steps": 4, "batch_size": 2, "log_every": 1, "validate_every": "never",
                          "sample_every": "never", "save_every": "1 step", "keep_last": 0,
                          "ema_decay": .5,
                          "device": "cpu"},
             "paths": {"checkpoint_dir": str(folder), "log_dir": str(Path(folder)/"logs")}}
    for part in more: found = merged(found, part)
    return found


def tone(number, seconds=1., rate=RATE):  # a voice that has its own pitch
    t, rng = np.arange(round(seconds*rate))/rate, np.random.default_rng(number)
    return (sum(np.sin(2*np.pi*k*(100+20*number)*t + rng.uniform(0, 6))/k
                for k in range(1, 12))*.1 + rng.normal(0, .02, len(t))).astype(np.float32)


def make_corpus(place):
    "Eight recordings: 48 pieces"
    place.mkdir()
    for number in range(8): write_audio(place/f"{number}.wav", tone(number), RATE)
    return place


def in_one_thread():
    "For a fixture: torch has one thread while a test runs"
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def parquet(place, shards=4, rows=3):
    "A table in shards, of clips of one piece each"
    import datasets
    place.mkdir()
    for shard in range(shards):
        cells = []
        for row in range(rows):
            file = io.BytesIO()
            soundfile.write(file, tone(shard*rows+row, .16), RATE, format="WAV")
            cells.append({"bytes": file.getvalue(), "path": f"{shard*rows+row:02}.wav"})
        table = datasets.Dataset.from_dict({"audio": cells}).cast_column("audio",
            datasets.Audio(decode=False))
        table.to_parquet(place/f"train-{shard:05}-of-{shards:05}.parquet")
    return place


def last(folder): return Path(folder)/"snac_16khz_final.safetensors"
def published_bytes(folder): return (folder/"pytorch_model.bin").read_bytes()


def codec_of(path):
    return {k: v for k, v in read_checkpoint(path)[0].items() if not k.startswith("training.")}


def training_of(path): return unpack_state(*read_checkpoint(path))["training"]
def equal(a, b): return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def copy_run(source, target, step):
    "A run as it was on the disk after the save of a step"
    target.mkdir()
    name = f"snac_16khz_iter_{step}.safetensors"
    (target/name).write_bytes((source/name).read_bytes())
    (target/"history.jsonl").write_bytes((source/"history.jsonl").read_bytes())


def fit(given, resume=None): return snac_trainer(given).fit(resume)


def party(mode="gradient", model=TINY, discriminators=None, **books):
    critics = {"width": 1/16, "periods": [2, 3], "fft_sizes": [512]} | (discriminators or {})
    config = as_config({"model": model, "discriminators": critics})
    torch.manual_seed(0)
    networks = setup_models(config)
    optimizers = setup_optimizers(*networks, config)[:2]
    return *networks, *optimizers, CodebookTrainer(networks[0].quantizer, mode, **books)


def batch(seed=0, size=2, samples=2560):
    return torch.from_numpy(np.stack([tone(seed*size+i, samples/RATE) for i in range(size)]))


def curve(folder):
    return {(kind, step, name): value for kind, step, _, values in rows(folder)
            for name, value in values.items() if isinstance(value, float) and value == value}


QUIET = {"model": {"noise": False}, "training": {"batch_size": 4}}  # processes draw different noise


def same_curve(a, b, near=1e-4):
    one, other = curve(a), curve(b)
    assert one.keys() == other.keys() and len(one) > 20
    for key, value in one.items():
        assert other[key] == pytest.approx(value, rel=near, abs=1e-5), key


def streamed(tmp_path, epochs=1):
    return merged(QUIET, {"data": {"streaming": True},
                          "training": {"steps": 0, "epochs": epochs,
                                       "schedule": "constant"}}), parquet(tmp_path/"table", rows=4)


def published(place, package=False):
    "A codec as it is published, by us or by the package snac"
    torch.manual_seed(5)
    model = SNAC(**TINY, attn_window_size=None, vq_strides=[4, 2, 1])
    if not package: return save_pretrained(model, place)
    snac = pytest.importorskip("snac", reason="optional: needs the package snac")
    theirs = snac.SNAC(**model.config)
    place.mkdir()
    torch.save(theirs.state_dict(), place/"pytorch_model.bin")
    (place/"config.json").write_text(json.dumps(model.config))
    return place
