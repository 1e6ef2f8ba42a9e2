"What is done to files: damage at random, and trees that somebody made to do harm."
import io
import json
import os
import pickle
import re
import zipfile

import numpy as np

NUMBERS = (b"-1", b"0", b"1", b"9" * 400, b"9" * 5000, b"1e999", b"-1e400", b"NaN", b"-Infinity",
           b"18446744073709551616", b"9223372036854775807",
           b"4294967296", b"2147483648", b"1099511627776", b"0.5", b"true", b"null", b'""', b"[]",
           b"{}", b"1_000", b"0x10", b"\xd9\xa3")
TEXTS = ("../../../../etc/passwd", "/etc/passwd", "..\\..\\x", "C:\\x", "\\\\host\\share", "nul",
         "con.wav", "a\0b", "A" * 300, "A" * 30_000, "\ud800", "", ".",
         "..", "~/x", "$(touch owned)", "!!python/object/apply:os.system ['touch owned']",
         "file:///etc/passwd", "\u202e", "\x1b[2J", "__class__",
         "{0.__class__}", "é" * 300, "/dev/zero", "/dev/stdin", "%s%n", "__metadata__",
         "training.step", "0x1p1024", "nan", "a/../../b", "x.safetensors")
MAGICS = (b"PK\x03\x04", b"\x80\x04\x95", b"RIFF", b"OggS", b"fLaC", b"ID3\x04\0\0\0\0\x7f\x7f",
          b"\x93NUMPY\x01\0", b"PAR1", b"<html>", b"#!/bin/sh\n",
          b"\xff\xfe", b"\xef\xbb\xbf", b"%YAML 1.1\n---\n")


def deep(rng):
    "Nesting, from harmless to absurd"
    depth, (opened, closed) = rng.choice((40, 300, 900, 20_000)), rng.choice(((b"[", b"]"),
        (b'{"a":', b"}")))
    return opened * depth + (b"0" if opened != b"[" else b"") + closed * depth


def aliases():
    "A YAML document that means 9^8 words"
    return b"a0: &a0 x\n" + b"".join(b"a%d: &a%d [%s]\n" % (i, i,
                                                            b", ".join([b"*a%d" % (i - 1)] * 9))
                                                            for i in range(1, 9))


def span(rng, content, longest=64):
    "A region: the first bytes, the last and the middle come equally often"
    size = len(content)
    begin = rng.choice((rng.randrange(min(size, 64) + 1), rng.randrange(size + 1),
                        max(0, size - rng.randrange(min(size, 64) + 1))))
    return begin, min(size, begin + rng.choice((1, 2, 4, 8, rng.randrange(longest) + 1)))


def replace_match(rng, pattern, content, new):
    found = list(re.finditer(pattern, content))
    if not found: return content + new
    match = rng.choice(found)
    return content[:match.start()] + new + content[match.end():]


def cut(rng, c, o): return c[:span(rng, c)[0]]


def flip(rng, c, o):
    c = bytearray(c)
    for _ in range(rng.choice((1, 1, 2, 8))):
        if c: c[min(span(rng, c)[0], len(c) - 1)] ^= 1 << rng.randrange(8)
    return bytes(c)


def drop(rng, c, o):
    a, b = span(rng, c)
    return c[:a] + c[b:]


def repeat(rng, c, o):
    a, b = span(rng, c, 2000)
    return c[:b] + c[a:b] * rng.choice((1, 2, 50)) + c[b:]


def noise(rng, c, o):
    a, b = span(rng, c)
    return c[:a] + rng.randbytes(b - a) + c[b:]


def integer(rng, c, o):
    size, (a, _) = rng.choice((1, 2, 4, 8)), span(rng, c)
    return c[:a] + rng.choice((0, 1, 2 ** (8 * size) - 1, 2 ** (8 * size - 1) - 1,
                               2 ** (8 * size - 1), 7)).to_bytes(size,
                                   rng.choice(("little", "big"))) + c[a + size:]


def insert(rng, c, o):
    a, _ = span(rng, c)
    return c[:a] + rng.choice((b"\0", b"\0" * 4096, b"\xff" * 100, b"\n", b'"', b"}", b"]", b",",
                               rng.randbytes(30), rng.choice(MAGICS))) + c[a:]


def splice(rng, c, o):
    other = rng.choice(o)
    return c[:span(rng, c)[0]] + other[span(rng, other)[0]:]


def number(rng, c, o): return replace_match(rng, rb"-?[0-9]+(\.[0-9]+)?", c, rng.choice(NUMBERS))


def text(rng, c, o):
    new = rng.choice(TEXTS)
    return replace_match(rng, rb'"[^"\n]*"', c, json.dumps(new).encode()
                         if rng.random() < .7 else b'"' + new.encode("utf-8", "surrogatepass")
                         + b'"')


def word(rng, c, o):
    return replace_match(rng, rb"[A-Za-z_./-]+", c,
                         rng.choice(TEXTS).encode("utf-8", "surrogatepass"))


def nest(rng, c, o): return replace_match(rng, rb'"[^"\n]*"|-?[0-9]+', c, deep(rng))


def foreign(rng, c, o):
    return rng.choice((b"", rng.choice(MAGICS) + c, rng.choice(MAGICS), rng.randbytes(200),
                       b"\0" * 3000, aliases(), deep(rng)))


BYTES = (cut, cut, flip, flip, drop, repeat, noise, integer, integer, insert, splice, foreign)
WORDS = (number, number, text, text, word, nest)


def damage(rng, content, others, operations=BYTES):
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        content = rng.choice(operations)(rng, content, others)
    return content[:1 << 21]


VALUES = (-1, 0, 1, 2, 7, 2**31, 2**53, 2**62, -2**63, 0.5, 1e300, True, False, None, [], {}, [[]],
          {"a": 1}, ["x"], *TEXTS)


def places(tree, here=()):
    "Every place in nested lists and dicts"
    yield here
    for key, item in (tree.items() if isinstance(tree, dict) else enumerate(tree)
                      if isinstance(tree, list) else ()):
        yield from places(item, (*here, key))


def hostile(rng, tree, values=VALUES):
    "A JSON tree with one thing in it replaced, removed, doubled or moved"
    tree = json.loads(json.dumps(tree))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        found = [place for place in places(tree) if place]
        if not found: return tree
        *way, last = rng.choice(found)
        holder = tree
        for key in way: holder = holder[key]
        act = rng.random()
        if act < .7: holder[last] = rng.choice(values)
        elif act < .8: del holder[last]
        elif act < .9 and isinstance(holder, dict): holder[rng.choice(TEXTS)] = holder[last]
        elif act < .9: holder.insert(0, holder[last])
        else:
            other = rng.choice(found)
            value = tree
            try:
                for key in other: value = value[key]
                holder[last] = json.loads(json.dumps(value))
            except (KeyError, IndexError, TypeError): pass
    return tree


class Payload:
    "What a pickle that is loaded carelessly does"
    def __init__(self, marker): self.marker = str(marker)
    def __reduce__(self): return os.system, (f"echo owned > {self.marker}",)


def pickles(marker):
    "Files of many kinds with that pickle inside"
    made = {f"protocol {n}": pickle.dumps(Payload(marker), n) for n in range(6)}
    array = io.BytesIO()
    np.save(array, np.array([Payload(marker)], dtype=object), allow_pickle=True)
    made["npy"] = array.getvalue()
    archive = io.BytesIO()
    np.savez(archive, means=np.array([Payload(marker)], dtype=object))
    made["npz"] = archive.getvalue()
    import torch
    model = io.BytesIO()
    torch.save({"model": Payload(marker)}, model)
    made["pt"] = model.getvalue()
    old = io.BytesIO()
    torch.save({"model": Payload(marker)}, old, _use_new_zipfile_serialization=False)
    made["old pt"] = old.getvalue()
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as file:
        file.writestr("archive/data.pkl", made["protocol 2"])
        file.writestr(".metadata", made["protocol 2"])
    return made | {"zip": zipped.getvalue()}
