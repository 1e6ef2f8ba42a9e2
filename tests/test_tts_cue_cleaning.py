"Of cues only what one person says is kept, and what is left out has its reason."
import pytest

from audiolab.tts import (
    Cue, Subtitles, clean_cues, join_cues, known_labels, speaker_label, split_cue, without_tags,
)


def cleaned(*texts, **more):
    cues = [Cue(2*n, 2*n + 1.9, text, line=n + 1, **more) for n, text in enumerate(texts)]
    return clean_cues(Subtitles("srt", cues))


@pytest.mark.parametrize("text, said", [
    ("<i>One</i> <font color='#fff'>two</font>", "One two"), ("{\\an8\\pos(1,2)}One", "One"),
    ("<v Anna>One</v>", "One"), ("One &amp; two", "One & two"), ("One [sighs] two", "One two"),
    ("(door)\nOne", "One"), ("\u202bשלום\u202c", "שלום"), ("e\u0301te\u0301", "été"),
    ("3 < 5 and 7 > 2", "3 < 5 and 7 > 2"), ("می\u200cخواهم", "می\u200cخواهم"), ("  One\t two ", "One two")])
def test_what_is_for_the_eye_goes(text, said):
    assert without_tags(text) == said


@pytest.mark.parametrize("label", ["ANNA", "АННА", "አበበ", "小明", "أحمد", "Ο ΓΙΩΡΓΟΣ", "MAN 2", "Dr. Ruth"])
def test_names_of_speakers_in_any_script(label):
    mark = "፦" if label == "አበበ" else ":"
    found = cleaned(*[f"{label}{mark} Nein, nein."]*3)
    assert [(cue.text, cue.speaker) for cue in found.cues] == [("Nein, nein.", label)]*3


def test_what_only_looks_like_a_name_stays():
    texts = ["Remember: nothing.", "At 10:30, not later.", "He said: go."]
    assert known_labels(texts) == set() and [cue.text for cue in cleaned(*texts).cues] == texts
    assert speaker_label("10:30") is None and speaker_label("one two three four: five") is None


@pytest.mark.parametrize("text, code", [
    ("♪ La la ♪", "music"), ("# La la la #", "music"), ("♪", "music"), ("[door slams]", "note"), ("...", "note"),
    ("- Who?\n- Me.", "several_speakers"), ("ANNA: Who?\nBEN: Me.", "several_speakers"),
    ("{\\p1}m 0 0 l 9 9", "drawing")])
def test_what_is_no_voice_is_told(text, code):
    found = cleaned("One.", text)
    assert [out.code for out in found.rejected] == [code] and found.rejected[0].cue.line == 2
    assert [cue.text for cue in found.cues] == ["One."] and found.rejected[0].why


def test_nothing_is_lost_in_silence():
    texts = ["One.", "♪ La ♪", "[x]", "- A.\n- B.", "Two."]
    found = cleaned(*texts)
    assert len(found.cues) + len(found.rejected) == len(texts)


@pytest.mark.parametrize("gap, end, speaker, joined", [
    (.2, "and", "", 1), (.2, "and.", "", 2), (.4, "and", "", 2), (.2, "and", "B", 2), (-.5, "and", "", 2)])
def test_parts_of_a_sentence_are_joined(gap, end, speaker, joined):
    cues = [Cue(0, 2, f"I am {end}", "A"), Cue(2 + gap, 4, "I was.", speaker)]
    found = join_cues(cues, gap=.3)
    assert len(found) == joined and found[0].start == 0 and found[-1].end == 4
    assert " ".join(cue.text for cue in found) == f"I am {end} I was."


def test_joining_ends_at_the_longest():
    cues = [Cue(n, n + .95, "and") for n in range(30)]
    found = join_cues(cues, longest=5)
    assert max(cue.seconds for cue in found) <= 5
    assert sum(cue.text.count("and") for cue in found) == 30


def test_long_cues_are_cut_between_sentences():
    text = " ".join(f"Sentence number {n}." for n in range(10))
    parts = split_cue(Cue(10, 40, text), 8)
    assert " ".join(part.text for part in parts) == text
    assert max(part.seconds for part in parts) <= 8
    assert (parts[0].start, parts[-1].end) == (10, 40)
    assert all(a.end == b.start and a.text.endswith(".") for a, b in zip(parts, parts[1:]))
    assert split_cue(Cue(0, 30, "no end in sight"), 8) == [Cue(0, 30, "no end in sight")]


@pytest.mark.parametrize("text", ["{"*2000, "<"*2000, "["*2000, ":"*2000, "- "*1000, "a:"*999, "&#x110000;"])
def test_hostile_texts_end_in_an_answer(text):
    found = cleaned(text)
    assert len(found.cues) + len(found.rejected) == 1
