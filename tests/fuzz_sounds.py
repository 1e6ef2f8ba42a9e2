"""Sound files of every kind that libsndfile writes, in every state that files are found in: whole, cut, joined, with
tags and junk, miscounted, damaged. Each gives every sample that is in it, or an error that names the file."""
from dataclasses import dataclass, field

import numpy as np
import soundfile as sf

from fuzz_damage import damage, flip
from fuzz_runs import Kind
from sound_zoo import APE, ID3, KINDS, with_count

UNCOUNTED = "SD2", "IRCAM", "PAF", "PVF", "XI"  # do not say how many samples they have
FOUND_BEHIND_JUNK = "WAV", "WAVEX", "RF64", "AIFF", "CAF", "AU", "FLAC", "OGG", "MP3", "SVX"
ENDS_KNOWN = (*FOUND_BEHIND_JUNK, "W64", "VOC")
# what libsndfile writes so that neither it nor others can read it
BROKEN = {("CAF", "ALAC_20"), ("CAF", "ALAC_32")}
RATES = 8000, 11_025, 16_000, 22_050, 32_000, 44_100, 48_000, 96_000
PADDED_HEADS = {"NIST": 1024, "IRCAM": 1024, "PAF": 2048, "CAF": 4096}
COUNT_MISSES = 64  # bytes that may lack, for some programs count their header in


@dataclass
class Case:
    "A file, what is in it, and what may come of it"
    content: bytes
    kind: str = "WAV"
    whole: np.ndarray | None = None  # [C, T]
    allowed: set = field(default_factory=lambda: {"error", "other"})
    note: str = ""


def outcome(x, whole):
    "What was read, compared with what is there"
    if whole is None or x.shape[0] != whole.shape[0]: return "other"
    n = min(x.shape[1], whole.shape[1])
    if not np.allclose(x[:, :n], whole[:, :n], atol=3e-6): return "other"
    if x.shape == whole.shape: return "all"
    if x.shape[1] == n + 1: return "padded"  # the byte behind an odd number of them
    return "more" if n < x.shape[1] else "part"


def silence(x):
    "Longest run of samples that are 0 in all channels"
    loud = np.flatnonzero(np.any(x != 0, axis=0))
    return int(np.diff(np.r_[-1, loud, x.shape[1]]).max()) - 1


def numbers(at, size, values, order):
    "Bytes of a file replaced by numbers"
    return lambda data, rng: data[:at] + rng.choice(values).to_bytes(size, order) + data[at+size:]


def misfit(data, kind, rng):
    "A file whose header counts wrongly, and what may come of it; None where its header is not known here"
    act = rng.choice(("nothing", "endless", "less", "more"))
    fits = {"all", "error"} if act == "less" else {"error"} if act == "more" else {"all", "padded"}
    places = {"AU": (8, 4, "big"), "AVR": (26, 4, "big"), "WVE": (18, 4, "big"),
              "MPC2K": (30, 4, "little"), "MAT5": (260, 4, "little"), "MAT4": (47, 4, "little")}
    name = {"WAV": b"data", "WAVEX": b"data", "AIFF": b"SSND", "SVX": b"BODY", "CAF": b"data",
            "W64": b"data"}.get(kind)
    if kind == "MP3":
        return with_count(data, lambda n: {"nothing": 0, "endless": 2**31, "less": n//2,
                                           "more": n + 1}[act]), {"all"}
    if kind == "FLAC": at, size, order = 22, 4, "big"
    elif kind in places: at, size, order = places[kind]
    elif name:
        at = data.index(name) + (16 if kind == "W64" else 4)
        size, order = 8 if kind in ("CAF", "W64") else 4, "big" if kind in (
            "AIFF", "SVX", "CAF") else "little"
    else: return None
    stated = int.from_bytes(data[at:at+size], order)
    if act == "endless" and kind in ("W64", "SVX", "AVR", "WVE", "MPC2K", "MAT4", "MAT5", "FLAC"):
        return None
    value = {"nothing": 0, "endless": 2**(8*size) - 1, "less": stated//2,
             "more": stated*2 + 1000}[act]
    if act == "nothing" and kind in ("W64", "SVX", "AIFF", "MAT4"): fits = {"all", "error"}
    if act == "less" and (kind == "MAT4" or stated < 3000): fits |= {"part", "other"}
    return data[:at] + value.to_bytes(size, order) + data[at+size:], fits


class Zoo(Kind):
    "Sound of every kind"

    def make(self):
        self.path = self.folder/"sound.wav"
        self.pairs = [(kind, sub) for kind in sorted(KINDS) for sub in KINDS[kind]
                      if (kind, sub) not in BROKEN]
        return [self.written("WAV", "PCM_16", 8000, 1, 3000, 0)[0]]

    def written(self, kind, subtype, rate, channels, count, seed):
        "The bytes of a file, and what libsndfile reads of it"
        rng, t = np.random.default_rng(seed), np.arange(count)/rate
        x = .3*np.sin(2*np.pi*(200 + 90*(seed % 9))*t)[:, None]*np.ones(channels)
        x = (x + rng.normal(0, .05, (count, channels))).astype(np.float32)
        path = self.folder/f"sound.{kind.lower()}"
        sf.write(path, x, rate, format=kind, subtype=subtype)
        whole = sf.read(path, dtype="float32", always_2d=True)[0].T
        # libsndfile takes the byte behind an odd number of blocks for one more
        if (kind, subtype) == ("WAV", "GSM610"): whole = whole[:, :-(-count//320)*320]
        return path.read_bytes(), whole

    def some(self, rng, count=1, same_rate=True):
        "Files of one kind, and their sounds"
        while True:
            kind, subtype = rng.choice(self.pairs)
            rates = [rng.choice(RATES)]*count if same_rate else rng.sample(RATES, count)
            channels, length = rng.choice((1, 1, 2, 2, 3, 6)), rng.choice((1, 50, 3000, 9000))
            lengths = [length if rng.random() < .3 else 1 + rng.randrange(length)
                       for _ in range(count)]
            try:
                made = [self.written(kind, subtype, rate, channels, length, rng.randrange(99))
                        for rate, length in zip(rates, lengths)]
            except sf.SoundFileError: continue  # not with so many channels, or not at that rate
            if all(whole.size and whole.shape[0] == channels for _, whole in made):
                return kind, subtype, made

    def input(self, rng):
        make = rng.choice((self.clean, self.cut, self.cut, self.joined, self.joined, self.mixed,
                           self.behind_junk, self.before_junk, self.miscounted, self.miscounted,
                           self.flipped, self.damaged, self.damaged))
        case = make(rng)
        case.note = f"{make.__name__}: {case.note}"
        return case

    def clean(self, rng):
        kind, subtype, [(data, whole)] = self.some(rng)
        return Case(data, kind, whole, {"all"}, f"{kind} {subtype} {whole.shape}")

    def cut(self, rng):
        kind, subtype, [(data, whole)] = self.some(rng)
        left = rng.choice((rng.randrange(len(data)), max(0, len(data) - 1 - rng.randrange(200))))
        allowed = {"all", "error"}
        if kind in UNCOUNTED or len(data) - left <= COUNT_MISSES: allowed |= {"part", "other"}
        return Case(data[:left], kind, whole, allowed,
                    f"{kind} {subtype} {whole.shape}, {left} of {len(data)} bytes")

    def joined(self, rng):
        kind, subtype, made = self.some(rng, rng.choice((2, 2, 3, 5)))
        whole = np.concatenate([whole for _, whole in made], axis=1)
        allowed = {"all"}
        return Case(b"".join(data for data, _ in made), kind, whole, allowed,
                    f"{kind} {subtype} {[whole.shape for _, whole in made]}")

    def mixed(self, rng):
        kind, subtype, made = self.some(rng, 2, same_rate=False)
        whole = np.concatenate([whole for _, whole in made], axis=1)
        allowed = {"error", "all"} | ({"other", "more"} if kind == "SD2" else set())
        return Case(b"".join(data for data, _ in made), kind, whole, allowed,
                    f"{kind} {subtype} {[whole.shape for _, whole in made]}")

    def junk(self, rng):
        return rng.choice((b"\r", bytes(rng.randrange(1, 5000)),
                           rng.randbytes(rng.randrange(1, 40_000)),
                           b"HTTP/1.1 200 OK\r\n"*rng.randrange(1, 400)))

    def behind_junk(self, rng):
        kind, subtype, [(data, whole)] = self.some(rng)
        front = rng.choice((ID3, APE, self.junk(rng)))
        allowed = {"all"} if kind in FOUND_BEHIND_JUNK and front != APE else {"all", "error"}
        if kind in UNCOUNTED: allowed |= {"other", "more"}
        return Case(front + data, kind, whole, allowed,
                    f"{kind} {subtype} {whole.shape}, {len(front)} bytes {front[:9]}")

    def before_junk(self, rng):
        kind, subtype, [(data, whole)] = self.some(rng)
        back = rng.choice((b"TAG" + b" "*125, APE, self.junk(rng)))
        allowed = {"all", "error"} if kind in ENDS_KNOWN else {"all", "error", "more"}
        return Case(data + back, kind, whole, allowed,
                    f"{kind} {subtype} {whole.shape}, {len(back)} bytes {back[:9]}")

    def miscounted(self, rng):
        while True:
            kind, subtype, [(data, whole)] = self.some(rng)
            if whole.shape[1] > 16 and (found := misfit(data, kind, rng)): break
        content, allowed = found
        return Case(content, kind, whole, allowed, f"{kind} {subtype} {whole.shape}")

    def flipped(self, rng):
        kind, subtype, [(data, whole)] = self.some(rng)
        head = data[:PADDED_HEADS.get(kind, 0)]  # zeros that a wrong size of it makes sound
        # libsndfile decodes damaged ALAC to anything, also to zeros, and does not say so
        allowed = {"error", "other", "all"} if "ALAC" in subtype else {"error", "quiet"}
        return Case(head + flip(rng, data[len(head):], [data]), kind, whole, allowed,
                    f"{kind} {subtype} {whole.shape}")

    def damaged(self, rng):
        kind, subtype, made = self.some(rng, 2)
        data = [data for data, _ in made]
        return Case(damage(rng, data[0], data), kind, None, {"error", "other"}, f"{kind} {subtype}")

    def place(self, case):
        if isinstance(case, bytes): case = Case(case)
        self.case, self.path = case, self.folder/f"sound.{case.kind.lower()}"
        self.path.unlink(missing_ok=True)
        self.path.write_bytes(case.content)

    def use(self):
        from audiolab.audio import AudioError, probe_audio, read_audio
        case, found = self.case, []
        if not self.tried(lambda: found.append(read_audio(self.path)), AudioError):
            self.tried(lambda: read_audio(self.path, start=.001, duration=.01), AudioError)
            assert "error" in case.allowed, f"{case.note}: {self.said}"
            return
        (x, rate), = found
        got = outcome(x, case.whole)
        if "quiet" in case.allowed:
            added = silence(x) - (0 if case.whole is None else silence(case.whole))
            assert added < (4096 if self.path.suffix in (".wav", ".w64", ".aiff") else 256), f"{case.note}: {added} samples of silence that were none"
        elif got != "padded" or "more" not in case.allowed: assert got in case.allowed, f"{case.note}: {got}, {x.shape}, {case.allowed}"
        assert probe_audio(self.path).frames == x.shape[1], case.note
        self.same_elsewhere(x, rate)

    @property
    def is_damaged(self): return self.case.note.startswith(("damaged", "flipped"))

    def same_elsewhere(self, x, rate):
        "Bytes and ranges give what the whole file gave"
        from audiolab.audio import AudioError, read_audio
        from audiolab.data import read_content
        begin, parts = x.shape[1]*2//3, []
        def read(): parts.append(read_audio(self.path, start=begin/rate, duration=50/rate)[0])
        # into what is damaged a decoder may find no way, and says so
        if not self.is_damaged: read()
        elif not self.tried(read, AudioError): return
        part, = parts
        crop = x[:, begin:begin+part.shape[1]]
        if "ALAC" not in self.case.note or not self.is_damaged:
            assert np.allclose(part, crop, atol=3e-6), f"{self.case.note}: range at {begin}"
        # SD2 needs a second file, and FFmpeg looks at names
        if self.case.kind != "SD2" and not self.is_damaged:
            part = read_content(self.path.read_bytes(), self.path.name, 0, x.shape[1])
            assert np.allclose(part, x, atol=3e-6), f"{self.case.note}: as bytes"

    def tried(self, call, *errors, name=None):
        def noted():
            try: call()
            except errors as cause:
                self.said = str(cause)[:300]
                raise
        return super().tried(noted, *errors, name=name)
