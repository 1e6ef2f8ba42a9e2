"""An encoder from nothing: lessons are made, it learns, and voices and words that it never met are understood.

Small in every run of the tests, where it must beat the mean voice; with `-m slow` of the size that the gates are for, three seeds
of 6,000 clips (five minutes of CPU each). VOICE_ACCEPTANCE=FOLDER keeps the lessons, runs and evaluations there.
"""
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from audiolab.voice import (
    ENCODER, MEAN, OWN, RIDGE, ParametricTeacher, EvaluateConfig, evaluate_voice, gap_closed,
    make_lessons, reader_of, train_voice, write_voice_evaluation,
)

GAP = "gap closed, spectrum, other words (dB)"


def learn(folder, seed, counts, seconds, steps, encoder=None):
    "A run on a new set, evaluated; and the CPU seconds of both."
    begin = time.process_time()
    make_lessons(folder/"lessons", ParametricTeacher(seconds=seconds), counts=counts, seed=seed)
    made = time.process_time()
    training = dict(steps=steps, learning_rate=1.5e-3, weight_decay=1e-4, num_workers=0, seed=seed,
                    patience=0, validate_every="never", save_every="never", device="cpu",
                    log_every=20)
    crops = dict(crop_seconds_min=seconds, crop_seconds_max=seconds)
    train_voice(dict(
        data=dict(data_dir=str(folder/"lessons")) | crops,
        encoder=dict(dropout=0.) | (encoder or {}), training=training,
        paths=dict(checkpoint_dir=str(folder/"run"), use_tensorboard=False)), listeners=[])
    return {"generation": made - begin, "training": time.process_time() - made}


def evaluate(folder, **asked):
    "What is known of the run, written beside it."
    paths = [str(folder/name) for name in ("run", "lessons", "evaluation")]
    found = evaluate_voice(EvaluateConfig(*paths, builtin_styles=False, **asked))
    write_voice_evaluation(paths[2], found)
    return found


def test_small_encoder_beats_the_mean_voice(tmp_path):
    torch.manual_seed(0)
    counts = {"train": 600, "val": 4, "test": 48}
    learn(tmp_path, 0, counts, 1.5, 80, {"hidden_dim": 64, "num_layers": 3})
    found = evaluate(tmp_path, round_trip_samples=4)
    guess, mean = found.measures[ENCODER], found.measures[MEAN]
    assert abs(mean["centred_cosine"]) < 1e-3 and abs(mean["r2"]) < 1e-3
    assert guess["centred_cosine_ttl"] > .2 and guess["r2_ttl"] > .02 and guess["rate_r2"] > .3
    assert guess["ttl_mse"] < mean["ttl_mse"]
    trip = found.trip.summary()
    assert trip[OWN]["spectrum (dB)"] < trip[ENCODER]["spectrum (dB)"] < trip[MEAN]["spectrum (dB)"]
    assert trip[ENCODER][GAP] == pytest.approx(gap_closed(*(
        trip[who]["spectrum, other words (dB)"] for who in (MEAN, ENCODER, OWN))))
    written = json.loads((tmp_path/"evaluation"/"evaluation_results.json").read_text())
    assert {ENCODER, MEAN, RIDGE} == set(written["aggregate"])


def pitch_error(found):
    "Cents between the pitch that guessed styles stand for and that of true ones, on average."
    reader = reader_of(found.held_out.true.space)
    styles = found.held_out.true, found.held_out.guesses[ENCODER]
    true, guess = (reader.decode(style)[0][:, 0] for style in styles)
    return float(np.mean(abs(guess - true))*.30*1200/np.log(2))


@pytest.fixture(scope="module", params=[0, 1, 2])
def reached(request, tmp_path_factory):
    "What an encoder of one seed reached."
    kept = os.environ.get("VOICE_ACCEPTANCE") or tmp_path_factory.mktemp("acceptance")
    folder = Path(kept)/f"seed-{request.param}"
    spent = learn(folder, request.param, {"train": 6000, "val": 64, "test": 384}, 3., 640)
    found = evaluate(folder, round_trip_samples=64)
    guess, trip = found.measures[ENCODER], found.trip.summary()[ENCODER]
    cents = [row["measures"][ENCODER]["pitch (cents)"] for row in found.trip.rows]
    values = {name: guess[name] for name in ("centred_cosine_ttl", "factor_r2", "rate_r2")}
    values |= {GAP: trip[GAP], "pitch of styles (cents)": pitch_error(found)} | spent
    values |= {"pitch, tracked (cents)": float(np.mean([c for c in cents if c is not None]))}
    (folder/"gates.json").write_text(json.dumps(values, indent=1))
    return values


class TestGates:
    "The gates of the specification; that of spectra is not reached yet."
    pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]

    def test_style(self, reached):
        assert reached["centred_cosine_ttl"] >= .65 and reached["factor_r2"] >= .45, reached

    def test_rate(self, reached): assert reached["rate_r2"] >= .90, reached

    def test_spectra(self, reached): assert reached[GAP] >= .85, reached

    def test_pitch_of_styles(self, reached):
        assert reached["pitch of styles (cents)"] <= 180, reached

    def test_pitch_of_round_trips(self, reached):
        assert reached["pitch, tracked (cents)"] <= 180, reached
