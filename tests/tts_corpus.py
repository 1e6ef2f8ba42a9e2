"A small corpus on a disk and a tokenizer of letters, for tests of what is made of them."
from pathlib import Path

import numpy as np

from audiolab.audio import write_audio
from audiolab.tts import Entry, write_table

RATE = 16_000


class Letters:
    "Ids are places in an alphabet"
    unknown_id = 1

    def __init__(self, first=2, alphabet="abcdefghijklmnopqrstuvwxyz .", tags=("en",)):
        self.first, self.alphabet, self.tags = first, alphabet, tags

    def encode(self, text, language=None):
        if language not in (None, *self.tags): raise ValueError(f"no [{language}]")
        places = [self.alphabet.find(letter) for letter in text.lower()]
        ids = [place + self.first if place >= 0 else self.unknown_id for place in places]
        return np.array([255, *ids, 0], np.int32)

    def fingerprint(self): return f"{self.first}{self.alphabet}"


def hum(number, seconds=1.2):
    "Sound that is different for each number"
    time = np.arange(int(seconds*RATE))/RATE
    return .5*np.sin(2*np.pi*(100 + 7*number)*time)*(1 + np.sin(9*time + number))/2


def make_corpus(folder, clips, voices=2, first=0, seconds=1.2):
    "Recordings `first` to `clips`, and a table of all"
    folder = Path(folder)
    (folder/"wavs").mkdir(parents=True, exist_ok=True)
    for number in range(first, clips):
        write_audio(folder/"wavs"/f"c{number}.wav", hum(number, seconds), RATE)
    lines = [Entry(f"c{number}", "", f"the words of clip {'abcdefghij'[number % 10]}",
                   f"v{number % voices}", "en") for number in range(clips)]
    write_table(folder, lines)
    return folder
