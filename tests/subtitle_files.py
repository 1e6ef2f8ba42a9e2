"Subtitle files as they are found, and as an enemy would write them."
import random

SAID = ("Hello, who is there?", "No index.", "- Two lines.\n- And 2024", "The end.")
TORTURE = ("\ufeff1\r\n00:00:01.000 --> 00:00:02.500 X1:201 X2:516 Y1:397 Y2:423\r\n"
           "Hello, who is there?\r\n\r\n00:00:03,000 --> 00:00:04,000\r\nNo index.\r\n\r\n"
           "3\r\n0:00:05,5 --> 0:00:06,12\r\n- Two lines.\r\n- And 2024\r\n\r\n"
           "4\r\n00:00:07,000 --> 00:00:08,000\r\nThe end.\r\n")
PIECES = ("00:00:01,000", " --> ", "00:00:02,000", "\n", "\r\n", "\r", "\n\n", "1", "WEBVTT", "NOTE ", "<i", "<", ">",
          "{", "}", "[Events]\n", "Dialogue: ", "Format: Start, End, Text\n",
          ",", "\\N", "\ufeff", "ሰላም",
          "é", "�", "♪", "-->", ":", "99999999999", "0:0:0", "٠٠:٠٠", "\x00", "\x85", "\u2028", "[Script Info]\n", "STYLE\n")


def fuzzed(seed):
    "Bytes that begin as subtitles and go astray."
    chance = random.Random(seed)
    text = "".join(chance.choices(PIECES, k=chance.randint(0, 80)))
    if chance.random() < .5: text = TORTURE
    raw = bytearray(text.encode(chance.choice(("utf-8", "utf-16", "utf-16-le", "utf-8-sig"))))
    for _ in range(chance.randint(0, 12)):
        if not raw: break
        at = chance.randrange(len(raw))
        kind = chance.randrange(4)
        if kind == 0: raw[at] = chance.randrange(256)
        elif kind == 1: del raw[at:at + chance.randint(1, 9)]
        elif kind == 2: raw[at:at] = chance.choice(PIECES).encode()
        else: raw[at:at] = raw[:chance.randint(0, 60)]
    return bytes(raw)
