"""Amharic front ends on the same lines: numbers, spellings, sentences, and what each costs, as a table in Markdown.

    python benchmarks/amharic.py

Peers are `num2words` (numbers), `amseg` and `amharicNLP` (spellings and sentences); one that is not installed has a dash.
"""
import importlib.util
import sys
import time
import types

from audiolab.tts import normalise_text, spell_amharic, split_sentences

ALIKE = "ሠላም ሰላም|ዓለም አለም|ፀሐይ ጸሀይ|ኃይል ሀይል|ሕዝብ ህዝብ|ሥራ ስራ|ዐይን አይን|ፅሑፍ ጽሁፍ|ንጉሥ ንጉስ|ሃገር ሀገር|ኅብረት ህብረት|ዕለት እለት"
APART = "ዲን ድን|ሺህ ሽህ|ጄል ጀል|ሼክ ሸክ|ኸረ ሀረ|ጌታ ጉታ|ሱፍ ሰፍ|ዘር ዛር|ቤት በት|ኋላ ሁላ|ዉል ወል|መላ ማላ"
LINES = [
    "በ1983 ዓ.ም. 250 ሰዎች ነበሩ።", "እ.ኤ.አ. በ2016 ዓ.ም 3ኛው ዓመት", "፲፱፻፹፫ ዓመተ ምህረት", "ዋጋው 1,250.50 ብር ነው፡፡",
    "ዶ/ር አለሙ እና ወ/ሮ ሠናይት ት/ቤት ሄዱ።", "ከ90ዎቹ ወዲህ 50% ጨመረ", "ገጽ ½ እና ②", "ሰላም፡ለዓለም፡፡"]
SENTENCES = [
    ["በ1983 ዓ.ም. ተወለደ።", "አደገ።"],
    ["እ.ኤ.አ. በ2016 ነው።", "አዎ!"], ["ማን ነው፧", "እኔ ነኝ።"], ["ሄደ፡፡", "መጣ፡፡"],
    ["ዶ/ር አለሙ መጣ።", "ተቀመጠ።"], ["ዋጋው 3.5 ነው።", "ውድ ነው።"],
    ["«ማን ነው?»", "አለ።"], ["ነው.", "እሺ."],
    ["አንድ፤ ሁለት፥ ሦስት።", "አራት።"]]


for unneeded in "pytesseract", "pdf2image":  # amseg reads scanned pages too, and imports them
    if importlib.util.find_spec(unneeded) is None:
        sys.modules[unneeded] = types.SimpleNamespace(convert_from_bytes=None)


def optional(module, name):
    "What a module calls by a name; None where the module is not installed"
    try: return getattr(importlib.import_module(module), name)
    except ImportError: return None


def front_ends():
    "{name: (number -> words, text -> text, text -> sentences)}, None for what it has not or is not installed"
    num2words = optional("num2words", "num2words")
    amseg = optional("amseg.amharicNormalizer", "AmharicNormalizer")
    segmenter = optional("amseg.amharicSegmenter", "AmharicSegmenter")
    return {
        "audiolab": (spell_amharic, lambda text: normalise_text(text).text, split_sentences),
        "num2words": (num2words and (lambda n: num2words(n, lang="am")), None, None),
        "amseg": (None, amseg and amseg.normalize,
                  segmenter and segmenter([], []).tokenize_sentence),
        "amharicNLP": (None, optional("amharicNLP", "normalize"),
                       optional("amharicNLP", "split_sentences"))}


def is_amharic(words): return all(c == " " or "ሀ" <= c <= "ፚ" for c in words)


def said(spell, numbers):
    "How many of the numbers are said, in Amharic letters only"
    good = 0
    for number in numbers:
        try: good += is_amharic(spell(number))
        except TypeError: pass
    return good


def pairs(text): return [pair.split() for pair in text.split("|")]


def has_digit(text): return any(c.isdigit() or "፩" <= c <= "፼" for c in text)


def cost(function, rounds=200):
    "CPU microseconds a line"
    began = time.process_time()
    for _ in range(rounds):
        for line in LINES: function(line)
    return f"{(time.process_time() - began) / rounds / len(LINES) * 1e6:.0f}"


def numbers_row(spell):
    if not spell: return ["-", "-"]
    large = [10**power + more for power in (6, 7, 9) for more in (0, 5)]
    return [f"{said(spell, range(10_000)) / 100:.1f} %", f"{said(spell, large)} of {len(large)}"]


def text_row(normalise):
    if not normalise: return ["-"] * 5
    alike = sum(normalise(a) == normalise(b) for a, b in pairs(ALIKE))
    apart = sum(normalise(a) != normalise(b) for a, b in pairs(APART))
    first = [normalise(line) for line in LINES]
    kept = sum(normalise(line) == line for line in first)
    digits = sum(map(has_digit, first))
    return [f"{alike} of {len(pairs(ALIKE))}", f"{apart} of {len(pairs(APART))}",
            f"{digits} of {len(LINES)}", f"{kept} of {len(LINES)}", cost(normalise)]


def sentences_row(split):
    if not split: return ["-"]
    right = 0
    for sentences in SENTENCES:
        try: right += [s.strip() for s in split(" ".join(sentences))] == sentences
        except Exception: pass  # a peer's fault is a wrong answer
    return [f"{right} of {len(SENTENCES)}"]


def main():
    heads = ["", "0-9999 said", "millions said", "same words become one", "other words stay two",
             "lines with digits left", "lines that stay", "CPU us a line", "texts split rightly"]
    print("|" + "|".join(heads) + "|\n|" + "---|" * len(heads))
    for name, (spell, normalise, split) in front_ends().items():
        row = [name, *numbers_row(spell), *text_row(normalise), *sentences_row(split)]
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__": main()
