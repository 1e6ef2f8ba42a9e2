"A text read aloud: words where their sounds are, pieces that are the whole, a run that is checked"
import logging

import numpy as np
import pytest
import torch

from audiolab.tts import (
    SamplingConfig, SayConfig, SoundStream, TTSError, Talker, ToneCodec, VoicePrompt,
    align_utterance, best_heads, cut_sentence, join_sounds, language_of, letter_codes,
    letter_lesson, letter_speaker, letter_tokenizer, letter_utterance, open_talker, save_t3,
    say, say_command, sound_bounds, speak, stream_say, taught_reader, text_pieces, voice_prompt,
)


@pytest.fixture(scope="module")
def talker():
    "The letter reader, its codec of tones and a tokenizer of letters"
    reader = taught_reader()
    heads = best_heads(reader, [letter_lesson(7, i) for i in range(6)])
    return Talker(reader, letter_tokenizer(), ToneCodec(), heads,
                  prepare=lambda text, language: text)


SURE = SamplingConfig(temperature=0, repetition_penalty=1)
LOW, HIGH = (VoicePrompt(letter_speaker(voice)) for voice in (0, 1))


def test_the_toy_reads(talker):
    for text in ("the sun", "tin", "sailors", "in turn"):
        for voice, number in ((LOW, 0), (HIGH, 1)):
            spoken = say(talker, text, voice, config=SURE)
            assert spoken.pieces[0].codes.ids.tolist() == letter_codes(text, number).tolist()
            assert spoken.pieces[0].codes.complete and not spoken.warnings


@pytest.mark.parametrize("text", ["the rails", "in turn", "the sun"])
def test_alignment_of_a_model_that_reads(talker, text):
    truth = np.repeat(np.arange(len(text)), [len(letter_codes(letter)) for letter in text])+1
    found = align_utterance(talker.model, letter_utterance(text), talker.heads)
    assert np.mean(np.abs(found.path-truth) <= 1) > .9
    assert found.attention.shape == (len(truth), len(text)+2)
    with pytest.raises(TTSError, match="best_heads"):
        align_utterance(talker.model, letter_utterance(text), ())


def test_words_of_a_long_text(talker):
    "Said in pieces, the words are where their tones are"
    text = "thunder sailors the sun in turn"
    spoken = say(talker, text, LOW, config=SURE, longest=9, shortest=0, pauses=(.2, .2, .2))
    assert [word.word for word in spoken.words] == text.split() and len(spoken.pieces) > 2
    assert all(a.end <= b.start+.05 for a, b in zip(spoken.words, spoken.words[1:]))
    for piece in spoken.pieces:
        codes = piece.codes.ids
        begin, end = (round(16000*s) for s in (piece.start, piece.start+len(codes)/25))
        heard = talker.codec.encode(spoken.audio[begin:end], 16000)
        assert np.mean(heard[1:-1] == codes[1:len(heard)-1]) > .95
        first = next(w for w in spoken.words if w.word == piece.text.split()[0])
        assert abs(first.start-piece.start) < .15


def test_streamed_sound_is_the_whole(talker):
    for every, context in ((1, 1), (4, 2), (9, 16)):
        pieces = list(stream_say(talker, "sailors", HIGH, config=SURE, every=every,
                                 context=context))
        whole = talker.codec.decode(letter_codes("sailors", 1))
        np.testing.assert_allclose(np.concatenate(pieces), whole, atol=1e-6)
    assert len(list(stream_say(talker, "sailors", HIGH, config=SURE, every=4, context=2))) > 3


def test_stream_of_a_codec_with_memory():
    "One that smears over three codes is met as soon as the context reaches as far; else nearly"
    rng = np.random.default_rng(0)
    table, smear = rng.standard_normal((20, 40)).astype(np.float32), np.hanning(3*40+1)/60
    def decode(ids): return np.convolve(table[ids].ravel(), smear, "same").astype(np.float32)
    ids = rng.integers(0, 20, 61)

    def error(context):
        stream = SoundStream(decode, 40, context, fade=10)
        pieces = [stream.add(ids[i:i+5], last=i+5 >= 61) for i in range(0, 61, 5)]
        found = np.concatenate(pieces)
        assert len(found) == 61*40
        return np.abs(found-decode(ids)).max()

    assert error(2) < 1e-6 < error(0)


def test_pieces_of_texts():
    text = "One. Two is a longer sentence, which goes on, and on.\n\nA new paragraph begins here."
    pieces = text_pieces(text, "en", longest=40, shortest=8)
    assert " ".join(piece.text for piece in pieces) == " ".join(text.split())
    assert max(len(piece.text) for piece in pieces) <= 40
    assert [piece.pause for piece in pieces][-1] == 0 and .7 in [piece.pause for piece in pieces]
    whole = text_pieces("Word. "*80, "en", longest=100, shortest=40)
    assert all(40 <= len(piece.text) <= 100 for piece in whole)
    assert cut_sentence("x"*99, 10) == ["x"*99]
    with pytest.raises(TTSError, match="nothing to say"): text_pieces(" \n\n ", "en")
    with pytest.raises(TTSError, match="50 to 10"): text_pieces("a", "en", longest=10, shortest=50)


def test_silences_are_as_long_as_asked():
    tone = np.sin(np.arange(8000)/5).astype(np.float32)
    begin, end = sound_bounds(np.pad(tone, (4000, 9000)), 16000)
    assert abs(begin-4000) <= 640 and abs(end-12000) <= 640
    assert sound_bounds(np.zeros(100), 16000) == (0, 0) == sound_bounds(np.zeros(0), 16000)
    audio, starts = join_sounds([tone, np.zeros(0), tone], [.5, .1, 0], 16000)
    assert len(audio) == 16000+9600 and starts == [0, 1., 1.1]
    assert not audio[8000:8000+9600].any() and np.abs(np.diff(audio)).max() < .25


def test_voice_of_a_recording(talker):
    codec = talker.codec
    audio = codec.decode(letter_codes("in the house on the rails", 1))
    def speaker(audio, rate): return letter_speaker(1)

    made = voice_prompt(audio, 16000, codec, speaker, seconds=1., most=20)
    assert made.prompt.tolist() == letter_codes("in the house on the rails", 1)[:20].tolist()
    assert voice_prompt(audio, 16000, codec).speaker.shape == (256,)
    for given, message in ((audio[:500], "half a second"),):
        with pytest.raises(TTSError, match=message): voice_prompt(given, 16000, codec)


def test_run_folder_is_checked(talker, tmp_path):
    run = tmp_path/"run"
    save_t3(talker.model, run/"model_final.safetensors", {"tokenizer": "of another run"})
    with pytest.raises(TTSError, match="--tokenizer"): open_talker(run)
    talker.tokenizer.save(run/"tokenizer.json")
    with pytest.raises(TTSError, match="--codec"): open_talker(run)
    with pytest.raises(TTSError): open_talker(run, codec="tones:nothing")
    with pytest.raises(TTSError, match="no such file"): open_talker(tmp_path/"nowhere")


def test_say_finds_all_in_the_run(talker, tmp_path, monkeypatch):
    "Tokenizer and codec by the run's own configuration; the fingerprints must be theirs"
    run, codec = tmp_path/"run", ToneCodec()
    opened = []
    monkeypatch.setattr("audiolab.tts.reading_aloud.open_codec",
                        lambda address, device: opened.append(address) or codec)
    notes = {"tokenizer": talker.tokenizer.fingerprint(), "codec": codec.fingerprint(),
             "heads": [list(head) for head in talker.heads]}
    save_t3(talker.model, run/"best_model.safetensors", notes)
    talker.tokenizer.save(tmp_path/"letters.json")
    (tmp_path/"codec.bin").write_bytes(b"")
    (run/"config.yaml").write_text(f"data: {{tokenizer: '{tmp_path/'letters.json'}'}}\n"
                                   f"validation: {{codec: 'mel:{tmp_path/'codec.bin'}'}}\n")
    found = open_talker(run)
    assert opened == [f"mel:{tmp_path/'codec.bin'}"] and found.heads == talker.heads
    assert found.tokenizer.fingerprint() == notes["tokenizer"] and found.prompt_seconds > 0
    file = save_t3(talker.model, tmp_path/"alone"/"t3.safetensors", {"prompts": 0})
    with pytest.raises(TTSError, match="--tokenizer"): open_talker(file)
    alone = open_talker(file, others=(str(tmp_path/"letters.json"), f"mel:{tmp_path/'codec.bin'}"))
    assert alone.prompt_seconds == 0 and len(alone.tokenizer) == len(talker.tokenizer)
    address = f"mel:{tmp_path/'codec.bin'}"
    file = save_t3(talker.model, tmp_path/"noted"/"t3.safetensors", {"codec_file": address})
    open_talker(file, tmp_path/"letters.json")
    assert opened[-1] == address
    out = tmp_path/"said.wav"
    monkeypatch.setattr("audiolab.tts.reading_aloud.prepare_text", lambda text, language: text)
    config = SayConfig("the sun", model=str(run), output=str(out), temperature=0)
    assert say_command(config) in (0, 3) and out.is_file()
    config.voice = str(out)  # its 256 numbers are not the 8 that the model knows
    with pytest.raises(TTSError, match="speaker"): say_command(config)
    save_t3(talker.model, run/"best_model.safetensors", notes | {"codec": "another"})
    with pytest.raises(TTSError, match="another codec"): open_talker(run)


def test_command(talker, tmp_path, caplog):
    out = tmp_path/"new"/"said.wav"
    config = SayConfig("the sun", output=str(out), temperature=0, repetition_penalty=1)
    with caplog.at_level(logging.INFO):
        assert speak(config, talker, config.sampling()) in (0, 3)
        config.stream, config.output = True, str(tmp_path/"streamed.wav")
        assert speak(config, talker, config.sampling()) == 0
        caplog.clear()
        config.max_tokens = 3
        assert speak(config, talker, config.sampling()) == 3  # as without --stream
        assert "'the sun': it became longer" in caplog.text
    assert out.is_file() and (tmp_path/"streamed.wav").is_file()
    assert language_of("", talker) is None
    (tmp_path/"text.txt").write_text("Rain. Sun.", encoding="utf-8")
    assert SayConfig(f"@{tmp_path/'text.txt'}").words() == "Rain. Sun."
    assert "cannot run" in SayConfig(f"@{tmp_path/'none.txt'}").plan()
    assert "say 1 pieces" in SayConfig("Rain.").plan()
    assert torch.is_grad_enabled()
