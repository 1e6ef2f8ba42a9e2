"Files as they are found in the world, put together from small ones: joined, chained, miscounted, with tags and zeros."
import io
import struct

import numpy as np
import soundfile as sf

from audiolab.audio import mp3_frame, mp3_frames

RATE = 8000
ID3 = b"ID3\x04\0\0\0\0\x01\x02" + b"\0"*130
APE = b"APETAGEX\xd0\x07\0\0\x10\0\0\0\0\0\0\0\0\0\0\xa0" + bytes(8) + bytes(16)


def written(kind, subtype):
    "Whether libsndfile writes files of a kind"
    if kind == "RAW" or not sf.check_format(kind, subtype): return False
    if kind == "SD2": return True  # it writes a second file, which must have a name
    try: sf.write(io.BytesIO(), np.zeros(9), RATE, format=kind, subtype=subtype)
    except sf.SoundFileError: return False  # a pair that is named and not written
    return True


KINDS = {kind: subtypes for kind in sf.available_formats()  # container -> its codings
         if (subtypes := [sub for sub in sf.available_subtypes(kind) if written(kind, sub)])}


def notes(seconds=1.0, rate=RATE, channels=2, seed=0):
    "Tones that change, and pauses: bit rates vary, and no two places are alike, [T, C]"
    t = np.arange(int(seconds*rate))/rate
    tone = .3*np.sin(2*np.pi*(300 + 100*seed + 200*t)*t)*(t % .5 < .3)
    noise = np.random.default_rng(seed).normal(0, .02, (len(t), channels))
    return (tone[:, None] + noise).astype(np.float32)


def coded(kind="WAV", subtype=None, seconds=1.0, rate=RATE, channels=2, seed=0, **more):
    "The bytes of a file"
    out = io.BytesIO()
    sf.write(out, notes(seconds, rate, channels, seed), rate, format=kind, subtype=subtype, **more)
    return out.getvalue()


def mp3(seconds=1.0, rate=44_100, seed=0, channels=2):
    "A file with a variable bit rate and a true index"
    return coded("MP3", "MPEG_LAYER_III", seconds, rate, channels, seed,
                 bitrate_mode="VARIABLE", compression_level=.5)


def without_index(data): return data[mp3_frame(data, 0).size:]


def with_count(data, change):
    "An MP3 file whose index counts wrongly; the seal of the encoder is broken with it"
    place = 4 + mp3_frame(data, 0).side + 8
    count = int.from_bytes(data[place:place+4], "big")
    return data[:place] + int(change(count)).to_bytes(4, "big") + data[place+4:]


def with_vbri(data, fast):
    "An MP3 file with the index of Fraunhofer, in a frame of 320 or 32 kbit/s"
    bare = without_index(data)
    head = bytearray(bare[:4])
    head[2] = (0xe0 if fast else 0x90) | head[2] & 15
    size = mp3_frame(bytes(head) + bytes(1), 0).size
    count = sum(1 for _ in mp3_frames(bare))
    vbri = b"VBRI\0\1" + bytes(4) + struct.pack(">II", len(bare), count)
    return (bytes(head) + bytes(32) + vbri).ljust(size, b"\0") + bare


def chunk(name, content, size=None, order="<"):
    "The bytes of a chunk, with any size in its header"
    stated = struct.pack(order + "I", len(content) if size is None else size)
    return name + stated + content + b"\0"*(len(content) % 2)


def wav(*parts, magic=b"RIFF", size=None):
    "A WAV file of such chunks"
    order, content = ">" if magic == b"RIFX" else "<", b"WAVE" + b"".join(parts)
    return chunk(magic, content, size, order)


def form(code=1, rate=RATE, bits=16, order="<"):
    "The chunk that says what the samples of a WAV file are: one channel"
    width = bits//8
    content = struct.pack(order + "HHIIHH", code, 1, rate, rate*width, width, bits)
    return chunk(b"fmt ", content, order=order)


def ogg_page(content, flags, number, serial=7):
    "A page (the checksum is not asked for where FLAC is taken out of it)"
    sizes = bytes([255]*(len(content)//255) + [len(content) % 255])
    return (b"OggS\0" + bytes([flags]) + struct.pack("<QIII", 0, serial, number, 0)
            + bytes([len(sizes)]) + sizes + content)


def ogg_flac(data):
    "A FLAC file in an Ogg"
    first = b"\x7fFLAC\1\0\0\1" + data[:42]
    rest = [data[at:at+4000] for at in range(42, len(data), 4000)]
    pages = [ogg_page(part, 4*(n == len(rest)), n) for n, part in enumerate(rest, 1)]
    return ogg_page(first, 2, 0) + b"".join(pages)
