"""What is said of an encoder of voices: nothing that was not computed, never without the mean voice, and the right errors."""
import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from audiolab.data import DataError
from audiolab.files import CheckpointError
from audiolab.voice import (
    ENCODER, MEAN, OWN, EncoderSpec, EvaluateConfig, Lessons, ParametricTeacher, VoiceEncoder,
    VoiceStyle, ask_teacher, compare_sayings, dimension_errors, evaluate_command, evaluate_encoder,
    evaluate_voice, fit_basis, flat_map, gap_closed, hardest_dimensions, hear_lessons,
    load_encoder, make_lessons, measures_of, median_pitch, part_errors, reader_of, save_encoder,
    save_style, speak_and_compare, stack_styles, warped_distance,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "Lessons, and an encoder that has learnt nothing yet: it says the mean voice."
    folder = tmp_path_factory.mktemp("voices")
    teacher = ParametricTeacher(seconds=.7)
    counts = {"train": 24, "val": 4, "test": 8}
    make_lessons(folder/"lessons", teacher, counts=counts, clips_per_style=2)
    train = Lessons(folder/"lessons", "train")
    torch.manual_seed(0)
    bases = [fit_basis(train.part(part)) for part in ("ttl", "dp")]
    encoder = VoiceEncoder(teacher.space, EncoderSpec(hidden_dim=16, num_layers=1), *bases).eval()
    save_encoder(encoder, folder/"best_model.safetensors")
    return folder, encoder, Lessons(folder/"lessons", "test")


def asked(folder, **more):
    return EvaluateConfig(str(folder/"best_model.safetensors"), str(folder/"lessons"), **more)


def numbers(tree):
    "All numbers of a JSON tree."
    if isinstance(tree, dict): return [n for value in tree.values() for n in numbers(value)]
    if isinstance(tree, list): return [n for value in tree for n in numbers(value)]
    return [tree] if isinstance(tree, (int, float)) else []


def test_the_whole_of_it(made, tmp_path, caplog):
    "The folder is made before the log is opened, every file is there, and every distance was computed."
    folder, _, _ = made
    out = tmp_path/"not"/"there yet"
    with caplog.at_level(logging.INFO, logger="audiolab"):
        code = evaluate_command(asked(folder, output_dir=str(out), round_trip_samples=2))
    assert code == 0 and "mean voice" in (out/"evaluation.log").read_text()
    pictures = {f"{name}_{part}.png" for part in ("ttl", "dp")
                for name in ("embedding", "scatter", "per_dimension", "error_histogram")}
    rest = {"evaluation_results.json", "per_dimension_metrics.npz", "evaluation.log", "evaluation.html"}
    assert pictures | rest <= {path.name for path in out.iterdir()}
    found = json.loads((out/"evaluation_results.json").read_text())
    assert {ENCODER, MEAN, "ridge"} <= set(found["aggregate"]) and np.isfinite(numbers(found)).all()
    assert len(found["builtin_styles"]) == 10
    assert len(found["per_dimension"]["ttl"]["hardest"]) == 10
    trip = found["round_trip"]["summary"]
    assert trip[OWN]["MCD (dB)"] > 0 and trip[MEAN]["MCD (dB)"] > trip[OWN]["MCD (dB)"]
    closed = trip[ENCODER]["gap closed, spectrum (dB)"]
    assert closed == pytest.approx(0, abs=1e-6)  # it says the mean
    with np.load(out/"per_dimension_metrics.npz") as arrays:
        assert arrays["ttl_mse"].shape == (50, 256) and arrays["dp_r2"].shape == (8, 16)


def test_what_was_not_asked_for_says_so(made, tmp_path):
    folder, _, _ = made
    config = asked(folder, output_dir=str(tmp_path), round_trip=False, builtin_styles=False,
                   visualization=False, ridge=False)
    assert evaluate_command(config) == 0
    found = json.loads((tmp_path/"evaluation_results.json").read_text())
    for name in ("round_trip", "builtin_styles", "ridge"): assert found[name].startswith("skipped: ")
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".npz", ".log"}


def test_without_its_teacher_nothing_is_spoken(made):
    _, encoder, test = made
    other = replace(encoder.space, teacher="supertonic-9")
    teacher, why = ask_teacher(other)
    assert teacher is None and why
    results = evaluate_encoder(encoder, test, presets={}, no_teacher=why).results()
    assert results["round_trip"] == results["builtin_styles"] == f"skipped: {why}"
    assert "factors" in results and reader_of(other) is None


def test_an_untrained_encoder_is_the_mean_voice_and_no_better(made):
    _, encoder, test = made
    found = evaluate_encoder(encoder, test)
    names = "cosine", "r2", "r2_ttl", "skill", "factor_r2", "rate_r2", "ttl_mse", "dp_mse"
    for name in names:  # its direction from the mean voice is that of rounding
        value = found.measures[MEAN][name]
        assert found.measures[ENCODER][name] == pytest.approx(value, abs=2e-3), name
    assert found.measures[MEAN]["cosine"] > .8  # which says nothing
    assert abs(found.measures[MEAN]["centred_cosine"]) < 1e-3


def test_lessons_are_heard_the_same_whatever_the_batch(made):
    _, encoder, test = made
    alone, together = (hear_lessons(encoder, test, batch_size=size) for size in (1, 8))
    assert np.allclose(alone.ttl, together.ttl, atol=1e-5)
    assert np.allclose(alone.dp, together.dp, atol=1e-5)


def test_lessons_of_another_synthesizer_are_refused(made):
    folder, encoder, test = made
    other = VoiceEncoder(replace(encoder.space, revision="1-99"), encoder.spec,
                         encoder.ttl.basis.basis(), encoder.dp.basis.basis())
    with pytest.raises(ValueError, match="speaks of styles of"): evaluate_encoder(other, test)


def test_voices_of_a_folder(made, tmp_path):
    folder, encoder, _ = made
    with pytest.raises(DataError, match="no voices"):
        evaluate_voice(asked(folder, voice_styles_dir=str(tmp_path), round_trip=False))
    teacher, _ = ask_teacher(encoder.space)
    save_style(teacher.presets()["P3"], tmp_path/"anna.json")
    settings = asked(folder, voice_styles_dir=str(tmp_path), round_trip=False, ridge=False)
    found = evaluate_voice(settings)
    assert list(found.presets) == ["anna"]


def test_mistakes_name_the_remedy(made, tmp_path):
    folder, _, _ = made
    with pytest.raises(DataError, match="no lessons here"):
        evaluate_voice(EvaluateConfig(str(folder/"best_model.safetensors"), str(tmp_path)))
    with pytest.raises((CheckpointError, OSError), match="none.safetensors"):
        evaluate_voice(EvaluateConfig(str(tmp_path/"none.safetensors"), str(folder/"lessons")))
    assert load_encoder(folder/"best_model.safetensors").space.teacher == "parametric"


def test_errors_against_plain_loops():
    rng = np.random.default_rng(0)
    true, guess = rng.standard_normal((2, 5, 3, 4))
    mean = rng.standard_normal((3, 4))
    true[:, 0, 0] = mean[0, 0]  # does not vary
    found = dimension_errors(guess, true, mean)
    for r in range(3):
        for c in range(4):
            error = np.mean([(guess[n, r, c] - true[n, r, c])**2 for n in range(5)])
            variance = np.mean([(true[n, r, c] - mean[r, c])**2 for n in range(5)])
            assert found["mse"][r, c] == pytest.approx(error)
            if (r, c) != (0, 0): assert found["r2"][r, c] == pytest.approx(1 - error/variance)
    assert np.isnan(found["r2"][0, 0])
    worst = hardest_dimensions(found, 12)
    assert [one["mse"] for one in worst] == sorted((one["mse"] for one in worst), reverse=True)
    assert [one["r2"] for one in worst if (one["row"], one["column"]) == (0, 0)] == [None]
    assert part_errors(guess, true)["mse"] == pytest.approx(found["mse"].mean())


def test_warping_finds_the_cheapest_way():
    def slowly(a, b):
        total = {(-1, -1): (0., 0)}
        for i in range(len(a)):
            for j in range(len(b)):
                before = [total[at] for at in ((i-1, j-1), (i-1, j), (i, j-1)) if at in total]
                cost, steps = min(before, key=lambda o: o[0])
                total[i, j] = cost + np.linalg.norm(a[i] - b[j]), steps + 1
        cost, steps = total[len(a)-1, len(b)-1]
        return cost/steps
    rng = np.random.default_rng(1)
    for shape in ((1, 1), (4, 7), (9, 3)):
        a, b = (rng.standard_normal((n, 2)) for n in shape)
        assert warped_distance(a, b) == pytest.approx(slowly(a, b))
    a = rng.standard_normal((6, 2))
    assert warped_distance(a, np.repeat(a, 3, 0)) == 0  # slower, and nothing else


@pytest.mark.parametrize("hertz", [70., 123.4, 220., 377.])
def test_pitch_of_tones(hertz):
    t = np.arange(24000)/24000
    voice = sum(np.sin(2*np.pi*k*hertz*t + k)/k for k in range(1, 8))
    noisy = voice + .05*np.random.default_rng(0).standard_normal(len(t))
    for sound in (voice, noisy): assert abs(1200*np.log2(median_pitch(sound, 24000)/hertz)) < 15
    assert median_pitch(np.random.default_rng(0).standard_normal(24000), 24000) is None


def test_a_saying_is_not_away_from_itself_nor_louder_ones():
    teacher = ParametricTeacher(seconds=None)
    said, = teacher.synthesize(["where are you"], stack_styles([teacher.presets()["P2"]]))
    found = compare_sayings(said.audio, .3*said.audio, 24000)
    assert found["spectrum (dB)"] < .05 and found["pitch (cents)"] < 1 and found["MCD (dB)"] < .1
    assert found["duration (ratio)"] == 1


def test_gaps():
    assert [gap_closed(2., heard, 1.) for heard in (1., 2., 3.)] == [1, 0, -1]
    assert gap_closed(1., .5, 1.) is None  # there is none
    assert speak_and_compare(ParametricTeacher(), []).summary() == {}


def test_maps_of_voices():
    points = np.random.default_rng(0).standard_normal((20, 5))
    spots, what = flat_map(points)
    assert spots.shape == (20, 2) and "principal components" in what
    pytest.importorskip("sklearn", reason="optional: t-SNE needs scikit-learn")
    assert flat_map(points, "tsne")[0].shape == (20, 2)


def test_factors_of_the_truth_and_of_the_mean(made):
    _, encoder, test = made
    from audiolab.voice import HeldOut, factor_shares, mean_style
    true = VoiceStyle(test.part("ttl"), test.part("dp"), test.space)
    mean = mean_style(encoder)
    held_out = HeldOut(test, true, mean, {"truth": true, MEAN: stack_styles([mean]*len(test))})
    shares = factor_shares(held_out, reader_of(test.space))
    assert all(value == pytest.approx(1, abs=1e-6) for value in shares["truth"].values())
    assert all(value == pytest.approx(0, abs=1e-9) for value in shares[MEAN].values())
    assert measures_of(held_out, encoder)["truth"]["factor_r2"] == pytest.approx(1, abs=1e-5)
