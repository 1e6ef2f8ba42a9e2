"Amharic as it is said: numbers, marks, letters, abbreviations, and texts that nobody expects."
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from audiolab.tts import (
    AMHARIC_TABLE, HOMOPHONES, KHA_LIKE_HA, LARGEST, SYLLABLES, TTSError, normalise_text,
    prepare_text, read_ethiopic, spell_amharic, split_sentences, write_ethiopic)

SUPPLEMENTS = [(0x1380, 0x139A), (0x2D80, 0x2DDF), (0xAB01, 0xAB2F), (0x1E7E0, 0x1E7FF)]
PIECES = ["በ", "የ", "ስለ", "ገጽ", "ት/ቤት", "ዶ/ር", "ዓ.ም.", "እ.ኤ.አ", "ገ/ሚካኤል", "፡", "፡፡", "::", ":",
          "።", "-", ".", "፣",
          " ", "  ", "\n", "12", "1983", "፲፱፻፹፫", "፩፪", "½", "²", "٣", "ኛ", "ቱ", "ዎቹ", "%", "$",
          ",", "/", "⁄", "ሠ", "ሐ",
          "ፀ", "ኸ", "ዓ", "abc", "\u200b", "\ufeff", "ⶀ", "ꬁ", "፟", "«", "»", "<<", ">>", "‹‹",
          "፠", "፨", "?", "!"]
mixed = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=3)), max_size=12).map("".join)
typed = st.lists(st.sampled_from(PIECES), max_size=14).map("".join)


def has_digit(text): return any(c.isdigit() or "፩" <= c <= "፼" for c in text)


@pytest.mark.parametrize("number, words", [
    (0, "ዜሮ"), (10, "አሥር"), (11, "አሥራ አንድ"), (19, "አሥራ ዘጠኝ"), (20, "ሃያ"), (99, "ዘጠና ዘጠኝ"),
    (100, "መቶ"), (200, "ሁለት መቶ"),
    (115, "አንድ መቶ አሥራ አምስት"), (1983, "አንድ ሺህ ዘጠኝ መቶ ሰማንያ ሦስት"), (100_000, "አንድ መቶ ሺህ"),
    (1_000_000, "አንድ ሚሊዮን"),
    (2_500_000, "ሁለት ሚሊዮን አምስት መቶ ሺህ"), (10**9, "አንድ ቢሊዮን"), ("3.05", "ሦስት ነጥብ ዜሮ አምስት"),
    ("0911", "ዜሮ ዘጠኝ አንድ አንድ")])
def test_numbers(number, words):
    assert spell_amharic(number) == words


@pytest.mark.parametrize("number, words", [
    (1, "አንደኛ"), (3, "ሦስተኛ"), (9, "ዘጠነኛ"), (10, "አሥረኛ"), (21, "ሃያ አንደኛ"), (100, "መቶኛ"),
    (1000, "አንድ ሺኛ"),
    (10**6, "አንድ ሚሊዮነኛ")])
def test_ordinals(number, words):
    assert spell_amharic(number, "ordinal") == words
    assert normalise_text(f"{number}ኛ", homophones=False).text == words


@given(st.integers(0, LARGEST))
@settings(max_examples=200, deadline=None)
def test_a_number_has_words_of_its_own(number):
    words = spell_amharic(number)
    assert re.fullmatch("[ሀ-ፚ]+( [ሀ-ፚ]+)*", words)
    assert spell_amharic(str(number)) == words == spell_amharic(f"{number:,}")


def test_no_two_numbers_sound_alike():
    folded = [normalise_text(spell_amharic(n)).text for n in range(4_000)]
    assert len(set(folded)) == len(folded)


@pytest.mark.parametrize("number", [-1, "x", "", "1.", "٣", float("nan"), float("inf"),
    LARGEST + 1])
def test_what_is_no_number(number):
    with pytest.raises(TTSError): spell_amharic(number)


@given(st.integers(1, 10**12))
@settings(max_examples=200, deadline=None)
def test_ethiopic_numerals_there_and_back(number):
    assert read_ethiopic(write_ethiopic(number)) == number
    said = normalise_text(write_ethiopic(number)).text
    assert said == normalise_text(str(number)).text


@pytest.mark.parametrize("numeral", ["", "፩፪", "፲፲", "፩፲", "a", "1"])
def test_numerals_without_meaning(numeral):
    with pytest.raises(TTSError, match="no Ethiopic numeral"): read_ethiopic(numeral)


@pytest.mark.parametrize("text, said", [
    ("በ1983", "በአንድ ሺህ ዘጠኝ መቶ ሰማንያ ሦስት"), ("ስለ5ቱ", "ስለአምስቱ"), ("በ5ኛው", "በአምስተኛው"), ("5 ኛ", "አምስተኛ"),
    ("5ተኛ", "አምስተኛ"), ("90ዎቹ", "ዘጠናዎቹ"), ("9ኙ", "ዘጠኙ"), ("10ብር", "አሥር ብር"), ("ገጽ5", "ገጽ አምስት"),
    ("5kg", "አምስት kg"),
    ("A4", "A አራት"), ("1,250.5", "አንድ ሺህ ሁለት መቶ ሃምሳ ነጥብ አምስት"), ("1,25", "አንድ,ሃያ አምስት"),
    ("½", "ግማሽ"),
    ("2¾", "ሁለት ከሦስት አራተኛ"), ("10²", "አሥር ሁለት"), ("⑫", "አሥራ ሁለት"), ("٣", "ሦስት"),
    ("50%", "ሃምሳ በመቶ"), ("$5", "አምስት ዶላር"),
    ("5 $10", "አምስት አሥር ዶላር"), ("12/3", "አሥራ ሁለት/ሦስት"), ("3:30", "ሦስት:ሠላሳ"), ("በ2ው", "በሁለትው"),
    ("፩ኛ", "አንደኛ")])
def test_numbers_in_a_text(text, said):
    assert normalise_text(text, homophones=False).text == said


@pytest.mark.parametrize("text, year", [
    ("በ1983 ዓ.ም.", True), ("1983ዓ.ም", True), ("በ፲፱፻፹፫ ዓመተ ምህረት", True), ("እ.ኤ.አ. በ1983", True),
    ("በ1983 ሰዎች", False),
    ("1,983 ዓ.ም.", False), ("1983% ዓ.ም.", False)])
def test_years_are_said_as_years(text, year):
    assert ("አሥራ ዘጠኝ መቶ" in normalise_text(text, homophones=False).text) == year
    assert spell_amharic(1100, "year") == "አሥራ አንድ መቶ"


@pytest.mark.parametrize("text, said", [
    ("በት/ቤቶቹ", "በትምህርት ቤቶቹ"), ("የዶ/ር አለሙ", "የዶክተር አለሙ"), ("አ.ም", "ዓመተ ምህረት"), ("ዓ. ም.", "ዓመተ ምህረት"),
    ("ወ/ት", "ወይዘሪት"), ("ወ/ትንሣኤ", "ወልደ ትንሣኤ"), ("ክስት/ቤት", "ክስት/ቤት"), ("ሀ/ አንድ", "ሀ/ አንድ"),
    ("ገ/ ", "ገ/"),
    ("1983ዓ.ም.", "አሥራ ዘጠኝ መቶ ሰማንያ ሦስት ዓመተ ምህረት"), ("እ.ኤ.አ", "እንደ ኤውሮፓ አቆጣጠር")])
def test_abbreviations(text, said):
    assert normalise_text(text, homophones=False).text == said


def test_letters_that_sound_alike():
    for letter in SYLLABLES:
        said = normalise_text(letter).text
        assert said == HOMOPHONES.get(letter, letter) and normalise_text(said).text == said
    assert normalise_text("ኸኻ").text == "ኸኻ"
    assert normalise_text("ኸኻ", homophones=HOMOPHONES | KHA_LIKE_HA).text == "ሀሀ"
    assert normalise_text("ሠው", homophones=False).text == "ሠው"


def test_the_original_can_be_rebuilt_from_the_changes():
    text = "ዶ/ር  ኃይሉ በ፲፱፻፹፫ ዓ.ም. <<50%>> ፡፡ 2½\u200bሠው"
    result = normalise_text(text)
    rebuilt, at = "", 0
    for change in result.changes:
        assert text[change.start:change.start + len(change.before)] == change.before
        rebuilt += text[at:change.start] + change.after
        at = change.start + len(change.before)
    assert rebuilt + text[at:] == result.text and result.original == text


@given(st.one_of(mixed, typed))
@settings(max_examples=400, deadline=None)
@example("5ኛዶ/ር").via("a space that the number adds")
@example("፡ ፡፡:-1⁄2½²")
@example("₁₂፩")
def test_normal_is_normal(text):
    result = normalise_text(text)
    assert not has_digit(result.text)
    again = normalise_text(result.text)
    assert (again.text, again.changes) == (result.text, ())
    rebuilt, at = "", 0
    for change in result.changes:
        rebuilt += text[at:change.start] + change.after
        at = change.start + len(change.before)
    assert rebuilt + text[at:] == result.text


@given(st.one_of(mixed, typed))
@settings(max_examples=200, deadline=None)
def test_sentences_lose_nothing(text):
    sentences = split_sentences(text)
    assert "".join("".join(sentences).split()) == "".join(text.split())
    assert all(s and s == s.strip() for s in sentences)


@pytest.mark.parametrize("text", ["«ሰላም»", "<<ሰላም>>", "‹‹ሰላም››", "“ሰላም”", "《ሰላም》"])
def test_quotes_are_those_that_a_base_knows(text):
    assert prepare_text(text + " አለ") == '"ሰላም" አለ።'


def test_supplements_of_the_script_pass():
    for first, end in SUPPLEMENTS:
        text = "".join(map(chr, range(first, end)))
        assert normalise_text(f"ሰላም {text}።").text == f"ሰላም {text}።"
        assert prepare_text(f"5{text}").startswith("አምስት ")
    assert normalise_text("አለ፟").text == "አለ፟"  # a mark of length stays


def test_every_character_passes():
    for start in range(0, 0x20000, 8192):  # no digit is in a later plane
        text = "ሰ".join(map(chr, range(start, start + 8192)))
        assert not has_digit(normalise_text(text).text)


@pytest.mark.parametrize("text, sentences", [
    ("በ1983 ዓ.ም. ተወለደ። አደገ፧ ሄደ!", ["በ1983 ዓ.ም. ተወለደ።", "አደገ፧", "ሄደ!"]),
    ("እ.ኤ.አ. በ2016 ነው፡፡ ሰላም::", ["እ.ኤ.አ. በ2016 ነው፡፡", "ሰላም::"]),
    ("«ማን ነው?» አለ።", ["«ማን ነው?»", "አለ።"]), ("አንድ\n\nሁለት", ["አንድ", "ሁለት"]),
    ("ነው. እኔ. 3.5 ነው.", ["ነው.", "እኔ.", "3.5 ነው."]),
    ("ዋጋው 3.50. ነው።", ["ዋጋው 3.50.", "ነው።"]), ("", []), ("።", ["።"]), ("ምን?! እ", ["ምን?!", "እ"])])
def test_sentences(text, sentences):
    assert split_sentences(text) == sentences


def test_numbers_agree_with_num2words_where_it_works():
    num2words = pytest.importorskip("num2words", reason="optional: needs num2words").num2words
    spellings = {"አምሳ": "ሃምሳ", "ስድሳ": "ስልሳ", "ሰማኒያ": "ሰማንያ"}  # the same words, written otherwise
    broken = []
    for number in range(2000):
        try: words = num2words(number, lang="am").split()
        except TypeError: broken.append(number)
        else:
            theirs = " ".join(spellings.get(word, word) for word in words)
            assert normalise_text(theirs).text == normalise_text(spell_amharic(number)).text
    assert broken in ([], list(range(1100, 2000)))


def test_the_table_knows_what_it_writes():
    said = "".join(AMHARIC_TABLE.abbreviations.values()) + spell_amharic("9876543210.5", "ordinal")
    assert set(said) <= AMHARIC_TABLE.letters | {" "}
