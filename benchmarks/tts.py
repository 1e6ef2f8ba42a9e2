"""Teaching T3 and speaking with it beside padded batches and transformers, as tables in Markdown.

    python benchmarks/tts.py [train] [memory] [speak] [load] [--quick] [--rounds N] [--folder DIR] [--gpu]

Without names all parts are run, on one core: every implementation has a process of its own; they take turns, one repetition each, after a round
that does not count; figures are medians over rounds, ratios medians of ratios within a round, times are CPU times. The same weights, the same
clips (random tokens, as long as sentences of subtitles are), the same work: the first lines of a run compare losses and codes. `--gpu` measures
the released size on a CUDA GPU instead, in a few minutes. The file of 2.1 GB for the last part is written to a temporary folder inside `--folder`
and removed. BENCHMARK_TRACE=1 prints why an implementation fails.
"""
import argparse
import tempfile
import time
import warnings
from pathlib import Path

from _peers import Peer, compare, find, header, paired, short, show, table, verdict

import numpy as np

LIBRARIES = "torch", "transformers", "accelerate", "safetensors", "numpy"
OURS, FORK, TRAINER = "audiolab, packed", "padded, as forks do it", "transformers Trainer"
GROUPED = "transformers Trainer, group_by_length"
CLIPS_A_BATCH, CODES, LETTERS = 16, 6561, 2454
SIZES = dict(width=384, layers=6, heads=6, queries=32)  # heads of 64, as released
SMALL = dict(width=192, layers=3, heads=3, queries=32)


# ---- what is learnt from

class PaperTokenizer:
    "The tokenizer of a cache of random tokens."
    start_id, stop_id, unknown_id, name, languages = 255, 0, -1, "paper", ("en",)
    def __len__(self): return LETTERS
    def fingerprint(self): return "paper"
    def save(self, path): Path(path).write_text("{}")


def corpus(folder, clips):
    "Clips as subtitles cut them: from 1 to 15 s, 5.3 s in the mean, 25 codes and 6.5 to 8.3 letters a second."
    from audiolab.tts import paper_cache
    rng = np.random.default_rng(0)
    seconds = np.empty(0)
    while len(seconds) < clips:
        drawn = rng.lognormal(np.log(4.6), .62, 4*clips)
        seconds = np.append(seconds, drawn[(drawn >= 1) & (drawn <= 15)])
    seconds = seconds[:clips]
    letters = np.maximum(seconds*rng.uniform(6.5, 8.3, clips), 3).astype(int)
    return paper_cache(Path(folder), (25*seconds).astype(int), letters, codes=CODES, rows=LETTERS)


def material(cache, clips=None):
    "A cache as a run is told of it."
    from audiolab.tts import Material
    clips = np.arange(len(cache)) if clips is None else clips
    return Material(PaperTokenizer(), {"paper": cache},
                    {"train": {"paper": clips}, "validation": {}, "test": {}})


def config(folder, sizes, tokens, steps, full=.985, seed=0):
    "Settings of a run. Nothing is hidden from the model, since nothing is from others'."
    from audiolab.tts import as_tts_config
    return as_tts_config({
        "model": {"small": sizes, "freeze": "none"},
        "data": {"caches": ["paper"], "tokenizer": "paper", "val_ratio": 0., "text_dropout": 0.,
                 "prompt_dropout": 0., "full": full},
        "training": {"tokens": tokens, "steps": steps, "epochs": 0, "learning_rate": 1e-3,
                     "warmup": 1, "device": "cpu", "log_every": 10, "validate_every": "never",
                     "sample_every": "never", "save_every": "never", "seed": seed},
        "validation": {"n_samples": 0}, "paths": {"output": str(folder), "use_tensorboard": False}})


def first_model(settings, given):
    "The weights that all begin with."
    from audiolab.tts import begin_small
    return begin_small(settings, given).model.train()


def lessons_of(cache, form, clips=None):
    "Clips as data for those who pad."
    from audiolab.tts import STEADY, SpeechLessons
    return SpeechLessons(cache, form, STEADY, clips)


def mean_rows(cache, sizes):
    "Rows of a clip in a pack."
    return 3 + sizes["queries"] + float((cache.text_lengths + cache.speech_lengths).mean())


# ---- a step of training

def run_ours(settings, given, clock):
    "A run as `audiolab tts train` makes it; its trainer times the steps."
    from audiolab.training import RunFolder, Trainer
    from audiolab.tts import TTSTask, engine_settings

    class Timed(TTSTask):
        def step(self, batch, loop):
            told = super().step(batch, loop)
            clock.fill.append(float(told["packing"]))
            clock.tick(len(batch["text"]) + len(batch["speech"]))
            return told
    clock.fill = []
    task = Timed(settings, given)
    Trainer(task, engine_settings(settings, given), RunFolder(settings.paths.output), []).fit()


def train_setup(name, cache, sizes, tokens, steps, folder, clips=None):
    "A few steps from the first weights; only what a library needs is imported."
    import torch
    from audiolab.tts import TokenCache
    from _ssgs_em import resident_mb
    torch.set_num_threads(1)
    import _padded_tts as peers
    if name in (TRAINER, GROUPED): import transformers.trainer  # noqa: F401
    cache, skip, number = TokenCache(cache), min(1, steps - 1), [0]
    given = material(cache, clips)

    class Clock(peers.Clock):
        def tick(self, count):
            super().tick(count)
            if self.steps == steps: self.peak = resident_mb()  # before the end is saved

    def run():
        number[0] += 1
        clock = Clock(skip)
        with tempfile.TemporaryDirectory(dir=folder) as own:
            full = .985 if clips is None else 0
            settings = config(own, sizes, tokens, steps, full, seed=number[0])
            if name == OURS: run_ours(settings, given, clock)
            else:
                model = first_model(settings, given)
                lessons = lessons_of(cache, model.config, clips)
                args = model, lessons, CLIPS_A_BATCH, steps, number[0], clock
                if name == FORK: peers.fork_run(*args)
                else: peers.trainer_run(*args, own, name == GROUPED)
        found = dict(top_mb=clock.peak)
        if steps > 1: found |= clock.result()
        if name == OURS: found["packing"] = float(np.mean(clock.fill))
        return found
    return run


def same_loss(cache, sizes):
    "A clip alone is padded by nothing: what it costs by both ways."
    import torch
    import _padded_tts as peers
    from audiolab.tts import pack_items, pack_of, speech_text_loss
    model = first_model(config("none", sizes, 4096, 1), material(cache)).eval()
    lessons = lessons_of(cache, model.config)
    # a prompt that is filled up is heard otherwise
    item = lessons.item(0) | {"prompt": lessons.item(1)["speech"][:1].repeat(150)}
    with torch.no_grad():
        padded = peers.padded_model(model).eval()(**peers.collate([item], model.config))["loss"]
        found = speech_text_loss(model, pack_of(pack_items([item], model.config)))
    return float(found["loss"]), float(padded)


def shares(cache, batch, queries=32):
    "Useful share of the rows of random padded batches."
    order = np.random.default_rng(0).permutation(len(cache))
    order = order[:len(cache)//batch*batch].reshape(-1, batch)
    text, speech = cache.text_lengths[order], cache.speech_lengths[order] + 1
    padded = batch*(2 + queries + text.max(1) + speech.max(1)).sum()
    return float(((2 + queries + text + speech).sum())/padded)


def part_train(args, folder):
    sizes, steps, rounds = (SMALL, 3, 2) if args.quick else (SIZES, 5, args.rounds or 5)
    cache = corpus(Path(folder)/"clips", 1200)
    tokens = round(CLIPS_A_BATCH*mean_rows(cache, sizes))
    ours, theirs = same_loss(cache, sizes)
    show(f"## A step of training: width {sizes['width']}, {sizes['layers']} blocks, {LETTERS} text and {CODES + 2} speech rows",
         f"Batches of {CLIPS_A_BATCH} clips in the order of chance, of whose rows {shares(cache, CLIPS_A_BATCH):.0%} are used; packs of {tokens} rows, "
         f"which are {CLIPS_A_BATCH} clips of mean length. A clip alone costs {ours:.5f} by ours and {theirs:.5f} by theirs. AdamW, gradients clipped to 1.")
    if abs(ours - theirs) > 1e-3: raise SystemExit("not the same model")
    names = [OURS, FORK, TRAINER, GROUPED]
    rows = compare(train_setup, names, rounds, cache=Path(folder)/"clips", sizes=sizes,
                   tokens=tokens, steps=steps, folder=folder)
    base = find(rows, OURS)
    def times(row): return paired(base, row, "tokens_s")
    show(table(rows, {
        "useful tokens / CPU s": lambda r: f"{r['tokens_s']:.0f}",
        "tokens / step": lambda r: f"{r['tokens']:.0f}", "CPU s / step": lambda r: f"{r['step_s']:.2f}",
        "audiolab is faster by": lambda r: f"{times(r):.2f}x"}))
    for name, limit in ((FORK, 2.), (TRAINER, 1.5)):
        if row := find(rows, name):
            verdict(f"useful tokens a CPU second beside {name}", times(row), limit, at_most=False)
    verdict("rows of packs that are used", base["packing"], .97, at_most=False, text="{:.1%}")


# ---- its memory

def part_memory(args, folder):
    sizes = SMALL if args.quick else SIZES
    cache = corpus(Path(folder)/"same", 1200)
    order = np.random.default_rng(1).permutation(len(cache))[:CLIPS_A_BATCH*75]
    order = order.reshape(-1, CLIPS_A_BATCH)
    padded = cache.text_lengths[order].max(1) + cache.speech_lengths[order].max(1)
    clips = np.sort(order[np.argsort(padded)[len(padded)//2]])  # the middle one of 75
    tokens = cache.text_lengths + cache.speech_lengths
    rows = len(clips)*(3 + sizes["queries"]) + int(tokens[clips].sum())
    found = []
    for name in (OURS, FORK, TRAINER):
        peer = Peer(train_setup, name, cache=Path(folder)/"same", sizes=sizes, tokens=rows,
                    steps=2, folder=folder, clips=clips)
        answer = peer.ask()
        peer.close()
        found.append(dict(name=name, error=peer.error) if peer.error
                     else dict(name=name, rounds=[answer], **answer))
    base = find(found, OURS)
    title = f"## Memory of two steps on the same {CLIPS_A_BATCH} clips, {rows} rows that are used"
    show(title, table(found, {
        "peak MB above the imports": lambda r: f"{r['peak_mb']:.0f}",
        "audiolab takes": lambda r: f"{base['peak_mb']/r['peak_mb'] - 1:+.0%}"}),
        "Weights, gradients and the state of AdamW are in it; a process each, which has done nothing before.")
    if row := find(found, FORK):
        verdict(f"memory less than {FORK}", 1 - base["peak_mb"]/row["peak_mb"], .3,
                at_most=False, text="{:.0%}")


# ---- speaking

SPEAK = "audiolab generate_codes", "transformers generate"


def speaking(sizes, batch, seed=0):
    "A model that never stops by itself soon, texts and a voice."
    from audiolab.tts import T3Config, VoicePrompt, init_t3
    form = T3Config.small(LETTERS, CODES, start_text=255, **sizes)
    model, rng = init_t3(form, seed).eval(), np.random.default_rng(seed)
    texts = [np.array([255, *rng.integers(1, LETTERS, 40 - 2*row), 0]) for row in range(batch)]
    voice = VoicePrompt(rng.standard_normal(256).astype(np.float32)/16, rng.integers(0, CODES, 100))
    return model, texts, voice


def speak_setup(name, sizes, batch, count):
    "So many codes of each text, drawn at a temperature of 0.8 with a penalty for repeating; no guidance."
    import torch
    torch.set_num_threads(1)
    from audiolab.tts import SamplingConfig, generate_codes
    import _padded_tts as peers
    model, texts, voice = speaking(sizes, batch)
    if name == SPEAK[0]:
        how = SamplingConfig(cfg_weight=0., max_tokens=count, loop_window=0)
        def run(): return dict(codes=sum(map(len, generate_codes(model, texts, voice, how))))
    else:
        theirs, utterances = peers.spoken_llama(model), [voice.utterance(text) for text in texts]
        how = dict(do_sample=True, temperature=.8, min_p=.05, repetition_penalty=1.2, top_k=0)
        def run():
            said = peers.generate(theirs, model, utterances, count, **how)
            return dict(codes=said.numel())
    return run


def same_codes(sizes, batch, count=20):
    "Whether both say the same when nothing is left to chance."
    import _padded_tts as peers
    from audiolab.tts import SamplingConfig, generate_codes
    model, texts, voice = speaking(sizes, batch)
    how = SamplingConfig(temperature=0, repetition_penalty=1, cfg_weight=0., max_tokens=count,
                         loop_window=0)
    ours = generate_codes(model, texts, voice, how)
    theirs = peers.generate(peers.spoken_llama(model), model, [voice.utterance(t) for t in texts],
                            count, do_sample=False).tolist()
    return all(codes.ids.tolist() == other for codes, other in zip(ours, theirs))


def part_speak(args, folder):
    sizes, count, rounds = (SMALL, 60, 2) if args.quick else (SIZES, 250, args.rounds or 5)
    show(f"## Speaking: {count} codes of each text, width {sizes['width']}, {sizes['layers']} blocks, with a memory of keys and values")
    for batch in (1, 8):
        same = same_codes(sizes, batch)
        rows = compare(speak_setup, SPEAK, rounds, sizes=sizes, batch=batch, count=count)
        for row in rows:
            if "error" in row: continue
            for each in (row, *row["rounds"]): each["codes_s"] = each["codes"]/each["cpu_s"]
        base = find(rows, SPEAK[0])
        show(f"### {batch} at once", table(rows, {
            "codes / CPU s": lambda r: f"{r['codes_s']:.0f}",
            "audiolab is faster by": lambda r: f"{paired(base, r, 'codes_s'):.2f}x"}),  # noqa: B023
            f"Without chance both say the same codes: {'yes' if same else 'NO'}.")
        if other := find(rows, SPEAK[1]):
            verdict(f"codes a CPU second, {batch} at once", paired(base, other, "codes_s"), 1.5,
                    at_most=False)


# ---- a large file

def sparse_release(path, form):
    "A file of the released size, without blocks on the disk."
    import json
    from audiolab.tts import tensor_shapes
    about, end = {}, 0
    for name, shape in tensor_shapes(form).items():
        size = 4*int(np.prod(shape))
        about[name] = dict(dtype="F32", shape=list(shape), data_offsets=[end, end + size])
        end += size
    head = json.dumps(about).encode()
    head += b" "*(-len(head) % 8)
    with open(path, "wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        file.truncate(8 + len(head) + end)
    return path.stat().st_size


def load_setup(name, path):
    import torch
    torch.set_num_threads(1)
    from audiolab.tts import T3Config, load_t3
    import _padded_tts as peers
    from safetensors.torch import load_file
    if name.startswith("audiolab"):
        return lambda: dict(first=float(load_t3(path).text_emb.weight[0, 0]))

    def run():
        padded = peers.PaddedT3(T3Config(text_vocab=LETTERS))
        padded.load_state_dict(load_file(path))
        return dict(first=float(padded.text_emb.weight[0, 0]))
    return run


def part_load(args, folder):
    from audiolab.tts import T3Config
    layers = 3 if args.quick else 30
    path = Path(folder)/"t3.safetensors"
    size = sparse_release(path, T3Config(text_vocab=LETTERS, layers=layers))/2**20
    found = []
    for name in ("audiolab load_t3", "PyTorch module, load_file, load_state_dict"):
        if layers != 30 and found: continue
        peer = Peer(load_setup, name, path=path)
        answer = peer.ask()
        peer.close()
        found.append(dict(name=name, error=peer.error) if peer.error
                     else dict(name=name, rounds=[answer], **answer))
    path.unlink()
    show(f"## Opening a file of {size*2**20/1e9:.2f} GB", table(found, {
        "peak MB": lambda r: f"{r['peak_mb']:.0f}",
        "of the file": lambda r: f"{r['peak_mb']/size:.2f}x", "CPU s": lambda r: f"{r['cpu_s']:.1f}"}))
    if base := find(found, "audiolab load_t3"):
        verdict("peak memory beside the size of the file", base["peak_mb"]/size, 1.1)


# ---- the released size on a GPU

class GpuClock:
    "Seconds, tokens and waits of the host from the end of one step to the end of the last; it waits for the GPU at these two alone."
    def __init__(self, skip, steps):
        self.skip, self.last = skip, steps
        self.steps = self.tokens = 0

    def tick(self, tokens):
        "A step has been handed to the GPU."
        import torch
        self.steps += 1
        if self.skip < self.steps: self.tokens += tokens
        if self.steps not in (self.skip, self.last): return
        torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()
        self.seconds = time.perf_counter() - (self.begin if self.steps == self.last else 0)
        self.begin = time.perf_counter()
        if self.steps == self.skip: torch.cuda.set_sync_debug_mode("warn")


def gpu_run(cache, folder, base, tokens, mode, compile, steps=24, skip=8):
    "A run on packs of so many rows: rows of text and speech a second, waits of the host, memory at most."
    import torch
    settings = config(folder, dict(queries=32), tokens, steps, seed=1)
    settings.model.base, settings.model.freeze = str(base), mode
    settings.training.device, settings.training.compile = "cuda", compile
    settings.training.log_every, settings.training.num_workers = 10*steps, 4
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    clock = GpuClock(skip, steps)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        run_ours(settings, material(cache), clock)
    waits = sum("synchronizing" in str(each.message) for each in said)
    return dict(tokens_s=clock.tokens/clock.seconds, waits=waits/(steps - skip),
                packing=float(np.mean(clock.fill)), peak_gb=torch.cuda.max_memory_reserved()/1e9)


GPU_RUNS = {  # tokens of a pack, what is frozen, whether blocks are compiled
    "all weights, packs of 32k": (32768, "none", False),
    "all weights, packs of 32k, compiled": (32768, "none", True),
    "LoRA, packs of 8k": (8192, "lora", False)}


def part_gpu(args, folder):
    import torch
    show("## The released size on a GPU, bfloat16")
    if not torch.cuda.is_available():
        show("Not measured: there is no CUDA GPU here.")
        return
    from audiolab.tts import T3Config, init_t3, save_t3
    base = save_t3(init_t3(T3Config(text_vocab=LETTERS)), Path(folder)/"base.safetensors")
    cache, rows = corpus(Path(folder)/"clips", 6000), []
    for name, settings in GPU_RUNS.items():
        own = Path(folder)/f"run{len(rows)}"
        try: rows.append(dict(name=name, **gpu_run(cache, own, base, *settings)))
        except Exception as error: rows.append(dict(name=name, error=short(error)))
    show(torch.cuda.get_device_name(), table(rows, {
        "tokens of text and speech / s": lambda r: f"{r['tokens_s']:,.0f}",
        "rows used": lambda r: f"{r['packing']:.1%}",
        "waits of the host / step": lambda r: f"{r['waits']:.2f}", "peak GB": lambda r: f"{r['peak_gb']:.1f}"}))
    full = [row for row in rows[:2] if "error" not in row]
    if full:
        best = max(full, key=lambda row: row["tokens_s"])
        verdict("tokens a second, all weights", best["tokens_s"], 1e5, at_most=False,
                text="{:,.0f}")
        verdict("waits of the host between logged steps", best["waits"], 0, text="{:.2f}")
    if row := find(rows, "LoRA, packs of 8k"):
        verdict("memory of LoRA, GB", row["peak_gb"], 24, text="{:.1f}")


# ---- all together

PARTS = {"train": part_train, "memory": part_memory, "speak": part_speak, "load": part_load}


def main():
    parser = argparse.ArgumentParser(description="T3 beside padded batches and transformers, as Markdown")
    parser.add_argument("parts", nargs="*", metavar="part", help=f"which of {', '.join(PARTS)}; all if none is named")
    parser.add_argument("--quick", action="store_true", help="smaller and shorter: shows that everything runs, not how fast")
    parser.add_argument("--rounds", type=int, help="repetitions that count")
    parser.add_argument("--folder", help="where to write (default: the system's temporary folder)")
    parser.add_argument("--gpu", action="store_true", help="the released size on a CUDA GPU, instead")
    args = parser.parse_args()
    if unknown := set(args.parts) - set(PARTS): parser.error(f"no part is called {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    with tempfile.TemporaryDirectory(dir=args.folder, ignore_cleanup_errors=True) as folder:
        header("T3 beside others", LIBRARIES)
        if args.gpu: part_gpu(args, folder)
        for name in () if args.gpu else PARTS:
            if not args.parts or name in args.parts: PARTS[name](args, folder)


if __name__ == "__main__": main()
