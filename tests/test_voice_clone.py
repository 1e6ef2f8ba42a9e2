"Recordings to a voice: with consent, of either kind of encoder, and honest about what was heard."
import json
import logging

import numpy as np
import pytest
from voice_encoders import KOKORO, kokoro_encoder, parametric_encoder, speech

from audiolab.audio import AudioError, read_audio, write_audio
from audiolab.config import config_cli
from audiolab.files import CheckpointError
from audiolab.voice import (
    Clone, CloneConfig, ConsentError, ParametricTeacher, StyleError, clone_command, make_clone_page,
    clone_voice, encoder_digest, load_voice, say_in, save_encoder, slerp, stack_styles,
    take_recording,
)

MINE = "it is my own voice"


@pytest.fixture(scope="module")
def encoder(): return parametric_encoder()


@pytest.fixture(scope="module")
def folder(encoder, tmp_path_factory):
    "Recordings of one speaker, good and bad, and an encoder"
    folder = tmp_path_factory.mktemp("recordings")
    rng = np.random.default_rng(0)
    write_audio(folder/"studio.wav", speech(), 24_000)
    soft = speech(seed=2)*.5
    write_audio(folder/"kitchen.ogg", soft + .02*rng.standard_normal(len(soft)), 24_000)
    write_audio(folder/"silence.flac", np.zeros(40_000), 16_000)
    write_audio(folder/"yes.wav", speech()[:9000], 24_000)
    (folder/"letter.mp3").write_text("Dear Anna")
    save_encoder(encoder, folder/"encoder.safetensors")
    return folder


def test_no_voice_without_consent(folder, encoder):
    for nothing in ("", "   ", None, False, True):
        with pytest.raises(ConsentError, match="--i-have-consent"):
            clone_voice(folder/"studio.wav", encoder, nothing)
    weights = str(folder/"encoder.safetensors")
    config = CloneConfig((str(folder/"studio.wav"),), weights, output="x.json")
    assert config.plan().startswith("cannot run: a voice belongs to somebody")
    with pytest.raises(ConsentError): clone_command(config)


def test_what_the_file_says(folder, encoder, tmp_path):
    files = [folder/"studio.wav", folder/"kitchen.ogg"]
    about = dict(name="Anna", description="A test")
    clone = clone_voice(files, folder/"encoder.safetensors", f" {MINE} ", **about)
    path = clone.save(tmp_path/"anna.json")
    notes = json.loads(path.read_text())["metadata"]
    assert (notes["name"], notes["description"], notes["consent"]) == ("Anna", "A test", MINE)
    assert notes["synthetic"] is True and notes["source_audio"] == ["studio.wav", "kitchen.ogg"]
    assert notes["encoder_sha256"] == encoder_digest(encoder) and notes["audiolab_version"]
    assert notes["teacher_model"] == "parametric" and notes["created_at"][:2] == "20"
    assert str(folder) not in path.read_text()  # names of files, not of folders
    assert load_voice(path).space == encoder.space


def test_the_mean_leans_to_the_better_recording(folder, encoder):
    files = [folder/"studio.wav", folder/"kitchen.ogg"]
    good, bad = (clone_voice(file, encoder, MINE).style for file in files)
    both = clone_voice(files, encoder, MINE)
    assert abs(np.linalg.norm(both.style.ttl, axis=1) - 1).max() < 1e-5
    share = both.recordings[1].quality.weight/sum(r.quality.weight for r in both.recordings)
    assert 0 < share < .5
    on_the_way = slerp(good, bad, share)  # near to it, for styles that are near to each other
    assert abs(both.style.ttl - on_the_way.ttl).max() < .02
    same = clone_voice([folder/"studio.wav"]*3, encoder, MINE).style
    assert abs(same.ttl - good.ttl).max() < 1e-6


def test_unusable_recordings_are_named(folder, encoder):
    names = ["studio.wav", "silence.flac", "yes.wav", "letter.mp3", "gone.wav"]
    clone = clone_voice([folder/name for name in names], encoder, MINE)
    assert [r.name for r in clone.recordings] == names[:1] and list(clone.left_out) == names[1:]
    assert "silent" in clone.left_out["silence.flac"] and "s long" in clone.left_out["yes.wav"]
    assert sum("left out" in text for text in clone.warnings) == 4
    for name in names[1:]:
        with pytest.raises((AudioError, OSError), match=name):
            clone_voice(folder/name, encoder, MINE)
    with pytest.raises(AudioError, match="none can be used.*silence.*yes"):
        clone_voice([folder/"silence.flac", folder/"yes.wav"], encoder, MINE)
    with pytest.raises(AudioError, match="at least one"): clone_voice([], encoder, MINE)


def test_names_of_files_do_no_harm(encoder, tmp_path):
    name = "a|b\n<script>alert(1)<b>$x$\x1b[31m.wav"
    write_audio(tmp_path/name, speech(), 24_000)
    clone = clone_voice(tmp_path/name, encoder, "<i>me</i>", name="<u>")
    clone = say_in(clone, ParametricTeacher(), ["<em>Hi</em>"])
    text = make_clone_page(clone, tmp_path/"page").write().read_text()
    for shown in (text, clone._repr_html_()):
        for tag in ("<script", "<b>$", "<i>", "<u>", "<em>", "\x1b"): assert tag not in shown
        assert "&lt;script&gt;" in shown and shown.count("<audio") >= 1
    assert len(clone.quality.splitlines()) == 3
    files = {file.name for file in (tmp_path/"page/clone_files").iterdir()}
    assert files == {"recording_0.wav", "clone_1_0.wav", "spectrograms.png"}
    assert "is not speech of the person" in text and "synthetic" in text


def test_a_voice_for_kokoro(folder, tmp_path):
    encoder = kokoro_encoder()
    clone = clone_voice(folder/"studio.wav", encoder, MINE, name="Anna B.")
    with pytest.raises(StyleError, match="name it anna.npz"): clone.save(tmp_path/"anna.json")
    path = clone.save(tmp_path/"anna.npz")
    voices = np.load(path)
    assert voices.files == ["Anna_B"] and voices["Anna_B"].shape == (510, 1, 256)
    back = load_voice(path)
    assert back.notes["consent"] == MINE and back.notes["synthetic"] is True
    assert back.space == KOKORO and (back.ttl == clone.style.ttl).all()
    with pytest.raises(StyleError, match="nothing to do with"):
        say_in(clone, ParametricTeacher(), ["Hi"])


def test_alike_from_checkpoint_and_graph(folder, encoder, tmp_path):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason=f"optional: needs {name}")
    from audiolab.voice import export_encoder
    graph = export_encoder(encoder, tmp_path/"voice.onnx", validate=False)
    files = [folder/"studio.wav", folder/"kitchen.ogg"]
    one = clone_voice(files, folder/"encoder.safetensors", MINE, mode="pytorch")
    other = clone_voice(files, graph, MINE, mode="onnx")
    for part in ("ttl", "dp"):
        assert abs(one.style.part(part) - other.style.part(part)).max() < 1e-5
    assert {**one.style.notes, "created_at": ""} == {**other.style.notes, "created_at": ""}
    for source, mode in ((graph, "pytorch"), (folder/"encoder.safetensors", "onnx")):
        with pytest.raises(ValueError, match="mode is"): clone_voice(files, source, MINE, mode=mode)
    for missing in ("gone.onnx", "gone.safetensors", "encoder.pt"):
        with pytest.raises((CheckpointError, OSError), match=missing):
            clone_voice(files, tmp_path/missing, MINE)


def words(line): return config_cli(CloneConfig, line.split(), positional=True).config


def test_the_command_line():
    config = words("a.wav b.mp3 --encoder runs/voice --i-have-consent -o voice.json")
    assert (config.recordings, config.encoder) == (("a.wav", "b.mp3"), "runs/voice")
    assert config.i_have_consent and config.output == "voice.json"
    assert not config.test and config.test_speed == 1.05
    config = words("--input a.wav --output v.json --encoder e.onnx --mode onnx --device cpu "
                   "--name Anna --description Hm --test --test-text Hello --test-output t.wav "
                   "--onnx-dir models --test-language fr --test-speed 1.2 --test-steps 8 --quiet")
    assert config.recordings == ("a.wav",) and config.test and config.quiet
    assert (config.onnx_dir, config.mode, config.name) == ("models", "onnx", "Anna")
    assert (config.test_language, config.test_speed, config.test_steps) == ("fr", 1.2, 8)
    for wrong in ("a.wav --mode tf", "a.wav --test-speed 9"):
        with pytest.raises((SystemExit, ValueError)): words(wrong)


def test_the_command(folder, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO)
    here = dict(encoder=str(folder/"encoder.safetensors"), i_have_consent=True)
    good, bad = str(folder/"studio.wav"), str(folder/"silence.flac")
    assert clone_command(CloneConfig((good,), **here, name="Anna B.", page="page")) == 0
    assert (tmp_path/"Anna_B.json").is_file() and (tmp_path/"page/clone.html").is_file()
    assert "--i-have-consent" in load_voice(tmp_path/"Anna_B.json").notes["consent"]
    with pytest.raises(StyleError, match="Anna_B.json exists"):
        clone_command(CloneConfig((good,), **here, name="Anna B."))
    assert clone_command(CloneConfig((good, bad), **here, output="Anna_B.json", quiet=True)) == 2
    assert "silence.flac: left out: silent" in caplog.text
    with pytest.raises(StyleError, match="kept in .json files"):
        clone_command(CloneConfig((good,), **here, output="a.npz"))
    with pytest.raises(AudioError, match="silence.flac: silent"):
        clone_command(CloneConfig((bad,), **here, output="b.json"))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["Anna_B.json", "page"]


def test_a_sentence_where_the_synthesizer_is_at_hand(folder, tmp_path, caplog):
    given = dict(encoder=str(folder/"encoder.safetensors"), i_have_consent=True, test=True)
    recordings = (str(folder/"studio.wav"),)
    assert clone_command(CloneConfig(recordings, **given, output=str(tmp_path/"anna.json"))) == 0
    assert read_audio(tmp_path/"anna.wav")[0].size > 24_000
    save_encoder(kokoro_encoder(), tmp_path/"kokoro.safetensors")
    given["encoder"] = str(tmp_path/"kokoro.safetensors")  # of a revision that nobody has
    assert clone_command(CloneConfig(recordings, **given, output=str(tmp_path/"kai.npz"))) == 2
    assert "no test sentence: " in caplog.text and (tmp_path/"kai.npz").is_file()
    assert not (tmp_path/"kai.wav").exists()


def test_clone_of_one_recording_in_memory(encoder):
    taken = take_recording(speech(), 24_000, 24_000, "memory")
    clone = clone_voice(taken, encoder, MINE)
    assert isinstance(clone, Clone) and clone.style.notes["source_audio"] == ["memory"]
    assert (clone.style.ttl == encoder.style(speech(), 24_000).ttl).all()
    assert len(stack_styles([clone.style]*2)) == 2
