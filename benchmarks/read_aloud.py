"""Does a small model learn to read? The whole way of a new language in small, by the commands that anyone types, in stages.

    python benchmarks/read_aloud.py FOLDER [--sentences 20000] [--steps 4400] [--only STAGE ...]

The way: English sentences (half-made ones of the chapter on practice speech and the examples of WordNet's dictionary), spoken by three
voices of flite, and Amharic ones by eSpeak NG (`corpus`, `amharic`); a vocoder and a codec (`vocoder`, `codec`);
tokens (`cache`); a model from nothing (`base`) and its judgement on sentences, and then on a voice, that it never met (`judge`); its vocabulary extended
by Amharic and taught with the rows of English frozen, once with English replayed and once without (`extend`, `tune`, `judge-am`); and the
base taught by the prompts of a real speaker (`people`, `judge-people`; Debian's asterisk-core-sounds-en, fetched). At the end one picture of it (`picture`).

A stage whose product is there is passed over, so a run that was stopped goes on. Needs Debian's flite, espeak-ng and wordnet-base, and
the extra judges (Whisper tiny.en). Everything is written into FOLDER; CPU seconds of each stage into FOLDER/stages.jsonl.
"""
import argparse
import json
import os
import random
import re
import resource
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ |= dict(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import numpy as np

RATE = 16_000  # Hz
VOICES = {name: (name, 1.) for name in ("slt", "rms", "awb")}  # of flite, and how much faster
STRANGERS = {"kal": ("kal16", 1.), "awb_high": ("awb", 1.08)}  # nobody learns from them
AMHARIC = "m1", "f1", "m3"  # variants of eSpeak's voice
SLOWER = 1.08  # than flite speaks


# ---- sentences and sounds

def plain_sentences(least, dictionary="/usr/share/wordnet"):
    "Examples in WordNet, of ordinary words: each word occurs in `least` of them at least."
    found = set()
    for path in sorted(Path(dictionary).glob("data.*")):
        for line in path.read_text("latin-1").splitlines():
            if line.startswith("  ") or "|" not in line: continue
            for said in re.findall(r'"([^"]+)"', line.split("|", 1)[1]):
                said = re.sub(r"\s+", " ", said).strip().replace(" - ", ", ").strip(" ;,")
                if re.search(r"[^A-Za-z ,.?!']", said): continue
                if 4 <= len(said.split()) <= 12 and 18 <= len(said) <= 70: found.add(said)
    if not found: sys.exit(f"no sentences in {dictionary}: apt-get install wordnet-base")
    words = {line: set(re.findall(r"[a-z']+", line.lower())) for line in sorted(found)}
    often = Counter(word for some in words.values() for word in some)
    return [line for line, some in words.items() if min(often[word] for word in some) >= least]


def flite(text, spoken_by):
    "What flite says, [T] at `RATE`, with a tenth of a second of quiet on either side."
    from audiolab.audio import read_audio, resample
    (voice, faster), name = spoken_by, f"{os.getpid()}_{threading.get_ident()}.wav"
    subprocess.run(["flite", "-voice", voice, "--setf", f"duration_stretch={SLOWER*faster}",
                    "-t", text, "-o", name], check=True, stderr=subprocess.DEVNULL)
    audio, rate = read_audio(name)
    os.unlink(name)
    sound = np.asarray(resample(audio[0], int(rate*faster), RATE), np.float32)
    loud = np.flatnonzero(abs(sound) > .01)
    return sound[max(0, loud[0] - RATE//10):loud[-1] + RATE//7]


def spoken(folder, texts, voices, say, language):
    "A data set: each text by one voice in turn."
    from audiolab.audio import write_audio
    (folder/"wavs").mkdir(parents=True, exist_ok=True)

    def make(number, text):
        name = list(voices)[number%len(voices)]
        path = folder/f"wavs/{name}_{number:05d}.wav"
        if not path.is_file():
            sound = say(text, voices[name])
            write_audio(path, sound/max(1, abs(sound).max()/.95), RATE)
        return f"{path.stem}|{text}|{name}|{language}"
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        rows = ["id|text|speaker|language", *pool.map(make, range(len(texts)), texts), ""]
    (folder/"metadata.csv").write_text("\n".join(rows), encoding="utf-8")


def english(args):
    "Sets to learn from, to choose by and to be judged on; no sentence is in two of them."
    from audiolab.tts import practice_sentences
    plain = plain_sentences(4)
    random.Random(5).shuffle(plain)
    made = practice_sentences("en", 3300, 11)
    test, val = made[3000:3150] + plain[10_000:10_250], made[3150:] + plain[10_250:]
    rarer = [line for line in plain_sentences(2) if line not in set(plain)]
    train = made[:3000] + plain[:10_000] + rarer
    random.Random(6).shuffle(train)
    spoken(args.folder/"en_train", train[:args.sentences], VOICES, flite, "en")
    spoken(args.folder/"en_val", val[::3], VOICES, flite, "en")
    spoken(args.folder/"en_test", test, VOICES, flite, "en")
    spoken(args.folder/"en_strange", test[::4], STRANGERS, flite, "en")


def amharic(args):
    from audiolab.audio import espeak, resample
    from audiolab.tts import practice_sentences, practice_voice
    texts = practice_sentences("am", 2200, 13)

    def say(text, voice):
        audio, rate = espeak(text, **voice)
        return np.asarray(resample(audio, rate, RATE), np.float32)
    voices = {f"am_{name}": practice_voice("am", name) for name in AMHARIC}
    for name, part in {"train": texts[:2000], "val": texts[2000:2050],
                       "test": texts[2050:2110]}.items():
        spoken(args.folder/f"am_{name}", part, voices, say, "am")


# ---- by the program

def audiolab(args, line):
    "A command of the program, in the folder; what it says goes on to the terminal."
    print(f"$ audiolab {line}", flush=True)
    subprocess.run([sys.executable, "-m", "audiolab", *shlex.split(line)], cwd=args.folder,
                   check=True)


def some_of(folder, name, parts):
    "A folder of links to every n-th recording of sets."
    (folder/name).mkdir(exist_ok=True)
    for part, step in parts.items():
        for path in sorted((folder/part/"wavs").iterdir())[::step]:
            link = folder/name/path.name
            if not link.is_symlink(): link.symlink_to(f"../{part}/wavs/{path.name}")


def vocoder(args):
    some_of(args.folder, "voc_src", {"en_train": 13, "am_train": 12})
    audiolab(args, "vocoder train --folders voc_src --mel.hop-length 160 --model.width 128 --model.hidden 384 --model.blocks 5 "
             "--model.draft-rounds 8 --training.steps 700 --output voc --training.device cpu")


def codec(args):
    some_of(args.folder, "cod_src", {"en_train": 6, "am_train": 5})
    audiolab(args, "tts codec --folders cod_src --vocoder voc/model_final.safetensors --output cod --model.codes 2048 --model.frames 3 --training.steps 2600 "
             "--training.validate-every '400 steps' --training.device cpu")


CODEC = "mel:cod/model_final.safetensors"
RUN = (f"--validation.codec {CODEC} --data.prompt-dropout 1 --training.log-every 20 --training.sample-every never "
       "--training.save-every '5 minutes' --training.device cpu --resume auto")


def cache(args, dataset, tokenizer, name):
    audiolab(args, f"tts cache --dataset {dataset} --tokenizer {tokenizer} --codec {CODEC} --output {name} --workers 2")


def english_tokens(args):
    audiolab(args, "tts tokenizer --metadata en_train --kind char --lang en --output en.json")
    for part in ("train", "val"): cache(args, f"en_{part}", "en.json", f"k_{part}")


def base(args):
    audiolab(args, "tts train --cache k_train --tokenizer en.json --data.validation k_val --output base --model.small.width 192 "
             "--model.small.layers 5 --model.small.max-text 256 --model.small.max-speech 512 --data.text-dropout .1 "
             f"--training.tokens 2500 --training.steps {args.steps} --training.learning-rate 1.5e-3 --training.warmup .03 "
             f"--training.validate-every '300 steps' {RUN}")


def extend(args):
    "Rows of Amharic, beside the ones that the base has."
    audiolab(args, "tts tokenizer --metadata am_train --kind char --lang am --output am.json")
    audiolab(args, "tts merge-vocab --base en.json --new am.json --lang am --output en_am.json --texts am_train --keep en=en_test")
    audiolab(args, "tts extend --model base --vocab en_am.json --output extended.safetensors")
    for part in ("train", "val"):  # English is coded already: only its letters are new
        if not (args.folder/f"k2_en_{part}").exists():
            shutil.copytree(args.folder/f"k_{part}", args.folder/f"k2_en_{part}")
    for name in ("am_train", "am_val", "en_train", "en_val"):
        cache(args, name, "en_am.json", f"k2_{name}")


def tune(args, name, replay):
    audiolab(args, f"tts train --base extended.safetensors --cache k2_am_train --tokenizer en_am.json --freeze base_rows {replay} "
             f"--data.validation k2_am_val k2_en_val --output {name} --training.tokens 2500 --training.steps {args.tune_steps} "
             f"--training.learning-rate 6e-4 --training.warmup .05 --training.validate-every '100 steps' {RUN}")


def people(args):
    "What one speaker says in announcements, in three parts; the base is taught by the first."
    from audiolab.audio import recorded_speech, read_audio, resample, write_audio
    clips = recorded_speech(args.folder/"prompts", language="en", n_files=600, shortest=1.,
                            longest=12., fetch=True)
    clips = [clip for clip in clips if re.fullmatch(r"[A-Za-z ,.?!']+", clip.text)]
    random.Random(3).shuffle(clips)
    parts = {"real_test": clips[:40], "real_val": clips[40:60], "real_train": clips[60:]}
    for name, some in parts.items():
        (args.folder/name/"wavs").mkdir(parents=True, exist_ok=True)
        rows = ["id|text|speaker|language"]
        for number, clip in enumerate(some):
            audio, rate = read_audio(clip.path, mono=True)
            rows.append(f"real_{number:03}|{clip.text}|real|en")
            sound = resample(audio, rate, RATE)
            write_audio(args.folder/name/f"wavs/real_{number:03}.wav", sound, RATE)
        (args.folder/name/"metadata.csv").write_text("\n".join([*rows, ""]), encoding="utf-8")
    for part in ("train", "val"): cache(args, f"real_{part}", "en.json", f"k_real_{part}")
    audiolab(args, "tts train --base base --cache k_real_train --tokenizer en.json --data.replay k_train --data.replay-share .3 "
             f"--data.validation k_real_val --output real --training.tokens 2500 --training.steps {args.tune_steps} "
             f"--training.learning-rate 6e-4 --training.warmup .05 --training.validate-every '100 steps' {RUN}")


def judge(args, model, dataset, out, more=""):
    audiolab(args, f"tts eval --model {model} --dataset {dataset} --out {out} --count {args.count} {more}")


def rows_kept(args):
    "Whether rows of English are, to the bit, what they were in the base; how far new ones went."
    from safetensors.numpy import load_file
    before, found = load_file(args.folder/"extended.safetensors"), {}
    old = len(load_file(args.folder/"base/model_final.safetensors")["text_emb.weight"])
    for run in ("tuned", "tuned_alone"):
        after = load_file(args.folder/run/"model_final.safetensors")
        for name in ("text_emb.weight", "text_head.weight"):
            moved = np.abs(after[name] - before[name]).max(1)
            found[f"{run} {name}"] = {
                "old rows": old, "equal": int((moved[:old] == 0).sum()),
                "new rows": len(moved) - old, "moved": int((moved[old:] > 0).sum())}
    (args.folder/"rows.json").write_text(json.dumps(found, indent=1))


def judge_english(args):
    judge(args, "base", "en_test", "judged_en", "--asr whisper")
    judge(args, "base", "en_strange", "judged_strange", "--asr whisper")


def judge_amharic(args):
    judge(args, "tuned", "am_test", "judged_am", "--base extended.safetensors")
    for name in ("tuned", "tuned_alone"):
        judge(args, name, "en_test", f"judged_en_{name}", "--asr whisper")
    rows_kept(args)


def means(folder, judged):
    "Mean figures of who was judged, by kind."
    return json.loads((folder/judged/"evaluation.json").read_text())["means"]


def draw_curves(folder, axes):
    "How surprised the base was at speech that it learns from, and at speech that it does not."
    events = [json.loads(line) for line in open(folder/"base/history.jsonl")]
    for kind, label in (("log", "learnt from"), ("validation", "held out")):
        rows = [(e["step"], e["values"]["speech_loss"]) for e in events if e["kind"] == kind]
        axes.plot(*zip(*rows), label=label, lw=1)
    axes.set(xlabel="step", ylabel="nats a code", title="A base from nothing")
    axes.legend(frameon=False)


def draw_bars(axes, figures, key, label, title):
    "A figure of each kind, lying."
    kinds = [kind for kind, found in figures.items() if key in found][::-1]
    bars = axes.barh(kinds, [figures[kind][key] for kind in kinds])
    axes.bar_label(bars, fmt="%.2f", padding=2)
    longest = max(1, *(figures[kind][key] for kind in kinds))
    axes.set(xlabel=label, title=title, xlim=(0, 1.15*longest))


def draw_sentence(folder, axes):
    "The sentence in the middle of those that were judged: as recorded, and as it was read."
    from audiolab.audio import read_audio
    rows = json.loads((folder/"judged_en/evaluation.json").read_text())["sentences"]
    read = [row for row in rows if row["kind"] == "model"]
    read.sort(key=lambda row: row["word_error"])
    row = read[len(read)//2]
    recorded = {row["name"]: row for row in rows if row["kind"] == "recording"}
    titles = row["text"], f"read; Whisper hears: {row['heard']}"
    for area, one, title in zip(axes, (recorded[row["name"]], row), titles):
        sound, rate = read_audio(folder/"judged_en"/one["file"], mono=True)
        area.specgram(sound.ravel() + 1e-6, NFFT=512, Fs=rate, noverlap=384, vmin=-120, cmap="magma")
        area.set(ylabel="Hz", ylim=(0, 5000))
        area.set_title(title, fontsize=9, loc="left")
    axes[1].set_xlabel("s")


def picture(args):
    import matplotlib
    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    figure = plt.figure(figsize=(11, 8), layout="constrained")
    above, below = figure.subfigures(2, height_ratios=(1, 1.1))
    curves, english, amharic = above.subplots(1, 3)
    draw_curves(args.folder, curves)
    draw_bars(english, means(args.folder, "judged_en"), "word_error", "word error (Whisper tiny.en)",
              "Held-out English")
    draw_bars(amharic, means(args.folder, "judged_am"), "token_error", "token error",
              "Held-out Amharic")
    draw_sentence(args.folder, below.subplots(2, 1, sharex=True))
    figure.savefig(args.folder/"read_aloud.png", dpi=90)


STAGES = {
    "corpus": (english, "en_strange/metadata.csv"), "amharic": (amharic, "am_test/metadata.csv"),
    "vocoder": (vocoder, "voc/model_final.safetensors"), "codec": (codec, "cod/model_final.safetensors"),
    "cache": (english_tokens, "k_val/cache.json"), "base": (base, "base/model_final.safetensors"),
    "judge": (judge_english, "judged_strange/evaluation.json"), "extend": (extend, "k2_en_val/cache.json"),
    "tune": (lambda args: tune(args, "tuned", "--data.replay k2_en_train --data.replay-share .4"),
             "tuned/model_final.safetensors"),
    "tune-alone": (lambda args: tune(args, "tuned_alone", ""), "tuned_alone/model_final.safetensors"),
    "judge-am": (judge_amharic, "rows.json"), "people": (people, "real/model_final.safetensors"),
    "judge-people": (lambda args: judge(args, "real", "real_test", "judged_real", "--asr whisper --base base"),
                     "judged_real/evaluation.json"),
    "picture": (picture, "read_aloud.png")}


def spent():
    "CPU seconds of this process and of those it has waited for."
    uses = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(use.ru_utime + use.ru_stime for use in uses)


def main():
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sentences", type=int, default=20_000, help="of English to learn from")
    parser.add_argument("--steps", type=int, default=4400, help="of the base")
    parser.add_argument("--tune-steps", type=int, default=500, help="of each model that goes on from it")
    parser.add_argument("--count", type=int, default=60, help="sentences of a judgement")
    parser.add_argument("--only", nargs="+", choices=STAGES, default=list(STAGES))
    args = parser.parse_args()
    args.folder = args.folder.resolve()
    args.folder.mkdir(parents=True, exist_ok=True)
    for name in args.only:
        stage, product = STAGES[name]
        if (args.folder/product).exists():
            print(f"{name}: there")
            continue
        begun, clock = spent(), time.monotonic()
        stage(args)
        row = {"stage": name, "CPU seconds": round(spent() - begun),
               "seconds": round(time.monotonic() - clock)}
        print(row, flush=True)
        with open(args.folder/"stages.jsonl", "a") as file: file.write(json.dumps(row) + "\n")


if __name__ == "__main__": main()
