"""The voice encoder beside the recipe that it follows, as tables in Markdown.

    python benchmarks/voice.py [step] [loader] [clone] [generate] [--quick] [--rounds N]

Without names all parts are run. Every implementation has a process and one thread of its own; they take turns, one repetition each, after a
round that does not count; figures are medians over rounds, ratios medians of ratios within a round. CPU seconds are what counts: a machine
with other work makes wall time long, not CPU time. BENCHMARK_TRACE=1 prints why an implementation fails.

- step: a training step on 32 clips of 3 s, from the files to the moved weights: the original's recipe (compressed npz, librosa for each
  clip, its network), SpeechBrain's ECAPA on our features where it installs, and ours; then where the time of ours goes.
- loader: 32 clips of 3 s, out of a set on disk.
- clone: a recording of 10 s becomes a voice.
- generate: clips of 3 s by the parametric teacher, with and without a set on disk.
"""
import argparse
import itertools
import tempfile
import time
from pathlib import Path
from statistics import median

from _peers import compare, find, header, paired, show, table, verdict

import numpy as np

LIBRARIES = ("torch", "librosa", "speechbrain", "numpy")
BATCH, SECONDS, RATE = 32, 3., 24000  # clips, s, Hz
TEXTS = ("A thin layer of ice covered the garden this morning", "Bring me five cups of water",
         "The old mill stands beside a quiet river", "We leave early, before it gets warm")


def rounds_of(args): return args.rounds or (1 if args.quick else 7)


def one_thread():
    import torch
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return torch


def endless(count, seed=0):
    "Batches of numbers of clips, for ever."
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(count)
        yield from (order[i:i + BATCH] for i in range(0, count - BATCH + 1, BATCH))


# ---- what all parts work on

def voices(count):
    "Styles of voices that do not exist."
    from audiolab.voice import ParametricTeacher, draw_factors
    teacher = ParametricTeacher(seconds=SECONDS)
    return teacher, teacher.styles.encode(*draw_factors(count, np.random.default_rng(0)))


def sounds(count):
    "Clips, and the styles that they were spoken in."
    teacher, styles = voices(count)
    texts = list(itertools.islice(itertools.cycle(TEXTS), count))
    said = teacher.synthesize(texts, styles, seeds=list(range(count)))
    return teacher, [speech.audio for speech in said], styles


def prepare(folder, count):
    "The same clips as lessons, and as the original has them, at 24 kHz and at Supertonic's 44.1 kHz."
    import json

    from _original_voice import write_clips
    from audiolab.audio import resample
    from audiolab.files import durable_write
    from audiolab.voice import about_lessons, add_lesson, lesson_writer
    teacher, clips, styles = sounds(count)
    durable_write(folder/"lessons"/"dataset.json", [json.dumps(about_lessons(teacher)).encode()])
    with lesson_writer(folder/"lessons"/"train", teacher.space, {}) as writer:
        for i, audio in enumerate(clips):
            add_lesson(writer, f"{i:06d}", audio, styles[i], {"style_id": i, "text": TEXTS[i % 4]})
    for rate in (24000, 44100):
        write_clips(folder/f"npz-{rate}", [resample(audio, RATE, rate) for audio in clips],
                    styles.ttl, styles.dp, rate)


# ---- step: from files to moved weights

ORIGINAL, SUPERTONIC = "original's recipe, clips at 24 kHz", "original's recipe, clips at 44.1 kHz"
ECAPA = "ECAPA of SpeechBrain, our data and features"
OURS, HALF = "audiolab, float32", "audiolab, bfloat16"
STEPS = (ORIGINAL, SUPERTONIC, ECAPA, OURS, HALF)


def original_step(folder, name):
    one_thread()
    from _original_voice import OriginalEncoder, make_step, read_batch
    paths = sorted((folder/f"npz-{24000 if name == ORIGINAL else 44100}").glob("*.npz"))
    batches, rng = endless(len(paths)), np.random.default_rng(0)
    return make_step(OriginalEncoder(), lambda: read_batch([paths[i] for i in next(batches)], rng))


def ecapa_step(folder):
    torch = one_thread()
    from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN

    from _original_voice import make_step
    from audiolab.voice import Features, Lessons

    class Encoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk = ECAPA_TDNN(80, channels=[512]*4 + [1536], lin_neurons=192)
            self.heads = torch.nn.ModuleList(torch.nn.Linear(192, n) for n in (50*256, 8*16))

        def forward(self, mel, lengths):
            x = self.trunk(mel.mT, lengths/mel.shape[-1])[:, 0]
            shapes = (50, 256), (8, 16)
            return [head(x).view(-1, 1, *shape) for head, shape in zip(self.heads, shapes)]
    lessons, features = Lessons(folder/"lessons"), Features()
    batches, samples = endless(len(lessons)), round(SECONDS*RATE)

    def batch():
        which = next(batches)
        audio, lengths = map(torch.from_numpy, lessons.gather(which, np.zeros(BATCH, int), samples))
        mel, mask = features(audio*2**-15, lengths)
        return mel, mask.sum(1), *(torch.from_numpy(lessons.part(p, which))[:, None] for p in ("ttl", "dp"))
    return make_step(Encoder(), batch)


def training_run(folder, precision, steps, tmp):
    "Steps of `audiolab voice train`, and the CPU time when each was logged."
    from audiolab.voice import voice_trainer
    times = []

    def listen(event):
        if event.kind == "log": times.append(time.process_time())
    training = dict(steps=steps, batch_size=BATCH, learning_rate=1.5e-3, num_workers=0, log_every=1,
                    validate_every="never", save_every="never", precision=precision, device="cpu")
    data = dict(data_dir=str(folder/"lessons"), crop_seconds_min=SECONDS, crop_seconds_max=SECONDS)
    paths = dict(checkpoint_dir=tmp, use_tensorboard=False)
    voice_trainer(dict(data=data, training=training, paths=paths), [listen]).fit()
    return median(np.diff(times[1:]))


def fastest_product():
    "GFLOP/s of one thread in a product of float32 matrices: what a step can at most do here."
    torch = one_thread()
    a, times = torch.randn(1024, 1024), []
    for _ in range(10):
        begin = time.process_time()
        a@a
        times.append(time.process_time() - begin)
    return 2*1024**3/min(times[1:])/1e9


def halves():
    "Whether this processor computes in bfloat16; where it does not, training does not either."
    import torch
    from audiolab.voice import halves_well
    return halves_well(torch.device("cpu"))


def facts_setup(name):
    def run(): return dict(gflops=fastest_product(), halves=float(halves()))
    return run


def step_setup(name, folder):
    if name not in (OURS, HALF):
        step = ecapa_step(folder) if name == ECAPA else original_step(folder, name)

        def run():
            begin = time.process_time()
            step()
            return dict(step_s=time.process_time() - begin)
        return run
    one_thread()

    def train():
        precision = "float32" if name == OURS else "bfloat16"
        with tempfile.TemporaryDirectory() as tmp:
            return dict(step_s=training_run(folder, precision, 5, tmp))
    return train


def part_step(args, folder):
    facts, = compare(facts_setup, ("this machine",), 1)
    names = [name for name in STEPS if not (args.quick and name in (SUPERTONIC, ECAPA))]
    if not facts["halves"]: names.remove(HALF)
    rows = compare(step_setup, names, rounds_of(args), folder=folder)
    base, ours, half = (find(rows, name) for name in (ORIGINAL, OURS, HALF))
    title = f"## Training step: {BATCH} clips of {SECONDS:g} s, from files to moved weights, 1 thread"
    show(title, table(rows, {
        "CPU s": lambda r: f"{r['step_s']:.3f}",
        "times as fast": lambda r: f"{paired(base, r, 'step_s'):.2f}" if base else "-",
        "peak MB more": lambda r: f"{r['peak_mb']:.0f}"}))
    show(f"A product of matrices does {facts['gflops']:.0f} GFLOP/s here on one thread; the targets were set "
         "where it does 116." + ("" if facts["halves"] else " This processor has no arithmetic in bfloat16, "
                                 "and training would not use it: that row is left out."))
    if ours:
        verdict("CPU s of a step, float32", ours["step_s"], .30)
        scaled = ours["step_s"]*facts["gflops"]/116
        show(f"At the speed of that machine it would be {scaled:.2f} CPU s.")
    if half: verdict("CPU s of a step, bfloat16", half["step_s"], .20)
    for row in (ours, half) if base else ():
        if not row: continue
        verdict(f"{row['name']}: times as fast as the original's recipe",
                paired(base, row, "step_s"), 2.5, at_most=False)
    if not find(rows, ECAPA): show("ECAPA was left out: `pip install speechbrain` with a torchaudio that fits torch, and without `--quick`.")
    show_parts(args, folder, [name for name in names if name in (OURS, HALF)])


PARTS_OF_STEP = ("clips out of the set", "features", "network, forward", "loss", "backward", "optimizer")


def parts_setup(name, folder):
    torch = one_thread()
    from audiolab.voice import EncoderSpec, Lessons, StyleLoss, VoiceClips, VoiceEncoder, fit_basis
    lessons = Lessons(folder/"lessons")
    bases = [fit_basis(lessons.part(part)) for part in ("ttl", "dp")]
    encoder, loss = VoiceEncoder(lessons.space, EncoderSpec(), *bases), StyleLoss(*bases)
    clips, batches = VoiceClips(lessons, RATE, SECONDS, SECONDS), endless(len(lessons))
    optimizer = torch.optim.AdamW(encoder.parameters(), 1.5e-3)

    def run():
        marks = [time.process_time()]
        def mark(): marks.append(time.process_time())
        batch = clips.batch(next(batches))
        mark()
        heard = encoder.features(batch["audio"], batch["length"])
        mark()
        with torch.autocast("cpu", torch.bfloat16, enabled=name == HALF):
            guess = encoder.from_mel(*heard)
        mark()
        cost = loss(guess, batch["ttl"], batch["dp"], batch["style_id"])["loss"]
        mark()
        cost.backward()
        mark()
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.)
        optimizer.step()
        optimizer.zero_grad()
        mark()
        return dict(zip(PARTS_OF_STEP, map(float, np.diff(marks))))
    return run


def show_parts(args, folder, names):
    rows = compare(parts_setup, names, rounds_of(args), folder=folder)
    show("### Where the time goes, in ms", table(rows, {
        part: lambda r, part=part: f"{1e3*r[part]:.1f}" for part in PARTS_OF_STEP}))


# ---- loader

NPZ, GATHER = "compressed npz, one by one", "audiolab Lessons.gather"


def loader_setup(name, folder):
    one_thread()
    if name == NPZ:
        paths = sorted((folder/"npz-24000").glob("*.npz"))

        def read(which):
            files = [np.load(paths[i], allow_pickle=True) for i in which]
            return [np.stack([file[key] for file in files]) for key in ("audio", "style_ttl", "style_dp")]
        count, repeat = len(paths), 4
    else:
        from audiolab.voice import Lessons
        lessons = Lessons(folder/"lessons")

        def read(which):
            sound, _ = lessons.gather(which, np.zeros(len(which), int), round(SECONDS*RATE))
            return sound, lessons.part("ttl", which), lessons.part("dp", which)
        count, repeat = len(lessons), 400
    batches = endless(count)

    def run():
        begin = time.process_time()
        for _ in range(repeat): read(next(batches))
        return dict(clips_s=BATCH*repeat/(time.process_time() - begin))
    return run


def part_loader(args, folder):
    rows = compare(loader_setup, (NPZ, GATHER), args.rounds or 5, folder=folder)
    show(f"## Loader: {BATCH} clips of {SECONDS:g} s and their styles at a time, files in memory, 1 thread", table(rows, {
        "clips a CPU second": lambda r: f"{r['clips_s']:,.0f}",
        "peak MB": lambda r: f"{r['peak_mb']:.0f}"}))
    if ours := find(rows, GATHER):
        verdict("clips a second out of a set", ours["clips_s"], 20_000, at_most=False, text="{:,.0f}")


# ---- clone: a recording becomes a voice

ENCODE, CLONE, READ = "encoder alone", "clone_voice, from the file", "reading the file alone"
RECORDING = 10.  # s, at 44.1 kHz


def clone_setup(name, folder):
    one_thread()
    from audiolab.audio import read_audio, resample, write_audio
    from audiolab.voice import EncoderSpec, Lessons, VoiceEncoder, clone_voice, fit_basis
    lessons = Lessons(folder/"lessons")
    encoder = VoiceEncoder(lessons.space, EncoderSpec(), *(fit_basis(lessons.part(p)) for p in ("ttl", "dp"))).eval()
    audio = np.concatenate([lessons.audio(i) for i in range(4)])[:round(RECORDING*RATE)]
    audio = resample(audio, RATE, 44100)
    path = folder/"recording.wav"
    write_audio(path, audio, 44100)
    runs = {READ: lambda: read_audio(path, mono=True), ENCODE: lambda: encoder.style(audio, 44100),
            CLONE: lambda: clone_voice([path], encoder, consent="a made voice")}

    def run():
        begin = time.process_time()
        for _ in range(5): runs[name]()
        return dict(ms=1e3*(time.process_time() - begin)/5)
    return run


def part_clone(args, folder):
    rows = compare(clone_setup, (READ, ENCODE, CLONE), rounds_of(args), folder=folder)
    show(f"## Clone: a recording of {RECORDING:g} s at 44.1 kHz, 1 thread", table(rows, {
        "CPU ms": lambda r: f"{r['ms']:.1f}", "peak MB more": lambda r: f"{r['peak_mb']:.0f}"}))
    read, ours = find(rows, READ), find(rows, CLONE)
    if read and ours:
        beyond = paired(ours, read, "ms", lambda a, b: a - b)
        verdict("CPU ms of a clone beyond decoding", beyond, 50)


# ---- generate: the parametric teacher

SPEAK, LESSONS = "synthesize", "make_lessons, with the set on disk"


def generate_setup(name, folder, count):
    one_thread()
    from audiolab.voice import make_lessons
    teacher, styles = voices(count)
    texts = list(itertools.islice(itertools.cycle(TEXTS), count))

    def run():
        begin = time.process_time()
        if name == SPEAK: teacher.synthesize(texts, styles, seeds=list(range(count)))
        else:
            with tempfile.TemporaryDirectory() as tmp:
                make_lessons(Path(tmp)/"set", teacher, counts={"train": count})
        return dict(clips_s=count/(time.process_time() - begin))
    return run


def part_generate(args, folder):
    count = 32 if args.quick else 128
    rows = compare(generate_setup, (SPEAK, LESSONS), rounds_of(args), folder=folder, count=count)
    show(f"## Generation: clips of {SECONDS:g} s by the parametric teacher, 1 thread", table(rows, {
        "clips a CPU second": lambda r: f"{r['clips_s']:.1f}", "peak MB more": lambda r: f"{r['peak_mb']:.0f}"}))
    for row in rows:
        if "error" in row: continue
        verdict(f"clips a CPU second: {row['name']}", row["clips_s"], 90, at_most=False,
                text="{:.1f}")


# ---- all together

PARTS = {"step": part_step, "loader": part_loader, "clone": part_clone, "generate": part_generate}


def main():
    parser = argparse.ArgumentParser(description="The voice encoder beside the recipe that it follows, as Markdown")
    parser.add_argument("parts", nargs="*", metavar="part", help=f"which of {', '.join(PARTS)}; all if none is named")
    parser.add_argument("--quick", action="store_true", help="few clips and rounds: shows that everything runs, not how fast")
    parser.add_argument("--rounds", type=int, help="repetitions that count")
    args = parser.parse_args()
    if unknown := set(args.parts) - set(PARTS): parser.error(f"no part is called {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    header("Voice benchmarks", LIBRARIES)
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), 64 if args.quick else 256)
        for name in PARTS:
            if not args.parts or name in args.parts: PARTS[name](args, Path(folder))


if __name__ == "__main__": main()
