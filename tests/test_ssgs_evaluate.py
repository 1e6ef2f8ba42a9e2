"Judging a model: numbers that can fail, pages with sound links, panels that show their errors."
import json, re
from html.parser import HTMLParser
from urllib.parse import unquote

import numpy as np
import pytest
from ssgs_runs import short_measures  # noqa: F401

from audiolab.audio import probe_audio
from audiolab.apps import main
from audiolab.audio import instrument_corpus
from audiolab.ssgs import Dashboard, state_excerpt, state_runs
from audiolab.ssgs import (
    evaluate, fidelity_sweep, plot_path, plot_states, plot_transitions, source_audio,
    training_excerpt,
)
from audiolab.ssgs import SpectralStateGuidedSynthesis
from audiolab.ssgs import write_report


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    files = instrument_corpus(tmp_path_factory.mktemp("music"), n_files=3, seed=1)
    return SpectralStateGuidedSynthesis(10, seed=0).train(files, n_em_iterations=8)


@pytest.fixture(scope="module")
def bare(model, tmp_path_factory):
    "The same model without its training audio"
    path = model.save_checkpoint(tmp_path_factory.mktemp("bare")/"bare",
                                 include_training_artifacts=False)
    return SpectralStateGuidedSynthesis.load_checkpoint(path)


def noise(n=16000, seed=0):
    return np.random.default_rng(seed).standard_normal(n).astype(np.float32)*0.1


@pytest.mark.parametrize("excitation", ["Karplus-Strong", "noise"])
def test_replay_comes_nearer_with_every_step(model, excitation):
    sweep = fidelity_sweep(model, seconds=4., excitation_type=excitation, seed=3)
    for name in ("log-spectral distance (dB)", "mel-cepstral distortion (dB)", "STFT distance"):
        values = [o[name] for o in sweep.rows]
        assert all(a > b for a, b in zip(values, values[1:])), (name, values)
    assert values[-1] < 1e-3 and sweep.rows[-1]["novelty"] < 0.02 < sweep.rows[0]["novelty"]
    assert np.abs(sweep.sounds["fidelity 1"] - sweep.sounds["source"]).max() < 1e-5
    assert "fidelity 0.25" in sweep.table and sweep.plot()._repr_png_()[0][:4] == b"\x89PNG"


def test_source_is_the_files_in_order_round_and_round(model):
    whole = sum(len(o.audio) for o in model.recordings.frames)
    source = source_audio(model, whole + 5000)
    assert len(source) == whole + 5000 and np.array_equal(source[whole:], source[:5000])
    second = len(model.recordings.frames[0].audio)
    assert np.array_equal(source[second:second + 1000], model.recordings.frames[1].audio[:1000])


def test_excerpt_shares_evenly(model):
    sounds = [o.audio for o in model.recordings.frames]
    assert len(training_excerpt(model, 3.)) == 48000
    assert len(training_excerpt(model, 1000.)) == sum(map(len, sounds))
    assert all(any(np.array_equal(training_excerpt(model, 3.)[i*16000:i*16000 + 500], o[:500])
                   for o in sounds) for i in range(3))


def test_sampled_sweep_and_a_guest(model):
    sweep = fidelity_sweep(model, [0, 1], seconds=2., path="sample", reference=noise())
    assert "log-spectral distance (dB)" not in sweep.table
    assert np.array_equal(sweep.sounds["source"], noise())
    own, name = fidelity_sweep(model, [0], seconds=2., path="sample"), "long-term distance (dB)"
    assert own.rows[0][name] < sweep.rows[0][name]


@pytest.mark.parametrize("settings,message", [(dict(fidelities=[]), "at least one"),
                                              (dict(fidelities=[2]), "between 0 and 1"),
                                              (dict(seconds=0.01), "too short"),
                                              (dict(excitation_type="kazoo"), "kazoo"),
                                              (dict(path="backwards"), "path")])
def test_bad_settings_are_named(model, settings, message):
    with pytest.raises(ValueError, match=message):
        fidelity_sweep(model, **dict(seconds=1.) | settings)


def test_evaluation(model):
    a = evaluate(model, seconds=3., pieces=2)
    assert json.loads(json.dumps(a)) == a and a == evaluate(model, seconds=3., pieces=2)
    assert set(a["excitation"]) | {"training"} == set(a.sounds) and "residual" in a["excitation"]
    assert a["model"]["largest pole radius"] < 1 and a["training"]["novelty"] > 0
    assert all(0 < o["states used"] <= 10 and o["occupancy entropy"] <= np.log(10)
               and 0 <= o["time in other states"] <= 1 for o in a["excitation"].values())
    with pytest.raises(ValueError, match="pieces"): evaluate(model, pieces=0)


def test_without_training_audio(bare):
    a = evaluate(bare, seconds=2., pieces=1)
    assert a["training"] is None and "residual" not in a["excitation"]
    assert a["excitation"]["noise"]["novelty"] is None
    with pytest.raises(ValueError, match="no training audio"): fidelity_sweep(bare, seconds=1.)
    sweep = fidelity_sweep(bare, [0], seconds=1., path="sample")
    assert not sweep.reference and len(sweep.plot()._repr_png_()[0]) > 1000


@pytest.mark.parametrize("n_states", [1, 2, 3])
def test_few_states_can_be_drawn(n_states):
    small = SpectralStateGuidedSynthesis(n_states, seed=0).train(noise(), n_em_iterations=2)
    for figure in (plot_states(small, 0), plot_transitions(small), plot_path([0]*5)):
        assert figure._repr_png_()[0][:4] == b"\x89PNG"
    # one recording has no others
    assert evaluate(small, seconds=1., pieces=1)["training"]["novelty"] is None


class Page(HTMLParser):
    "Open tags must be closed, and nothing may be loaded from elsewhere"
    def __init__(self):
        super().__init__()
        self.stack, self.links = [], []
    def handle_starttag(self, tag, attributes):
        self.links += [v for k, v in attributes if k in ("src", "href")]
        assert tag != "script"
        if tag not in ("meta", "img", "br", "link"): self.stack.append(tag)
    def handle_endtag(self, tag): assert self.stack.pop() == tag


def test_report(model, tmp_path):
    model.files[0] = "somewhere/<script>alert(1)<|script>.wav"
    folder = tmp_path/"r é"/"deep"
    sweep, evaluation = fidelity_sweep(model, [0, 1], seconds=2.), evaluate(
        model, seconds=2., excitation_types="noise", pieces=1)
    sweep.sounds["fidelity 0"] = sweep.sounds["fidelity 0"]*50  # far beyond full scale
    page = write_report(folder, model, sweep, evaluation, title="<b>&", next_lines=["play < it"])
    text, parser = page.read_text(encoding="utf-8"), Page()
    parser.feed(text)
    assert not parser.stack and len(parser.links) >= 10
    assert all(not o.startswith(("/", "http", "file", "..")) and (folder/unquote(o)).is_file()
               for o in parser.links)
    assert "&lt;b&gt;&amp;" in text and "play &lt; it" in text and "&lt;script&gt;" in text
    assert str(tmp_path) not in text
    assert "turned down by" in text
    assert probe_audio(folder/"report_files/fidelity_0.wav").duration == 2.
    # written over
    assert write_report(folder, model, sweep, evaluation).read_text(encoding="utf-8") != text
    assert sorted(o.name for o in folder.iterdir()) == ["report.html", "report_files"]


def test_report_without_training_audio(bare, tmp_path):
    text = write_report(tmp_path, bare, evaluation=evaluate(bare, seconds=1.,
                                                            excitation_types=["noise"],
                                                            pieces=1)).read_text(encoding="utf-8")
    assert "Fidelity" not in text and "States" in text


def test_runs_of_a_state(model):
    for k in range(model.n_states):
        runs = state_runs(model, k)
        assert runs[:, 2].sum() == (model.recordings.states == k).sum()
        assert (np.diff(runs[:, 2]) <= 0).all()
        assert all((model.recordings.paths[i][a:a + n] == k).all() for i, a, n in runs)
        assert np.isfinite(state_excerpt(model, k)).all()


def test_dashboard(model):
    panel = Dashboard(model, keep=2)
    before = panel.held.value
    panel.state.value = next(k for _, k in panel.state.options if k != panel.state.value)
    assert panel.held.value != before and f"state {panel.state.value}:" in panel.about.value
    panel.seconds.value = 1.
    for seed in range(4):
        panel.seed.value = seed
        panel.generate.click()
    assert np.array_equal(panel.audio, model.generate(1., seed=3)) and len(panel.past.children) == 2
    assert re.search(r"seed 2\D", panel.past.children[0].children[1].value)
    panel.excitation.options = [*panel.excitation.options, "<kazoo>"]
    panel.excitation.value = "<kazoo>"
    panel.generate.click()
    assert "ValueError" in panel.status.value and "&lt;kazoo&gt;" in panel.status.value
    assert not panel.generate.disabled
    panel.excitation.value = "noise"
    panel.generate.click()
    assert "ValueError" not in panel.status.value and len(panel.audio) == 16000


def test_dashboard_without_training_audio(bare):
    panel = Dashboard(bare)
    panel.seconds.value = 0.5
    panel.generate.click()
    assert panel.fidelity.disabled and len(panel.audio) == 8000
    assert "residual" not in panel.excitation.options


def test_generate_makes_its_folder_and_knows_its_excitations(tmp_path, monkeypatch, capsys):
    SpectralStateGuidedSynthesis(4).train(noise(), n_em_iterations=1).save_checkpoint(
        tmp_path/"models"/"checkpoint_final")
    monkeypatch.chdir(tmp_path)
    assert main(["ssgs", "generate"]) == 0  # nothing but defaults
    assert probe_audio("outputs/synthetic.wav").duration == 5
    for verb in (["demo"], ["ssgs", "generate"], ["ssgs", "evaluate"]):
        assert main([*verb, "--excitation-type", "foo", "--dry-run"]) == 2
        said = capsys.readouterr().err
        assert "Karplus-Strong" in said and "Traceback" not in said
