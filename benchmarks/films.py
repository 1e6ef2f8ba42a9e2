"""Films whose speech is known to the sample, and what is made of them: figures of the import of films, as tables in Markdown.

    python benchmarks/films.py make FILMS [--minutes 10] [--count 3] [--material recorded espeak flite] [--fetch]
    python benchmarks/films.py judge FILMS WORK [--asr whisper]

- make: films (mp4, mkv, webm) of sentences in a row with known beginnings and ends, noise of a room below, music under a
  third. Their subtitles are moved by up to 0.4 s at both edges; some cues have the text of another, some are silent, some
  clipped, some spoken too fast. Recorded speech is that of Debian's announcements (--fetch gets it, and the music).
- judge: `audiolab tts import` of these films beside the truth, and beside a plain cut at the cues. Edges: the median distance
  from where speech begins and ends (10 ms frames within 40 dB of a sentence's loudest), as found and as cut, with the silence
  that is kept around. Cut speech: clips that lack more than 10 ms, at an edge, of what is within 35 dB.
"""
import argparse
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

os.environ |= dict(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import numpy as np

RATE = 24_000  # Hz
KINDS = {"mp4": ["-c:a", "aac", "-b:a", "128k"], "mkv": ["-c:a", "ac3", "-b:a", "192k"],
         "webm": ["-c:a", "libopus", "-b:a", "64k"]}


# ---- sentences

def speech_bounds(sound, depth=40):
    "First and last sample of speech: 10 ms frames within so many dB of the loudest."
    hop = RATE//100
    power = np.square(sound[:len(sound)//hop*hop].reshape(-1, hop)).mean(1)
    loud = np.flatnonzero(power > power.max()*10**(-depth/10))
    return loud[0]*hop, (loud[-1] + 1)*hop


def recorded(chance, fetch):
    "Sentences of an announcer, without end."
    from audiolab.audio import decode_g722, recorded_sentences, resample
    files = list(recorded_sentences("en", 1.5, 12, fetch=fetch).values())
    while True:
        for n in chance.permutation(len(files)):
            path, text = files[n]
            if sum(c.isalpha() for c in text) < 12: continue
            sound, rate = decode_g722(path)
            yield text, resample(sound, rate, RATE)


def synthetic(chance, speak):
    "Made-up sentences, without end, in the voices of a synthesizer."
    from audiolab.audio import resample
    from audiolab.tts import practice_sentences
    texts = practice_sentences("en", 2000, int(chance.integers(1 << 30)))
    while True:
        for text in texts:
            sound, rate = speak(text)
            yield text, resample(sound, rate, RATE)


def flite(text):
    "A sentence by the program flite."
    from audiolab.audio import read_audio
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)/"said.wav"
        subprocess.run(["flite", "-voice", "slt", "-t", text, "-o", str(path)], check=True)
        return read_audio(path, mono=True)


def sentences(material, chance, fetch):
    "Texts and sounds [T] of one voice; the level is that of speech in films."
    from audiolab.audio import espeak
    if material == "recorded": source = recorded(chance, fetch)
    elif material == "flite": source = synthetic(chance, flite)
    else: source = synthetic(chance, lambda text: espeak(text, "en+m3", 165))
    for text, sound in source:
        first, last = speech_bounds(sound)
        if last - first < 1.2*RATE: continue
        sound = sound[max(0, first - RATE//50):last + RATE//50]
        yield text, .1*sound/np.sqrt(np.mean(np.square(sound)))


# ---- films

FAULTS = {"other text": .10, "silent": .03, "clipped": .03, "too fast": .03}


def spoil(fault, sound):
    "A sentence as it must not come into a data set."
    from audiolab.audio import resample
    if fault == "silent": return sound*0
    if fault == "clipped": return np.clip(sound*8, -.9, .9)
    if fault == "too fast": return resample(sound, round(2.2*RATE), RATE)
    return sound


def make_sound(source, minutes, chance, music):
    "(samples [T], rows of the truth): sentences with pauses, noise, music under a third."
    parts, rows, at = [np.zeros(RATE)], [], RATE
    while at < minutes*60*RATE:
        text, sound = next(source)
        fault = str(chance.choice([*FAULTS, ""], p=[*FAULTS.values(), 1 - sum(FAULTS.values())]))
        first, last = speech_bounds(sound)
        speech = spoil(fault, sound)
        heard = speech_bounds(sound, 35)
        if fault == "too fast": first, last = heard = speech_bounds(speech)
        gap = chance.uniform(.3, 1.5) if chance.random() < .85 else chance.uniform(1.5, 5)
        rows.append({"start": (at + first)/RATE, "end": (at + last)/RATE,
                     "heard": [(at + n)/RATE for n in heard], "text": text, "fault": fault})
        parts += [speech, np.zeros(round(gap*RATE))]
        at += len(parts[-2]) + len(parts[-1])
    sound = np.concatenate(parts) + chance.normal(0, 10**(-62/20), at)
    for begin in range(0, at, 180*RATE):
        part = sound[begin:begin + 60*RATE]
        tune = np.resize(music, len(part))
        part += tune*(10**(-18/20)*.1/np.sqrt(np.mean(np.square(tune))))
    return np.clip(sound, -1, 1), rows


def stated_cues(rows, chance):
    "Times and texts as subtitles have them: edges moved, every tenth text of another."
    others = [row for row in rows if row["fault"] == "other text"]
    for row, other in zip(others, [*others[1:], *rows[:1]]): row["cue"] = other["text"]
    for row in rows:
        row.setdefault("cue", row["text"])
        early, late = chance.uniform(-.4, .4, 2)
        row["stated"] = [max(0, row["start"] + early), row["end"] + late]
    return rows


def srt_time(seconds):
    whole = round(seconds*1000)
    return f"{whole//3_600_000:02}:{whole//60_000 % 60:02}:{whole//1000 % 60:02},{whole % 1000:03}"


def write_film(stem, kind, sound, rows):
    "A film, its subtitles, and the truth beside them."
    from audiolab.audio import write_audio
    with tempfile.TemporaryDirectory() as folder:
        wav = write_audio(Path(folder)/"sound.wav", sound.astype(np.float32), RATE)
        video = ["-f", "lavfi", "-i", f"color=c=gray:s=64x36:r=5:d={len(sound)/RATE}"]
        coding = ["-c:v", "libvpx" if kind == "webm" else "mpeg4", *KINDS[kind], "-ar", "48000"]
        subprocess.run(["ffmpeg", "-nostdin", "-v", "error", "-y", *video, "-i", str(wav), *coding,
                        str(stem.with_suffix(f".{kind}"))], check=True)
    cues = (f"{n}\n{srt_time(row['stated'][0])} --> {srt_time(row['stated'][1])}\n{row['cue']}\n"
            for n, row in enumerate(rows, 1))
    stem.with_suffix(".srt").write_text("\n".join(cues))
    stem.with_suffix(".json").write_text(json.dumps(rows, indent=1))


def some_music(fetch):
    "A minute of music [T]: recorded where it is at hand, else made."
    from audiolab.audio import music, music_clips, read_audio, recorded_music
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = recorded_music(folder, n_files=10, sample_rate=RATE, fetch=fetch)
            return np.concatenate([read_audio(one.path, mono=True)[0] for one in found])
        except Exception as error: print(f"music is made, not recorded: {error}")
    made = zip(range(10), music_clips(RATE, music.KINDS, 0))
    return np.concatenate([sound for _, (_, sound) in made])


def make(args):
    chance, music = np.random.default_rng(args.seed), some_music(args.fetch)
    folder = Path(args.films)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(args.count):
        material = args.material[number % len(args.material)]
        kind = list(KINDS)[number % len(KINDS)]
        source = sentences(material, chance, args.fetch)
        sound, rows = make_sound(source, args.minutes, chance, music)
        write_film(folder/f"{material}{number}", kind, sound, stated_cues(rows, chance))
        print(f"{material}{number}.{kind}: {len(rows)} cues, {len(sound)/RATE/60:.1f} min")


# ---- what is made of them

def read_truth(folder):
    "Rows of all films, by film and text of the cue and place."
    return {path.stem: json.loads(path.read_text()) for path in sorted(Path(folder).glob("*.json"))}


def nearest_row(rows, segment):
    "The sentence that a segment was cut for: that of its text, and nearest in time."
    same = [row for row in rows if " ".join(row["cue"].split()) == segment.text]
    return min(same, key=lambda row: abs(row["start"] - segment.origin.start), default=None)


def lacks_speech(row, start, end):
    "Whether speech is missing at an edge."
    return start - row["heard"][0] > .01 or row["heard"][1] - end > .01


def judge(args):
    from audiolab.tts import FilmSettings, dictation_of, find_pairs, import_films
    pairs, truth = find_pairs(args.films, args.films)[0], read_truth(args.films)
    dictation = dictation_of(args.asr or "")
    begin = time.process_time()
    report = import_films(args.work, pairs, FilmSettings(language="en", asr=args.asr or ""),
                          dictation=dictation)
    spent = time.process_time() - begin
    hours = sum(about["seconds"] for about in report.dataset.sources.values())/3600
    found = [(s, nearest_row(truth[Path(s.group).stem], s)) for s in report.dataset.segments]
    found = [(s, row) for s, row in found if row]
    print(f"{report}\n\n{spent:.0f} CPU-s, {spent/hours:.0f} for an hour of film\n")
    show_edges(found)
    show_faults(found)


def show_edges(found):
    "A table of edges: as cut by the import, and at the cues."
    kept = [(s, row) for s, row in found if s.accepted and row["fault"] in ("", "other text")]
    ways = {"import": [(row, s.origin.start, s.origin.end) for s, row in kept],
            "plain cut at the cues": [(row, *row["stated"]) for _, row in kept]}
    print("| | median edge error (ms) | speech cut at an edge |\n|---|---:|---:|")
    for name, cuts in ways.items():
        errors = [abs(moment - row[key]) for row, *edges in cuts
                  for key, moment in zip(("start", "end"), edges)]
        cut = np.mean([lacks_speech(*one) for one in cuts])
        print(f"| {name} | {np.median(errors)*1000:.0f} | {cut:.1%} of {len(cuts)} |")


def show_faults(found):
    "A table of what was left out, by what is wrong in truth."
    print("\n| truth | cues | left out | reasons |\n|---|---:|---:|---|")
    for fault in ["", *FAULTS]:
        mine = [s for s, row in found if row["fault"] == fault]
        out = [s for s in mine if not s.accepted]
        why = sorted({issue.code for s in out for issue in s.issues})
        print(f"| {fault or 'good'} | {len(mine)} | {len(out)} | {', '.join(why)} |")


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    one = verbs.add_parser("make")
    one.add_argument("films")
    one.add_argument("--minutes", type=float, default=10)
    one.add_argument("--count", type=int, default=6)
    one.add_argument("--material", nargs="+", default=["recorded", "espeak", "flite"])
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--fetch", action="store_true")
    one.set_defaults(run=make)
    two = verbs.add_parser("judge")
    two.add_argument("films")
    two.add_argument("work")
    two.add_argument("--asr", default="")
    two.set_defaults(run=judge)
    return parser.parse_args()


if __name__ == "__main__":
    args = arguments()
    args.run(args)
