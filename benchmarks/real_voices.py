"""The voice encoder on a real neural synthesizer and on real people, as tables in Markdown.

    audiolab voice generate --teacher kokoro --output-dir SET --num-samples 2640 --num-val-samples 200 \\
        --num-test-samples 200 --style-sample-mode pca --pca-sigma 1 --clips-per-style 2 --tts-speed 1 --seed 1
    audiolab voice train --data-dir SET --checkpoint-dir RUN
    python benchmarks/real_voices.py hear SET RUN [--trips 40]
    python benchmarks/real_voices.py people RUN [--languages en es fr it ru] [--budget "5 minutes"] [--fetch]

- hear: styles of voices and texts that nobody has learnt from, as the encoder hears them, beside the mean voice and beside two ridge
  regressions that are fitted on the same clips: from means and deviations of mel bands, and from the GE2E embedding. Then the test clips
  are said again, the same words in the guessed style; similarity to the clip as a share of the gap between the mean voice and another clip of
  the clip's own style.
- people: speakers of Debian's announcements (--fetch gets them, 10 MB a language): ten clips are cloned, ten others judge. The voice
  says English sentences in the best preset (by the ten clips that are cloned), in the encoder's style, and in that style after a search of
  stated budget for the GE2E similarity to the ten clips. The search does not see the other measures: the long-term spectrum, the pitch,
  and, where the judges are installed, words (Whisper tiny.en) and quality (DNSMOS).
"""
import argparse
import os
import tempfile
import time

os.environ |= dict(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import numpy as np

SENTENCES = ("A thin layer of ice covered the garden this morning.",
             "Bring me five cups of water before the guests arrive.",
             "The old mill stands beside a quiet river.")
COLUMNS = {"r2_ttl": "R2, timbre", "r2_dp": "R2, prosody", "r2": "R2, both", "centred_cosine_ttl": "centred cosine, timbre",
           "centred_cosine_dp": "centred cosine, prosody", "retrieval_top1": "finds the voice"}


def written(value):
    if value is None: return ""
    return f"{value:.3g}" if abs(value) >= 10 else f"{value:.3f}"


def show(rows, columns):
    "A table of {row: {column: value}}."
    print(f"| | {' | '.join(columns)} |\n|---|{'---:|'*len(columns)}")
    for name, row in rows.items():
        print(f"| {name} | {' | '.join(map(written, (row.get(c) for c in columns)))} |")
    print(flush=True)


# ---- a synthesizer

def hear(args):
    from audiolab.measure import speaker_encoder
    from audiolab.voice import (
        StyleLoss, load_encoder, measure_encoder, measure_ridge, open_lessons,
    )
    train, test = open_lessons(args.data, "train"), open_lessons(args.data, "test")
    encoder = load_encoder(args.run)
    loss = StyleLoss(encoder.ttl.basis.basis(), encoder.dp.basis.basis())
    mel, mean = measure_ridge(train, test)
    rows = {"mean voice": mean, "ridge regression, mel statistics": mel,
            "encoder": measure_encoder(encoder, loss, test)}
    if not args.no_ge2e:
        rows["ridge regression, GE2E"], _ = measure_ridge(train, test, speaker_encoder().embed)
    hours = train.seconds.sum()/3600
    print(f"{len(train)} clips to learn from ({hours:.2f} h), {len(test)} held out\n")
    rows = {name: {title: row.get(key) for key, title in COLUMNS.items()}
            for name, row in rows.items()}
    show(rows, COLUMNS.values())
    trips(args, encoder, train, test)


def trips(args, encoder, train, test):
    "Held-out clips, said again by everybody."
    from audiolab.measure import speaker_encoder
    from audiolab.voice import VoiceStyle, median_pitch, stack_styles, teacher_for
    teacher, judge = teacher_for(test.space), speaker_encoder()
    mean = VoiceStyle(train.part("ttl").mean(0), train.part("dp").mean(0), train.space)
    found = {who: [] for who in ("mean voice", "encoder", "own style, other words")}
    pitch = {"mean voice": [], "encoder": []}
    for n in np.linspace(0, len(test) - 1, args.trips).astype(int):
        clip, text, lang = test.audio(n), test.info(n)["text"], test.info(n)["lang"]
        later = (test.info(k % len(test))["text"] for k in range(n + 1, n + len(test)))
        other = next(words for words in later if words != text)
        styles = stack_styles([mean, encoder.style(clip, test.sample_rate), test.style(n)])
        said = teacher.synthesize([text, text, other], styles, lang=lang)
        target = judge.embed(clip, test.sample_rate)
        for who, speech in zip(found, said):
            found[who].append(float(target@judge.embed(speech.audio, teacher.sample_rate)))
        true = median_pitch(clip, test.sample_rate)
        for who, speech in zip(pitch, said):
            heard = median_pitch(speech.audio, teacher.sample_rate)
            if heard and true: pitch[who].append(abs(1200*np.log2(heard/true)))
    means = {who: np.mean(values) for who, values in found.items()}
    low, reached, high = means.values()
    cents = {who: float(np.median(values)) for who, values in pitch.items()}
    rows = {who: {"speaker similarity": value, "pitch (cents)": cents.get(who)}
            for who, value in means.items()}
    rows["encoder"]["share of the gap"] = (reached - low)/(high - low)
    print(f"{args.trips} held-out clips, the same words\n")
    show(rows, ("speaker similarity", "share of the gap", "pitch (cents)"))


# ---- people

def say(teacher, style):
    "What a voice says."
    from audiolab.voice import stack_styles
    said = teacher.synthesize(SENTENCES, stack_styles([style]*len(SENTENCES)), lang="en")
    return [(speech.audio, teacher.sample_rate) for speech in said]


def judged(clips, held):
    "All measures of what a voice says, beside the recordings that judge."
    from audiolab.measure import judge_speech
    from audiolab.voice import SpeakerDistance, SpectrumDistance, median_pitch
    heard = [[median_pitch(*clip) for clip in some] for some in (clips, held)]
    pitches = [list(filter(None, some)) for some in heard]
    cents = 1200*np.log2(np.median(pitches[0])/np.median(pitches[1])) if all(pitches) else None
    marks = judge_speech([x for x, _ in clips], clips[0][1], list(SENTENCES))
    return {"speaker": 1 - SpeakerDistance(held)(clips),
            "spectrum (dB)": SpectrumDistance(held)(clips), "pitch (cents)": cents and abs(cents), "word errors": marks.get("word error rate"),
            "DNSMOS": marks.get("DNSMOS overall")}


def person(language, args, teacher, encoder):
    "Measures of everybody for one speaker."
    from audiolab.audio import read_audio, recorded_speech
    from audiolab.voice import (
        Audition, clone_voice, refine, search_directions, stack_styles, voice_distance,
    )
    with tempfile.TemporaryDirectory() as folder:
        clips = recorded_speech(folder, language=language, n_files=20, shortest=3., longest=8.,
                                fetch=args.fetch)
        paths = [clip.path for clip in clips]
        sounds = [(audio[0], rate) for audio, rate in map(read_audio, paths)]
        heard, held = sounds[:10], sounds[10:]
        clone = clone_voice(paths[:10], encoder, "published for reuse (CC-BY-SA 3.0)").style
    distance = voice_distance("speaker", heard)
    presets = teacher.presets()
    audition = Audition(teacher, distance, SENTENCES[:1], {"lang": "en"})
    best = int(audition.measure(stack_styles(list(presets.values()))).argmin())
    begun, ways = time.process_time(), search_directions(teacher)
    found = refine(clone, teacher, distance, ways, args.budget, args.seed)
    spent = time.process_time() - begun
    print(f"{language}: {len(found.distances)} trials in {spent:.0f} CPU s", flush=True)
    voices = {"best preset": list(presets.values())[best], "encoder": clone,
              "encoder, refined": found.style}
    return {who: judged(say(teacher, style), held) for who, style in voices.items()}


def people(args):
    from audiolab.voice import KokoroTeacher, load_encoder
    teacher, encoder = KokoroTeacher(), load_encoder(args.run)
    everybody = {}
    for language in args.languages:
        everybody[language] = person(language, args, teacher, encoder)
        show(everybody[language], next(iter(everybody[language].values())))
    whose = list(next(iter(everybody.values())))
    def mean(who, name):
        values = [rows[who][name] for rows in everybody.values() if rows[who][name] is not None]
        return float(np.mean(values)) if values else None
    names = list(everybody[args.languages[0]][whose[0]])
    print(f"{', '.join(args.languages)}: means\n")
    show({who: {name: mean(who, name) for name in names} for who in whose}, names)


def main():
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parts = parser.add_subparsers(required=True)
    part = parts.add_parser("hear", help="on a synthesizer")
    part.add_argument("data", help="set of lessons")
    part.add_argument("run", help="run folder or file of an encoder")
    part.add_argument("--trips", type=int, default=40, help="clips that are said again")
    part.add_argument("--no-ge2e", action="store_true", help="without the second regression")
    part.set_defaults(part=hear)
    part = parts.add_parser("people", help="on recordings of people")
    part.add_argument("run", help="run folder or file of an encoder of Kokoro's styles")
    part.add_argument("--languages", nargs="+", default=["en", "es", "fr", "it", "ru"])
    part.add_argument("--budget", default="5 minutes", help="of CPU for each search, or a number of trials")
    part.add_argument("--seed", type=int, default=0)
    part.add_argument("--fetch", action="store_true", help="get what is missing of the recordings")
    part.set_defaults(part=people)
    args = parser.parse_args()
    args.part(args)


if __name__ == "__main__": main()
