"Packed stores for the tests of them: items of sound and features, made by their number."
import numpy as np

from audiolab.data import PackedStore, PackedWriter

FIELDS = {"audio": ("int16", ()), "mel": ("float16", (4,))}
LEVEL = {"level": ("float32", (2,))}


def values(number):
    rng = np.random.default_rng(number)
    audio = rng.integers(-32768, 32768, 50 + number, dtype=np.int16)
    return {"audio": audio, "mel": rng.normal(size=(number % 7, 4)).astype(np.float16)}


def build(folder, count=10, **options):
    with PackedWriter(folder, FIELDS, {"sample_rate": 16_000}, {"a": "1"}, **options) as writer:
        for number in range(writer.count, count):
            writer.add(f"item {number}", values(number), {"text": f"n° {number}", "input": "1"})
    return PackedStore(folder)


def levels(item):
    audio = item["audio"]
    return {"level": np.array([[np.abs(audio).max(), audio.std()]], np.float32)}
