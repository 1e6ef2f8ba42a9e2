"Sounds for tests of the codec's data: tones whose number can be heard, folders and tables of them."

import numpy as np
import soundfile

from audiolab.audio import write_audio

RATE = 24000
SHORT = {"sample_rate": RATE, "segment_length": .1}


def noise(seconds, rate=RATE, level=.1, seed=0):
    samples = np.random.default_rng(seed).standard_normal(round(seconds*rate))
    return (level*samples).astype(np.float32).clip(-1, 1)


def tagged(number, seconds=.5, rate=RATE):  # a tone whose number can be heard in its pitch
    seconds = np.arange(round(seconds*rate))/rate
    return (.3*np.sin(2*np.pi*(200 + 50*number)*seconds)).astype(np.float32)


def number_of(segment):  # and heard again
    segment = np.asarray(segment)
    spectrum = np.abs(np.fft.rfft(segment*np.hanning(len(segment)), 8*len(segment)))
    return round((spectrum.argmax()*RATE/8/len(segment) - 200)/50)


def table(n=40, **more):  # a table of the library datasets
    import datasets
    def cell(number):
        from io import BytesIO
        file = BytesIO()
        soundfile.write(file, tagged(number), RATE, format="WAV")
        return {"bytes": file.getvalue(), "path": f"{number:02}.wav"}
    rows = {"audio": [cell(number) for number in range(n)], **more}
    return datasets.Dataset.from_dict(rows).cast_column("audio", datasets.Audio(decode=False))


def silent(place): write_audio(place, np.zeros(RATE, np.float32), RATE)


def make_folder(place):
    "Twelve files of tones in three folders"
    for number in range(12):
        part = place/f"voice{number//4}"
        part.mkdir(parents=True, exist_ok=True)
        write_audio(part/f"{number:02}.wav", tagged(number), RATE)
    return place


def make_parquet(place):
    "Forty rows by ten speakers in five shards"
    whole = table(40, speaker_id=[number//4 for number in range(40)])
    for shard in range(5):
        rows = whole.select(range(8*shard, 8*shard + 8))
        rows.to_parquet(place/f"train-{shard:05}-of-00005.parquet")
    return place
