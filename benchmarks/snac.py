"""SNAC training and coding beside the `snac` package, as tables in Markdown.

    python benchmarks/snac.py [step] [codec] [stream] [--quick] [--rounds N] [--device cpu|cuda]

Without names all parts are run. Every implementation has a process of its own; they take turns, one repetition each, after a round that does
not count; figures are medians over rounds, ratios medians of ratios within a round. On the CPU, CPU seconds are what counts: a
machine with other work makes wall time long, not CPU time. Weights are random, the same for all. BENCHMARK_TRACE=1 prints why an implementation fails.

- step: one training step of generator and critics on the same sounds with the same losses, in the order of the earlier trainer, as a plain DAC-style
  step, and ours; then where the time of ours goes.
- codec: encode and decode whole sounds.
- stream: decode piece by piece.
"""
import argparse
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from _peers import compare, find, header, paired, resident_mb, show, table, verdict

LIBRARIES = ("torch", "snac", "numpy", "numba")
RATE = 24000
SPEECH = dict(sampling_rate=RATE, encoder_dim=48, encoder_rates=[2, 4, 8, 8], decoder_dim=1024,
              decoder_rates=[8, 8, 4, 2], attn_window_size=None,
              codebook_size=4096, codebook_dim=8, vq_strides=[4, 2, 1])
SMALL = SPEECH | dict(encoder_dim=16, decoder_dim=256, codebook_size=1024)  # for --quick
SEGMENT = 20480  # samples of a clip: 0.853 s, whole frames of the coarsest codes
# weights of the losses, beside 1 for what the critics say
MEL, FEATURES, COMMITMENT, CODEBOOK = 15., 2., .25, 1.
RATE_G, RATE_D, BETAS = 1e-4, 1e-4, (.8, .99)
# Peak of dense arithmetic in TFLOP/s: bfloat16, TF32
PEAKS = {"H200": (989, 495), "H100": (989, 495), "A100": (312, 156), "L4": (121, 60),
         "4090": (165, 83)}


def sound(seconds=None, samples=None, batch=1):
    "float32 [batch, 1, T]: a chirping tone with noise that comes and goes; the same for all."
    import torch
    samples = samples or round(seconds*RATE)
    noise, t = torch.randn(batch, 1, samples,
                           generator=torch.Generator().manual_seed(0)), torch.arange(samples)/RATE
    pitch = 150 + 40*torch.sin(5*t)
    return .3*torch.sin(2*torch.pi*pitch.cumsum(0)/RATE) + .1*noise*torch.sin(9*t).square()


def package():
    "The `snac` package, whose name this file has too."
    here, folders = Path(__file__).resolve().parent, sys.path[:]
    sys.path[:] = [folder for folder in folders if Path(folder).resolve() != here]
    try: import snac
    finally: sys.path[:] = folders
    return snac


def theirs(quick):
    "The package's model, always with the same weights."
    import torch
    snac = package()
    torch.manual_seed(0)
    model = snac.SNAC(**(SMALL if quick else SPEECH))
    with torch.no_grad():  # entries of the size of what they stand for, so that codes differ
        for quantizer in model.quantizer.quantizers: quantizer.codebook.weight.mul_(.25)
    return model


def ours(quick):
    "Our model with the package's weights."
    from audiolab.snac import SNAC
    model = SNAC(**(SMALL if quick else SPEECH))
    model.load_state_dict(theirs(quick).state_dict())
    return model


def critics(quick):
    import torch
    from audiolab.snac import MultiPeriodDiscriminator, MultiScaleSTFTDiscriminator
    torch.manual_seed(1)
    return (MultiPeriodDiscriminator(channels=(8, 32, 64, 128, 128)),
            MultiScaleSTFTDiscriminator(channels=8)) if quick else (MultiPeriodDiscriminator(),
                                                                    MultiScaleSTFTDiscriminator())


def optimizers(generator, nets):
    import torch
    return (torch.optim.AdamW(generator.parameters(), RATE_G, BETAS),
            torch.optim.AdamW([p for net in nets for p in net.parameters()], RATE_D, BETAS))


def wait(device):
    if device == "cuda":
        import torch
        torch.cuda.synchronize()


# ---- step: generator and critics learn once

def package_forward(model, audio):
    "Sound and both losses of the quantiser; the package's `forward` leaves the losses out."
    from torch.nn import functional as F
    residual = model.encoder(model.preprocess(audio))
    total = commitment = codebook = 0.
    for quantizer in model.quantizer.quantizers:
        latents = quantizer.in_proj(F.avg_pool1d(residual, quantizer.stride, quantizer.stride)
                                    if quantizer.stride > 1 else residual)
        entries, _ = quantizer.decode_latents(latents)
        commitment, codebook = commitment + F.mse_loss(
            latents, entries.detach()), codebook + F.mse_loss(entries, latents.detach())
        found = quantizer.out_proj(latents + (entries - latents).detach())
        if quantizer.stride > 1: found = found.repeat_interleave(quantizer.stride, -1)
        total, residual = total + found, residual - found
    return model.decoder(total)[..., :audio.shape[-1]], commitment, codebook


def plain_step(generator, nets, optim_g, optim_d, generator_first, real):
    "A step without sharing: four passes of the critics. Generator first, as the earlier trainer; critics first, as DAC. Returns the mel loss."
    import torch
    from audiolab.snac import (
        discriminator_loss, feature_matching_loss, generator_loss, multi_scale_mel_loss,
    )
    fake, commitment, codebook = package_forward(generator, real)
    mel = multi_scale_mel_loss(real, fake, RATE)

    def teach_generator():
        loss = MEL*mel + COMMITMENT*commitment + CODEBOOK*codebook
        for net in nets:
            (_, real_maps), (opinions, maps) = net(real), net(fake)
            loss = loss + generator_loss(opinions) + FEATURES*feature_matching_loss(real_maps, maps)
        optim_g.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(generator.parameters(), 1e3)
        optim_g.step()

    def teach_critics():
        loss = sum(sum(discriminator_loss(net(real)[0], net(fake.detach())[0])) for net in nets)
        optim_d.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for net in nets for p in net.parameters()], 10.)
        optim_d.step()
    for teach in (teach_generator, teach_critics) if generator_first else (teach_critics,
                                                                           teach_generator):
        teach()
    return mel


STEPS = ("snac modules, generator first, two passes", "snac modules, critics first (DAC's order)", "audiolab, float32", "audiolab, bfloat16 critics")


def make_step(name, quick, device):
    "A function that takes a step on a batch and gives the mel loss."
    nets = [net.to(device) for net in critics(quick)]
    generator = (theirs if name.startswith("snac") else ours)(quick).to(device)
    if name.startswith("snac"):
        optims = optimizers(generator, nets)
        return lambda real: plain_step(generator, nets, *optims, name == STEPS[0], real)
    from audiolab.snac import setup_optimizers, train_step
    optims, count = setup_optimizers(generator, *nets)[:2], iter(range(10**9))
    for optim, rate in zip(optims, (RATE_G, RATE_D)): optim.param_groups[0]["lr"] = rate
    precision = "bfloat16" if "bfloat16" in name else "float32"
    return lambda real: train_step(real, generator, *nets, *optims, device, next(count),
                                   precision=precision)["mel_loss"]


def step_setup(name, batch, quick, device):
    import gc

    import torch
    from _peers import _forget_peak
    torch.set_num_threads(1)
    on_gpu = device == "cuda"
    real = sound(samples=SEGMENT, batch=batch).to(device)
    step = make_step(name, quick, device)
    _forget_peak()
    if on_gpu: torch.cuda.reset_peak_memory_stats()
    level = torch.cuda.memory_allocated()/2**20 if on_gpu else resident_mb("VmRSS")
    count = iter(range(10**9))
    first = []

    def run():
        torch.manual_seed(next(count))
        wait(device)
        if on_gpu: torch.cuda.reset_peak_memory_stats()
        wall, cpu = time.perf_counter(), time.process_time()
        mel = step(real)
        wait(device)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        first.append(float(mel))
        peak = (torch.cuda.max_memory_allocated()/2**20 if on_gpu else resident_mb()) - level
        del mel
        gc.collect()
        _forget_peak()  # the others need the memory while this one waits
        return dict(wall_s=wall, cpu_s=cpu, step_mb=peak, first_mel=first[0])
    return run


def show_step(args, batch):
    key = "wall_s" if args.device == "cuda" else "cpu_s"
    rows = compare(step_setup, STEPS, args.rounds or (2 if args.quick else 5), batch=batch,
                   quick=args.quick, device=args.device)
    base = find(rows, STEPS[0])
    show(f"## Training step: batch of {batch}, {SEGMENT} samples ({SEGMENT/RATE:.3f} s) each, {'reduced widths' if args.quick else 'published size'}, {args.device}, 1 thread", table(rows, {
        "CPU s": lambda r: f"{r['cpu_s']:.2f}", "wall s": lambda r: f"{r['wall_s']:.2f}",
        "times as fast": lambda r: f"{paired(base, r, key):.2f}" if base else "-",
        "peak MB above the models": lambda r: f"{r['step_mb']:.0f}",
        "mel loss of the first step": lambda r: f"{r['first_mel']:.4f}"}))
    for name, least in zip(STEPS[2:], (1.35, 1.8)):
        if not base or not (row := find(rows, name)): continue
        if args.device == "cpu": verdict(f"{name}, batch of {batch}: difference of the first mel loss", abs(row["first_mel"] - base["first_mel"]), 1e-3*base["first_mel"])
        if args.quick: continue  # the targets are those of the published size
        verdict(f"{name}, batch of {batch}: speed of a step beside {STEPS[0]}",
                paired(base, row, key), least, at_most=False)
        verdict(f"{name}, batch of {batch}: peak memory saved, %", 100*(1 - paired(row, base, "step_mb")), 20, at_most=False)


def part_step(args):
    for batch in (16,) if args.device == "cuda" else (1,) if args.quick else (1, 2):
        show_step(args, batch)
    show("All have the same start, losses, critics and AdamW for both; noise is on. The peak holds activations, gradients and the optimisers' state.")
    show_parts(args)


PARTS_OF_STEP = ("generator, forward", "mel loss, forward and backward", "critics, forward on two sounds", "critics, gradient for the sound", "critics, gradient for their weights",
                 "generator, backward", "both optimisers")


def parts_setup(name, batch, quick, device):
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from audiolab.snac import (
        discriminator_loss, feature_matching_loss, generator_loss, multi_scale_mel_loss,
    )
    torch.set_num_threads(1)
    real = sound(samples=SEGMENT, batch=batch).to(device)
    generator = ours(quick).to(device)
    nets = [net.to(device) for net in critics(quick)]
    optim, half = optimizers(generator, nets), torch.bfloat16 if "bfloat16" in name else None
    weights = [p for net in nets for p in net.parameters()]

    def hear(sound):
        with torch.autocast(device, half, enabled=half is not None):
            return [net(sound) for net in nets]

    def flops(function):
        with torch.no_grad(), FlopCounterMode(display=False) as counter: function()
        return counter.get_total_flops()/1e12
    of_generator, of_critics = flops(lambda: generator(real)), flops(lambda: hear(real))

    def run():
        times, marks = {}, [None, None]

        def mark(part=None):
            wait(device)
            now = time.perf_counter() if device == "cuda" else time.process_time()
            if part: times[part] = now - marks[0]
            marks[0] = now
        mark()
        made, levels = (coded := generator(real, details=True)).audio, coded.levels
        mark(PARTS_OF_STEP[0])
        fake = made.detach().requires_grad_()
        gradient, = torch.autograd.grad(MEL*multi_scale_mel_loss(real, fake, RATE), fake)
        mark(PARTS_OF_STEP[1])
        heard_real, heard = hear(real), hear(fake)
        mark(PARTS_OF_STEP[2])
        wish = sum(generator_loss(o) + FEATURES*feature_matching_loss(m, maps) for (_, m),
                   (o, maps) in zip(heard_real, heard))
        wish, = torch.autograd.grad(wish, fake, retain_graph=True)
        mark(PARTS_OF_STEP[3])
        loss = sum(sum(discriminator_loss(a, b)) for (a, _), (b, _) in zip(heard_real, heard))
        for p, g in zip(weights, torch.autograd.grad(loss, weights)): p.grad = g
        mark(PARTS_OF_STEP[4])
        quantiser = sum(COMMITMENT*level.commitment + CODEBOOK*level.codebook for level in levels)
        torch.autograd.backward([made, quantiser], [gradient + wish, None])
        mark(PARTS_OF_STEP[5])
        for one in optim:
            one.step()
            one.zero_grad()
        mark(PARTS_OF_STEP[6])
        # 1 for a forward pass, 1 for the gradient of its input, 1 for that of its weights
        return times | dict(work_generator=3*of_generator, work_critics=7*of_critics)
    return run


def show_parts(args):
    name, batch = STEPS[3], 16 if args.device == "cuda" else 1
    rows = compare(parts_setup, [name], args.rounds or (2 if args.quick else 3), batch=batch,
                   quick=args.quick, device=args.device)
    if "error" in rows[0]:
        show(f"Time by part: {rows[0]['error']}")
        return
    row, total = rows[0], sum(rows[0][part] for part in PARTS_OF_STEP)
    lines = [dict(name=part, seconds=row[part])
             for part in PARTS_OF_STEP] + [dict(name="all", seconds=total)]
    show(f"### Where the time of *{name}* goes, batch of {batch}, {args.device}", table(lines, {
        "ms": lambda r: f"{1e3*r['seconds']:.1f}", "share": lambda r: f"{100*r['seconds']/total:.0f} %"}))
    generator, net = row[PARTS_OF_STEP[0]] + row[PARTS_OF_STEP[5]], sum(row[PARTS_OF_STEP[i]]
                                                                        for i in (2, 3, 4))
    for who, work, seconds, kind in (("generator", row["work_generator"], generator, 1),
                                     ("critics", row["work_critics"], net, 0)):
        peak = next((peaks[kind] for key, peaks in PEAKS.items() if args.device == "cuda"
                     and key in args.gpu), None)
        show(f"{who}: {work:.3f} TFLOP a step, {work/seconds:.3g} TFLOP/s" + (f", {100*work/seconds/peak:.1f} % of {peak} TFLOP/s" if peak else ""))


# ---- codec: whole sounds

CODECS = ("snac", "snac, weight norm removed", "audiolab Codec")


def codec_setup(name, seconds, threads, quick, device):
    import torch
    torch.set_num_threads(threads)
    x = sound(seconds)
    if name.startswith("audiolab"):
        from audiolab.snac import Codec
        codec = Codec(ours(quick), device)
        encode, decode, given = codec.encode, codec.decode, x
        def levels(codes): return [level.reshape(1, -1) for level in codes.codes]
    else:
        model, given = theirs(quick).eval().to(device), x.to(device)
        if "removed" in name:
            for module in [m for m in model.modules()
                           if torch.nn.utils.parametrize.is_parametrized(m)]:
                torch.nn.utils.parametrize.remove_parametrizations(module, "weight")
        encode, decode, levels = model.encode, lambda codes: model.decode(codes).cpu(), list

    @torch.inference_mode()
    def run():
        found = {}

        def timed(what, function, argument):
            wait(device)
            wall, cpu = time.perf_counter(), time.process_time()
            result = function(argument)
            wait(device)
            found[f"{what}_wall"] = time.perf_counter() - wall
            found[
                f"{what}_cpu"] = time.process_time() - cpu
            return result
        codes = timed("encode", encode, given)
        made = timed("decode", decode, codes)
        if not made.isfinite().all() or made.numel() < x.numel(): raise RuntimeError("the sound is not whole")
        for kind in ("wall", "cpu"): found[f"both_{kind}"] = found[f"encode_{kind}"] + found[f"decode_{kind}"]
        for i, level in enumerate(levels(codes)):
            found[f"codes_{i}"] = float(
                (level.double()*torch.arange(1, level.shape[-1] + 1, device=level.device)).sum())
        return found
    return run


def show_codec(args, seconds, threads):
    kind = "wall" if args.device == "cuda" else "cpu"
    rows = compare(codec_setup, CODECS, args.rounds or (2 if args.quick else 5), seconds=seconds,
                   threads=threads, quick=args.quick, device=args.device)
    base, line = find(rows, CODECS[0]), find(rows, CODECS[2])

    def cell(row, what): return f"{1e3*row[what + '_' + kind]:.0f} ms" + (f" ({paired(base, row, what + '_' + kind):.2f}x)" if base else "")
    what = f"{seconds} s of sound, {threads} thread{'s'*(threads > 1)}"
    show(f"### {what}", table(rows, {
        f"encode, {kind}": lambda r: cell(r, "encode"), f"decode, {kind}": lambda r: cell(r, "decode"), f"both, {kind}": lambda r: cell(r, "both"),
        "both, wall": lambda r: f"{1e3*r['both_wall']:.0f} ms", "times real time": lambda r: f"{seconds/r['both_wall']:.1f}", "peak MB": lambda r: f"{r['peak_mb']:.0f}",
        "same codes": lambda r: "-" if not base else "yes" if all(r[f"codes_{i}"] == base[f"codes_{i}"] for i in range(3)) else "no"}))
    if base and line and not args.quick: verdict(f"encode and decode {what}: speed beside the package", paired(base, line, f"both_{kind}"), 1.15, at_most=False)


def part_codec(args):
    show(f"## Encode and decode, {'reduced widths' if args.quick else 'published size'}, {args.device}")
    for threads in (1, 2):
        for seconds in (1, 5)[:3 - threads] if args.quick else (1, 5, 20):
            show_codec(args, seconds, threads)
    show("Noise is on, as in use. The package normalises weights at each call; our codec has done it once. 'Weight norm removed' is the package after the same.")


# ---- stream: piece by piece

def stream_setup(name, chunk, seconds, quick, device):
    import torch
    torch.set_num_threads(1)
    x = sound(seconds)
    if name == "snac, growing prefix":
        model = theirs(quick).eval().to(device)
        codes = model.encode(x.to(device))
        coarse = max(1, round(chunk*RATE/model.hop_length/model.vq_strides[0]))

        def pieces():
            done = 0
            for end in range(coarse, codes[0].shape[-1] + coarse, coarse):
                sound = model.decode([c[:, :end*model.vq_strides[0]//s] for c,
                                      s in zip(codes, model.vq_strides)])[0, 0].cpu()
                yield sound[done:]
                done = len(sound)
    else:
        from audiolab.snac import Codec
        codec = Codec(ours(quick), device)
        codes = codec.encode(x)
        whole = codec.decode(codes, seed=0)
        pieces = (lambda: (codec.decode(codes, seed=0) for _ in range(1))) if name == "audiolab, whole" else lambda: codec.decode_stream(codes, chunk, seed=0)

    @torch.inference_mode()
    def run():
        walls, cpus, sounds, made = [], [], [], pieces()
        while True:
            wall, cpu = time.perf_counter(), time.process_time()
            piece = next(made, None)
            if piece is None: break
            wait(device)
            walls.append(time.perf_counter() - wall)
            cpus.append(time.process_time() - cpu)
            sounds.append(piece)
        joined = torch.cat(sounds)
        off = float((joined - whole).abs().max()) if name.startswith("audiolab") else 0.
        if len(joined) < x.shape[-1] or off > 1e-4: raise RuntimeError(f"pieces of {len(joined)} samples do not make the whole (off by {off:.2g})")
        return dict(chunks=len(sounds), piece_ms=1e3*median(cpus), piece_wall_ms=1e3*median(walls),
                    worst_ms=1e3*max(walls), last_ms=1e3*cpus[-1],
                    total_cpu=sum(cpus), total_wall=sum(walls), off=off)
    return run


STREAMS = ("audiolab, whole", "audiolab decode_stream", "snac, growing prefix")


def show_stream(args, seconds, chunk):
    # the growing prefix takes minutes with small pieces
    names = STREAMS if chunk > .1 else STREAMS[:2]
    rows = compare(stream_setup, names, args.rounds or (2 if args.quick else 3), chunk=chunk,
                   seconds=seconds, quick=args.quick, device=args.device)
    base = find(rows, STREAMS[0])
    show(f"### Pieces of {chunk:g} s", table(rows, {
        "pieces": lambda r: f"{r['chunks']:.0f}", "CPU ms of a piece": lambda r: f"{r['piece_ms']:.0f}", "of the last": lambda r: f"{r['last_ms']:.0f}",
        "wall ms of a piece": lambda r: f"{r['piece_wall_ms']:.0f}", "of the slowest": lambda r: f"{r['worst_ms']:.0f}", "times real time": lambda r: f"{seconds/r['total_wall']:.2f}",
        "work beside the whole": lambda r: f"{paired(r, base, 'total_cpu'):.2f}" if base else "-", "largest difference from the whole": lambda r: f"{r['off']:.1g}" if r["name"].startswith("audiolab") else "-"}))


def part_stream(args):
    seconds = 2. if args.quick else 4.
    show(f"## Streaming: {seconds:g} s, {'reduced widths' if args.quick else 'published size'}, {args.device}, 1 thread")
    for chunk in (.25,) if args.quick else (.0853, .25, 1.): show_stream(args, seconds, chunk)
    show("A stream gives the sound of a code as soon as all codes that bear on it have come, 12 latent frames or 0.26 s later, and each piece needs that much beside it "
         "anew. The package decodes all that has come so far, whose last quarter of a second changes with the next codes.")


# ---- all together

PARTS = {"step": part_step, "codec": part_codec, "stream": part_stream}


def gpu():
    "Name of the GPU, or ''. Asked in a process of its own: one that has touched the driver must not be forked."
    code = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')"
    return (subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True,
                           text=True).stdout.strip().splitlines() or [""])[-1]


def main():
    parser = argparse.ArgumentParser(description="SNAC beside the snac package, as Markdown")
    parser.add_argument("parts", nargs="*", metavar="part", help=f"which of {', '.join(PARTS)}; all if none is named")
    parser.add_argument("--quick", action="store_true", help="reduced widths: shows that everything runs, not how fast")
    parser.add_argument("--rounds", type=int, help="repetitions that count")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="where to compute (default: a GPU if there is one)")
    args = parser.parse_args()
    if unknown := set(args.parts) - set(PARTS): parser.error(f"no part is called {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    args.gpu = gpu()
    args.device = args.device or ("cuda" if args.gpu else "cpu")
    header("SNAC benchmarks", LIBRARIES, args.gpu or "no GPU")
    for name in PARTS:
        if not args.parts or name in args.parts: PARTS[name](args)


if __name__ == "__main__": main()
