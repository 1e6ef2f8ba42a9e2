"Small runs of T3 for tests: a corpus as loud as its letters say, its cache, settings."
import numpy as np
from run_remains import fit_until

from audiolab.audio import write_audio
from audiolab.tts import as_tts_config, build_cache, Entry, train_tokenizer, tts_trainer
from audiolab.tts.clip_tokens import LoudnessCodec

TEXTS = [f"{a} {b}" for a in ("selam", "dehna", "buna", "wuha")
         for b in ("new", "neh", "alew", "yelem")]


def clip(folder, number, language="am", texts=TEXTS):
    "An entry and its sound: noise, for each letter as loud as it is far in the alphabet"
    text, voice = texts[number % len(texts)], "ab"[number % 2]
    letters = np.maximum(np.frombuffer(text.encode(), np.uint8) - 96., 0)
    noise = np.random.default_rng(number).standard_normal(640*len(letters))
    path = folder/f"{language}{number}.wav"
    write_audio(path, (np.repeat(letters/30, 640)*noise*.3).astype(np.float32).clip(-1, 1), 16000)
    return Entry(f"{language}/{number}", str(path), text, voice, language)


def small_cache(folder, count=64, language="am", tokenizer=None, texts=TEXTS, codes=64):
    "A folder with tokenizer.json, and a cache named as the language"
    folder.mkdir(parents=True, exist_ok=True)
    if tokenizer is None:
        tokenizer = train_tokenizer(TEXTS, "char", language="am", output=folder/"tokenizer.json")
    entries = [clip(folder, number, language, texts) for number in range(count)]
    build_cache(entries, tokenizer, LoudnessCodec(codes), folder/(language or "plain"))
    return folder


def settings(corpus, folder, caches=("am",), **training):
    "Of a run that is over soon, with hidden texts, prompts and dropout"
    usual = {"tokens": 400, "device": "cpu", "epochs": 2, "learning_rate": 4e-3, "log_every": 1,
             "save_every": "3 steps", "sample_every": "never", "keep_last": 0}
    return {"data": {"caches": [str(corpus/name) for name in caches], "val_ratio": .25, "full": 0,
                     "tokenizer": str(corpus/"tokenizer.json")},
            "model": {"small": {"width": 32, "layers": 2, "heads": 2}},
            "validation": {"n_samples": 0}, "training": usual | training,
            "paths": {"output": str(folder), "use_tensorboard": False}}


def changed(given, **sections):
    "Settings with some sections changed"
    return given | {name: given.get(name, {}) | more for name, more in sections.items()}


def fit(given, resume=None, listeners=()):
    return tts_trainer(as_tts_config(given), listeners).fit(resume)


def stopped_at(given, step, resume=None):
    "A run that is asked to stop after a step"
    return fit_until(tts_trainer(as_tts_config(given)), step, resume)
