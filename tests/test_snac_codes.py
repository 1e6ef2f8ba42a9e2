"Codes and tokens: their order, what they must be, and files that need not be trusted."
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from audiolab.files import read_checkpoint, write_checkpoint
from audiolab.snac import (
    Codes, load_codes, save_codes, SnacError, token_order,
    unflatten,
)


def some_codes(frames=16, length=None, size=4096, strides=(4, 2, 1), seed=0, **more):
    rng = np.random.default_rng(seed)
    return Codes([rng.integers(0, size, frames//s) for s in strides], length, codebook_size=size,
                 vq_strides=strides, **more)


# --- codes and tokens

def test_token_order_is_that_of_speech_language_models():
    "Written out by hand: how models of the Orpheus kind undo their 7-token frames"
    tokens = [128266+place*4096+int(c)
              for c, place in zip(np.random.default_rng(0).integers(0, 4096, 35), [*range(7)]*5)]
    levels = [[], [], []]
    for frame in range(5):
        for place, level in enumerate([0, 1, 2, 2, 1, 2, 2]):
            levels[level].append(tokens[7*frame+place]-128266-place*4096)
    codes = unflatten(tokens, offset=128266)
    assert [c.tolist() for c in codes.codes] == levels
    assert codes.flatten(offset=128266).tolist() == tokens
    assert [level for level, _ in token_order((8, 4, 2, 1))] == [0, 1, 2, 3, 3, 2, 3, 3, 1, 2, 3, 3,
        2, 3, 3]


layouts = st.sampled_from([(1,), (4, 2, 1), (8, 4, 2, 1), (2, 2), (6, 3, 2), (4, 1), (12, 3)])


@given(strides=layouts, size=st.integers(1, 5000), n=st.integers(1, 9),
       offset=st.integers(-10**6, 10**9), interleave=st.booleans(), apart=st.booleans(),
       data=st.data())
@settings(max_examples=60)
def test_flatten_and_back(strides, size, n, offset, interleave, apart, data):
    codes = some_codes(n*strides[0], data.draw(st.none() | st.integers(0, n*strides[0]*512)), size,
                       strides, seed=n)
    how = dict(offset=offset, interleave=interleave, with_offsets=apart)
    tokens = codes.flatten(**how)
    assert tokens.dtype == torch.int64
    assert len(tokens) == n*len(token_order(strides)) == sum(map(len, codes.codes))
    assert unflatten(tokens.tolist(), length=codes.length, **codes.layout, **how) == codes
    at = data.draw(st.integers(0, len(tokens)-1))
    frame, place = divmod(at, len(token_order(strides)))
    level = codes.codes[token_order(strides, interleave)[place][0]]
    low = int(tokens[at]-level.max())-size*2
    with pytest.raises(SnacError,
                       match=rf"token {at} \(frame {frame}, place {place}\)"):
        unflatten([*tokens[:at], low-1, *tokens[at+1:]], **codes.layout, **how)
    if len(token_order(strides)) > 1:
        with pytest.raises(SnacError, match="whole frames"):
            unflatten(tokens[:-1], **codes.layout, **how)


@pytest.mark.parametrize("tokens", [[], [.5]*7, [True]*7, [[0]*7], None, "1234567", [2**70]*7,
                                    [0]*6+[-1], [0]*6+[7*4096]])
def test_what_are_no_tokens(tokens):
    with pytest.raises(SnacError): unflatten(tokens)


@pytest.mark.parametrize("changes, words", [(dict(codes=[[1], [1, 2]]), "3 levels"),
                                            (dict(codes=[[1], [1], [1, 2, 3, 4]]),
                                             "level 1 has 1 codes"),
                                            (dict(codes=torch.zeros(3, 0, dtype=torch.int64)),
                                             "no codes"),
    (dict(codes=[[1.], [1, 2], [1, 2, 3, 4]]), "whole numbers"),
                                            (dict(codes=[[-1], [1, 2], [1, 2, 3, 4]]), "code -1"),
                                            (dict(codes=[["a"], [1, 2], [1, 2, 3, 4]]), "level 0"),
    (dict(length=-1), "length"), (dict(length=2049), "length"), (dict(length=1.), "length"),
                                            (dict(vq_strides=(4, 3, 1)), "vq_strides"),
                                            (dict(vq_strides=(0, 0, 0)), "vq_strides"),
    (dict(hop=0), "hop"), (dict(sample_rate=10**9), "sample_rate"),
                                            (dict(codebook_size=2), "outside 0..1")])
def test_impossible_codes(changes, words):
    with pytest.raises(SnacError, match=words):
        Codes(**{"codes": [[1], [1, 2], [1, 2, 3, 4]]} | changes)


def test_codes_are_their_own_and_count():
    levels = [torch.tensor([[5]]), np.array([1, 2], np.uint16), [1, 2, 3, 4]]
    codes = Codes(levels, 2000)
    levels[0][0] = 6
    assert codes.codes[0].tolist() == [5] and len(codes) == 1 and codes.frames == 4
    assert codes == codes.cut(0)
    with pytest.raises(FrozenInstanceError): codes.length = 1
    for strides, rate, hop, bits in [((4, 2, 1), 24000, 512, 984), ((8, 4, 2, 1), 32000, 384, 1875),
                                     ((8, 4, 2, 1), 44100, 384, 2584)]:
        assert round(some_codes(64, strides=strides, sample_rate=rate, hop=hop).bit_rate) == bits
    long = some_codes(40, 15000)
    pieces = [long.cut(i, i+3) for i in range(0, 10, 3)]
    assert [p.length for p in pieces] == [6144, 6144, 15000-12288, 0]
    assert torch.equal(torch.cat([p.codes[2] for p in pieces]), long.codes[2])


# --- files

@pytest.mark.parametrize("size, kind", [(4096, np.int16), (2**15, np.int16), (2**15+1, np.int32)])
def test_code_file(tmp_path, size, kind):
    codes = some_codes(400, 200_000, size, fingerprint="ab-cd")
    path = save_codes(tmp_path/"deep/a.snac", codes)
    found = load_codes(path)
    assert found == codes and found.fingerprint == "ab-cd"
    assert all(t.dtype == kind for t in read_checkpoint(path)[0].values())


def test_damaged_and_hostile_files(tmp_path):
    "Any byte changed or cut is told; so is what a file claims with sound digests"
    path = save_codes(tmp_path/"a.snac", some_codes(64))
    whole, tensors, notes = path.read_bytes(), *read_checkpoint(path)
    rng = np.random.default_rng(0)
    for n in range(150):
        data = bytearray(whole)
        if n % 3: data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        else: data = data[:rng.integers(len(data))]
        path.write_bytes(data)
        with pytest.raises(SnacError, match="a.snac"): load_codes(path)
    lies = [{"snac.length": "10000000"}, {"snac.length": "-1"}, {"snac.length": "9"*5000},
            {"snac.hop": "0"}, {"snac.hop": "1e3"}, {"snac.sample_rate": "٣"},
            {"snac.codebook_size": "10"},
            {"snac.vq_strides": "4,2"}, {"snac.vq_strides": "4,2,1,1"},
            {"snac.vq_strides": "4,3,1"}, {"snac.vq_strides": ","*9999}, {"snac.version": "2"},
            {"snac.fingerprint": "<script>"}]
    for lie in lies:
        write_checkpoint(path, tensors, notes | lie)
        with pytest.raises(SnacError, match="a.snac"): load_codes(path)
    wrong = [tensors | {"codes.0": tensors["codes.0"].astype(np.float32)},
             tensors | {"codes.0": tensors["codes.0"][None]},
             tensors | {"codes.0": -tensors["codes.0"]-1},
             tensors | {"more": np.zeros(3, np.int16)},
             {k: t for k, t in tensors.items() if k != "codes.1"},
             tensors | {"codes.2": tensors["codes.2"][:-1]}]
    for other in wrong:
        write_checkpoint(path, other, notes)
        with pytest.raises(SnacError, match="a.snac"): load_codes(path)
    import safetensors.numpy
    safetensors.numpy.save_file(tensors, path, notes)  # without digests
    with pytest.raises(SnacError, match="digests"): load_codes(path)
    for missing in (tmp_path, tmp_path/"none.snac"):
        with pytest.raises(SnacError): load_codes(missing)
    with pytest.raises(SnacError, match=".snac"): save_codes(tmp_path/"a.bin", some_codes())
