"Texts before a tokenizer: tables, English, marks that the base knows, what a corpus covers."
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiolab.measure import normalise_words
from audiolab.tts import (
    ENGLISH_TABLE, LANGUAGES, LanguageTable, TTSError, coverage, language_table, normalise_text,
    prepare_text, punc_norm, split_sentences)


class Letters:
    "A tokenizer that knows some letters."
    def __init__(self, letters): self.letters = letters

    def unknown_characters(self, texts, language):
        return Counter(c for c in "".join(texts) if c not in self.letters)

    def unknown_share(self, texts, language):
        return self.unknown_characters(texts, language).total() / len("".join(texts))


@pytest.mark.parametrize("text, said", [
    ("Dr. Who, Mr. X and Mrs. Y", "Doctor Who, Mister X and Missus Y"),
    ("the 1st, 2nd, 3rd, 4th", "the first, second, third, fourth"),
    ("20th 21st 12th 100th", "twentieth twenty first twelfth one hundredth"),
    ("$1,250.50", "one thousand two hundred fifty point five zero dollars"),
    ("50% of 7", "fifty percent of seven"), ("A4 3D 10-year", "A four three D ten-year"),
    ("007", "zero zero seven"),
    ("e.g. this, i.e. that, etc.", "for example this, that is that, et cetera"),
    ("R&D", "R and D"), ("½", "one⁄two"),
    ("ISO 9001", "ISO nine thousand one"), ("Dr No", "Dr No"), ("a\u200bb", "ab")])
def test_english(text, said):
    result = normalise_text(text, "en")
    assert result.text == said and normalise_text(said, "en").changes == ()


@given(st.text(st.sampled_from("0123456789.,%$ab&²½٣⑩፩ -'stndrh"), max_size=20))
@settings(max_examples=200, deadline=None)
def test_english_leaves_no_digit(text):
    said = normalise_text(text, "en").text
    assert not any(c.isdigit() for c in said)
    assert normalise_text(said, "en").text == said


def test_english_numbers_are_those_of_the_measure():
    for number in ("0", "13", "1,250", "3.14", "0100", "1000000000000000"):
        assert normalise_text(number, "en").text.split() == normalise_words(number)


def test_capitals_and_marks_stay():
    text = "He SAID: “No!” — twice; (why?)"
    assert normalise_text(text, "en").text == text and normalise_text(text, "en").changes == ()


@pytest.mark.parametrize("text, sentences", [
    ("Dr. J. Smith came. He left.", ["Dr. J. Smith came.", "He left."]),
    ("It was 3.5. Then", ["It was 3.5.", "Then"]),
    ("He said \"No.\" She left!", ["He said \"No.\"", "She left!"]),
    ("approx. five", ["approx. five"]),
    ("Really?! Yes", ["Really?!", "Yes"]), ("one\ntwo.", ["one", "two."])])
def test_english_sentences(text, sentences):
    assert split_sentences(text, "en") == sentences


def test_a_language_without_a_table_passes_through():
    text = "Größe 5 € — z.B. ሠላም 10²"
    assert normalise_text(text, "de") == (text, (), text)
    assert split_sentences("元気？はい。", "ja") == ["元気？", "はい。"]


@pytest.mark.parametrize("language", ["", "[am]", "a", 5, None, "am "])
def test_what_is_no_language(language):
    with pytest.raises(TTSError, match="no code of a language"): language_table(language)


def test_another_language_is_one_table(monkeypatch):
    table = LanguageTable("xx", homophones={"c": "k"}, abbreviations={"k.": "kilo"}, full_stop="|",
                          sentence_ends=("|",), prefixes=("o",))
    assert normalise_text("oc. cat", table).text == "okilo kat"
    assert prepare_text("cat", table) == "Kat|" and prepare_text("cat|", table) == "Kat|"
    monkeypatch.setitem(LANGUAGES, "xx", table)
    assert split_sentences("a| b. c", "xx") == ["a|", "b. c"]
    assert coverage("cat", replace(table, letters=frozenset("ak"))).strange == Counter("t")


@pytest.mark.parametrize("text", [None, 5, b"text", ["text"]])
def test_what_is_no_text(text):
    with pytest.raises(TTSError, match="is no text"): normalise_text(text)


def test_an_empty_abbreviation_is_refused():
    with pytest.raises(TTSError, match="everywhere"): normalise_text("text", extra={"": "x"})


@pytest.mark.parametrize("text, said", [  # what the released cleaning makes of them
    ("hello", "Hello."), ("Hello  world ", "Hello world."), ("a… b", "A,  b."),
    ("one: two; three", "One, two,  three."),
    ("x – y", "X - y."), ("“a” ‘b’", "\"a\" 'b'."), ("a , b", "A, b."), ("ok-", "Ok-"),
    ("wait...", "Wait,"), ("你好。", "你好。"),
    ("what?", "What?"), ("a - b", "A, b.")])
def test_marks_as_the_base_knows_them(text, said):
    assert punc_norm(text) == said


@pytest.mark.parametrize("text, said", [
    ("ሰላም።", "ሰላም።"), ("ሰላም", "ሰላም።"), ("ማነው፧", "ማነው፧"), ("ሰላም፡፡", "ሰላም።"), ("ሰላም!", "ሰላም!"),
    ("ቀን፦", "ቀን፦"), ("ሰላም.", "ሰላም.")])
def test_an_ethiopic_full_stop_is_an_end(text, said):
    assert prepare_text(text) == said and prepare_text(said) == said


@pytest.mark.parametrize("text", ["", " ", "።", "…!", "\u200b", "፡፡"])
def test_nothing_to_say_is_an_error(text):
    with pytest.raises(TTSError, match="nothing to say"): prepare_text(text)


def test_lines_become_one():
    assert prepare_text("ሰላም\n ለዓለም") == "ሰላም ለአለም።"


def test_coverage_counts_what_is_said():
    report = coverage(["ሠላም 5", "☃ x"], "am")
    assert report.strange == Counter("☃x") and "ሰ" not in report.absent and "ሠ" not in report.absent
    assert report.changes == Counter({"letter": 1, "number": 1}) and report.unknown_share is None
    assert report.strange_share == 2 / report_letters(report)
    assert coverage(["ሠላም"], prepared=True).counts["ሠ"] == 1


def report_letters(report): return sum(n for c, n in report.counts.items() if not c.isspace())


def test_too_much_that_is_strange_or_unknown_stops():
    with pytest.raises(TTSError, match="strange.*SNOWMAN"): coverage("ሰ☃").check()
    with pytest.raises(TTSError, match="tokens are unknown.*ETHIOPIC SYLLABLE LAA"):
        coverage("ሰላም", tokenizer=Letters("ሰም")).check()
    good = coverage(["ሰላም"], tokenizer=Letters("ሰላም"))
    assert good.check() is good and good.unknown_share == 0


def test_no_texts_are_an_error():
    with pytest.raises(TTSError, match="no texts"): coverage([])


def test_a_report_is_safe_to_show():
    report = coverage(["<script>alert(1)</script>"], ENGLISH_TABLE)
    assert "<script>" not in report._repr_html_() and "letters seen" in str(report)
    assert "<script>" not in normalise_text("<script>5", "en")._repr_html_()
    assert coverage(["ab"], "xx")._repr_html_() and coverage([""], "am").strange_share == 0
