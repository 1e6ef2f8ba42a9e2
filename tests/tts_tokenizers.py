"A stand-in for the released tokenizer of 2,454 rows, whose file is not at hand, and lines of Amharic."
import random
import string

from audiolab.tts import TextTokenizer, TokenizerLayout, train_tokenizer

LANGUAGES = ("ar da de el en es fi fr he hi it ja ko ms nl no pl pt ru sv sw tr zh").split()
UNUSED = "bg bn ca cs fa hu id ro ta te th uk ur vi".split()  # tags that no weights were taught
SPECIAL = {"[STOP]": 0, "[UNK]": 1, "[SPACE]": 2, "[START]": 255}
RANGES = [(0x21, 0x40), (0x5b, 0x7e), (0xa1, 0xbf), (0x300, 0x33f), (0x3b1, 0x3c9),
          (0x430, 0x44f), (0x5d0, 0x5ea), (0x621, 0x652), (0x900, 0x96f),
          (0x1100, 0x1112), (0x1161, 0x1175), (0x11a8, 0x11c2), (0x3041, 0x3096),
          (0x30a1, 0x30fa), (0x2018, 0x201d)]
ENGLISH = ("the quick brown fox jumps over the lazy dog and then the other dogs run through this "
           "thing that they were thinking about when nothing else was to bring in spring").split()


def _characters():
    "What the released table can be expected to know once a text is lower case and decomposed"
    return [chr(code) for first, last in RANGES for code in range(first, last + 1)]


def _merges(count):
    "Pairs of Latin letters: those of a trained tokenizer, then any, each making something new"
    found = list(train_tokenizer(ENGLISH*3, "bpe", None, "en").layout.merges)
    made, rng = {a + b for a, b in found}, random.Random(0)
    parts = list(string.ascii_lowercase)
    while len(found) < count:
        left, right = rng.choice([*parts, *sorted(made)]), rng.choice(parts)
        if len(left) < 5 and left + right not in made:
            found.append((left, right))
            made.add(left + right)
    return found


def stand_in(rows=2454):
    "A tokenizer of the layout of the released file: what is not known of it is filled with merges"
    added = [*SPECIAL, "[PAD]", "[SEP]", "[CLS]", "[MASK]", *(f"[{c}]" for c in LANGUAGES + UNUSED),
             *(f"[cj_{c}]" for c in string.ascii_lowercase + "0123456789.")]
    tokens = list(dict.fromkeys([*added, *_characters()]))
    merges = _merges(rows - len(tokens))
    tokens = [t for t in [*tokens, *("".join(pair) for pair in merges)] if t not in SPECIAL]
    free = (row for row in range(rows) if row not in SPECIAL.values())
    table = SPECIAL | dict(zip(tokens, free, strict=False))
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    marks = [{"id": table[t], "content": t, **flags, "special": True} for t in added]
    layout = TokenizerLayout(table, merges, marks, pre_tokenizer={"type": "Whitespace"})
    return TextTokenizer(layout, f"base-{rows}.json")


WORDS = ("ሰላም ለዓለም እንዴት ነህ ደህና ነኝ አመሰግናለሁ ዛሬ ጥሩ ቀን ነው ኢትዮጵያ ውስጥ ብዙ ቋንቋዎች ይነገራሉ አዲስ አበባ "
         "ዋና ከተማ ናት ልጆቹ ወደ ትምህርት ቤት ሄዱ ውሃ እና ዳቦ ፈልጋለሁ መጽሐፍ ማንበብ እወዳለሁ ቡና መጠጣት ትወዳለች ገበያ "
         "ነገ እንገናኛለን ጓደኛዬ መኪና ገዛ ሙዚቃ ሰማን ተራራው ረጅም ወንዙ ሰፊ").split()


def amharic_lines(count=263, seed=0):
    "Lines such as a user's, always the same"
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(3, 9))) + rng.choice("።?!")
            for _ in range(count)]
