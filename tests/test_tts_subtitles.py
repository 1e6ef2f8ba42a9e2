"Subtitles in every encoding and of three kinds: nothing is lost in silence, nothing takes long, nothing breaks it."
import sys

import pytest
from subtitle_files import SAID, TORTURE, fuzzed

from audiolab.tts import (
    MAX_SUBTITLE_BYTES, Cue, TTSError, decode_subtitles, load_cues, parse_subtitles,
    read_subtitle_text,
)

LANGUAGES = {
    "cp1250": "Zażółć gęślą jaźń. Nie wiem, gdzie on jest, ale przyjdzie jutro.",
    "cp1251": "Я не знаю, где он сейчас, но завтра он придёт домой.",
    "cp1252": "¿Dónde está el niño? No lo sé, señor, quizás mañana vendrá.",
    "cp1253": "Δεν ξέρω πού είναι το παιδί, αλλά θα έρθει αύριο.",
    "cp1254": "Çocuğun nerede olduğunu bilmiyorum ama yarın gelecek, şüphesiz.",
    "cp1255": "אני לא יודע איפה הילד, אבל הוא יבוא מחר.",
    "cp1256": "لا أعرف أين الولد، لكنه سيأتي غدا.",
    "cp932": "少年がどこにいるのか分かりませんが、明日は来るでしょう。",
    "gb18030": "我不知道男孩在哪里，但他明天会来的。",
    "cp949": "소년이 어디 있는지 모르지만 내일 올 것이다."}


def srt(texts):
    return "\n".join(f"{n + 1}\n00:00:{n:02d},100 --> 00:00:{n:02d},900\n{text}\n"
                     for n, text in enumerate(texts))


@pytest.mark.parametrize("page", LANGUAGES)
def test_a_code_page_is_guessed_and_the_guess_is_told(tmp_path, page):
    path = tmp_path/"film.srt"
    path.write_bytes(srt([LANGUAGES[page]]*4).encode(page))
    found = load_cues(path)
    assert {cue.text for cue in found.cues} == {LANGUAGES[page]} and len(found.cues) == 4
    assert not found.sure and "a guess" in str(found)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("page", LANGUAGES)
def test_unicode_is_never_guessed(page, encoding):
    found = decode_subtitles(srt([LANGUAGES[page]]).encode(encoding))
    assert LANGUAGES[page] in found.text and found.sure


def test_what_the_user_says_beats_the_guess(tmp_path):
    path = tmp_path/"film.srt"
    path.write_bytes(srt(["Où est-il ?"]).encode("cp1252"))
    found = load_cues(path, "cp1252")
    assert found.cues[0].text == "Où est-il ?" and found.sure
    with pytest.raises(TTSError, match="film.srt: not utf-8"): load_cues(path, "utf-8")
    with pytest.raises(TTSError, match="knows no encoding 'cp7'"): load_cues(path, "cp7")


def test_one_lost_byte_costs_one_cue():
    raw = srt(["Où est-il, mon frère ?"]*10).encode().replace("ù".encode(), b"\xc3", 1)
    found = parse_subtitles(decode_subtitles(raw).text)
    assert len(found.cues) == 9 and [out.code for out in found.rejected] == ["damaged_letters"]


def test_mojibake_in_the_file_is_seen():
    text = "Où est-il, mon frère ?".encode().decode("cp1252")
    assert [out.code for out in parse_subtitles(srt([text])).rejected] == ["twice_encoded"]
    assert not parse_subtitles(srt(["São João, ação, Zażółć, déjà vu"])).rejected


def test_the_torture_file_gives_all_cues(tmp_path):
    (tmp_path/"film.srt").write_bytes(TORTURE.encode())
    found = load_cues(tmp_path/"film.srt")
    assert tuple(cue.text for cue in found.cues) == SAID and not found.rejected
    assert [(cue.start, cue.end) for cue in found.cues] == [(1, 2.5), (3, 4), (5.5, 6.12), (7, 8)]


def test_the_three_kinds_give_the_same_cues():
    head = "WEBVTT\r\n\r\nSTYLE\r\n::cue {}\r\n\r\nfirst"
    vtt = TORTURE.replace("\ufeff1", head).replace(",5 -", ".5 -")
    said = parse_subtitles(TORTURE).cues
    ass = "[Events]\nFormat: Start, End, Text\n" + "\n".join(
        "Dialogue: {}:{:02d}:{:05.2f},0:00:{:05.2f},{}".format(
            0, 0, cue.start, cue.end, cue.text.replace("\n", "\\N")) for cue in said)
    told = [[(cue.start, cue.end, cue.text) for cue in parse_subtitles(text).cues]
            for text in (TORTURE, vtt, ass)]
    assert told[0] == told[1] == told[2] and len(told[0]) == 4


@pytest.mark.parametrize("times, code", [
    ("00:00:09,000 --> 00:00:08,000", "backwards"), ("00:00:09,000 --> 00:00:09,000", "backwards"),
    ("00:00:0x,000 --> 00:00:09,000", "bad_time"), ("00:00:71,000 --> 00:01:12,000", "bad_time")])
def test_a_bad_cue_is_told_with_its_line(times, code):
    found = parse_subtitles(srt(["One."]) + f"\n2\n{times}\nTwo.\n\n3\n00:00:10,000 --> 00:00:11,000\nThree.\n")
    assert [cue.text for cue in found.cues] == ["One.", "Three."]
    assert [(out.code, out.cue.line) for out in found.rejected] == [(code, 6)]
    assert found.rejected[0].why


def test_a_cue_that_stands_there_twice_is_taken_once():
    found = parse_subtitles(srt(["One."]) + "\n" + srt(["One."]))
    assert len(found.cues) == 1 and found.rejected[0].code == "repeated"


def test_numbers_that_are_spoken_are_no_indices():
    found = parse_subtitles(srt(["In the year\n2024", "7"]))
    assert [cue.text for cue in found.cues] == ["In the year\n2024", "7"]


@pytest.mark.parametrize("text, says", [
    ("{0}{25}Hello", "MicroDVD"), ("<tt/>", "TTML"), ("nothing at all", "neither srt")])
def test_other_kinds_are_named(text, says):
    with pytest.raises(TTSError, match=says): parse_subtitles(text, "film.sub")


def test_files_that_are_no_text(tmp_path):
    path = tmp_path/"film.srt"
    with pytest.raises(TTSError, match="film.srt"): read_subtitle_text(path)
    for raw, says in ((b"", "is empty"), (bytes(range(256))*9, "is no text"),
                      (b"x"*(MAX_SUBTITLE_BYTES + 1), "more than 16 MiB")):
        path.write_bytes(raw)
        with pytest.raises(TTSError, match=says): load_cues(path)


def steps_of(call):
    "Lines of Python that a call runs through: a measure of its work that no other process disturbs."
    count = 0
    def trace(frame, event, value):
        nonlocal count
        count += event == "line"
        return trace
    before = sys.gettrace()
    sys.settrace(trace)
    try: call()
    finally: sys.settrace(before)
    return count


def test_work_grows_with_the_size_and_no_faster():
    few, many = (steps_of(lambda n=n: parse_subtitles(srt(["One."])*n)) for n in (40, 160))
    assert 3 < many/few < 5


@pytest.mark.parametrize("text", [
    "1"*400_000, "00:00:01,000 --> "*40_000, "00:00:01,000 --> 00:00:02,000\n" + "<i "*200_000,
    "00:00:01,000 --> 00:00:02,000" + " "*400_000, " "*400_000 + "-->", "0:"*200_000 + "-->",
    "[Events]\nDialogue: " + ","*400_000, "[Events]\n" + "Format:\n"*50_000,
    "WEBVTT\n" + "\n"*400_000])
def test_hostile_files_end_in_an_answer(text):
    try: found = parse_subtitles(text)
    except TTSError: return
    assert all(isinstance(cue, Cue) for cue in found.cues) and found.cues + found.rejected


def check_fuzzed(path, seed):
    path.write_bytes(fuzzed(seed))
    try: found = load_cues(path)
    except TTSError as error:
        assert str(path) in str(error)
        return 0
    assert all(0 <= cue.start < cue.end and cue.text for cue in found.cues)
    assert "\ufffd" not in "".join(cue.text for cue in found.cues)
    assert all(out.code and out.why for out in found.rejected)
    return len(found.cues)


def test_damaged_files(tmp_path):
    assert sum(check_fuzzed(tmp_path/"film.srt", seed) for seed in range(400)) > 100


@pytest.mark.slow
def test_ten_thousand_damaged_files(tmp_path):
    assert sum(check_fuzzed(tmp_path/"film.srt", seed) for seed in range(400, 10_400)) > 3000
