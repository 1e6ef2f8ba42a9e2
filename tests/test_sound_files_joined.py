"Files of every kind that libsndfile writes, cut, and one behind another: all of them is read, or an error says what is missing."
import numpy as np
import pytest
import soundfile as sf
from sound_zoo import KINDS, RATE, chunk, coded, form, wav

from audiolab.audio import AudioError, flac_frames, probe_audio, read_audio

# what does not say how many samples it has (XI: as libsndfile writes it)
SILENT = "SD2", "IRCAM", "PAF", "PVF", "XI"


def kept(path, kind, subtype, count=RATE, seed=0, channels=1):
    "A file of a kind: what is read of it, and its bytes"
    data = coded(kind, subtype, count/RATE, channels=channels, seed=seed)
    path.write_bytes(data)
    return read_audio(path)[0], data


def refusal(path, data):
    path.write_bytes(data)
    with pytest.raises(AudioError) as error: read_audio(path)
    with pytest.raises(AudioError): read_audio(path, start=.9)
    return error.value.cause


def kept_bytes(path, data):
    "What is read of a file with such bytes"
    path.write_bytes(data)
    return read_audio(path)[0]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in SILENT])
def test_a_cut_file_says_what_is_missing(tmp_path, kind):
    for subtype in KINDS[kind]:
        path = tmp_path/f"{subtype}.{kind.lower()}"
        _, data = kept(path, kind, subtype)
        for share in (.5, .9): assert "truncated" in refusal(path, data[:int(len(data)*share)])


def test_headers_of_one_size_name_both_numbers(tmp_path):
    for kind, header, frame in (("NIST", 1024, 2), ("AVR", 128, 2), ("MAT4", 68, 2),
                                ("MAT5", 264, 2), ("MPC2K", 42, 2), ("WVE", 32, 1), ("HTK", 12, 2)):
        path = tmp_path/f"a.{kind.lower()}"
        _, data = kept(path, kind, "ALAW" if kind == "WVE" else "PCM_16")
        assert f"promises {RATE*frame} bytes of samples, {5000-header} are there" in refusal(
            path, data[:5000]), kind
    _, data = kept(tmp_path/"a.sds", "SDS", "PCM_16")
    assert "promises 25400 bytes of samples, 4979 are there" in refusal(path, data[:5000])


def test_headers_of_one_size_may_state_too_few(tmp_path):
    for kind in ("NIST", "AVR", "MAT4", "MAT5", "MPC2K", "WVE", "HTK", "SDS"):
        _, data = kept(tmp_path/"a", kind, "ALAW" if kind == "WVE" else "PCM_16")
        assert "promises fewer samples than there seem to be: 4000" in refusal(
            tmp_path/f"a.{kind.lower()}", data + data[-4000:]), kind


def test_a_half_count_of_a_matrix_and_a_second_matrix(tmp_path):
    for subtype in KINDS["MAT4"]:
        whole, data = kept(tmp_path/"a.mat", "MAT4", subtype)
        name = data.index(b"wavedata\0")
        head, begin = name - 20, name + 9
        half = data[:head + 8] + (RATE//2).to_bytes(4, "little") + data[head + 12:]
        missing = (len(data) - begin)//2
        assert f"seem to be: {missing} bytes follow" in refusal(tmp_path/"b.mat", half)
        assert "fewer samples" in refusal(tmp_path/"c.mat", data + data[head:])
        np.testing.assert_array_equal(kept_bytes(tmp_path/"d.mat", data*2), np.tile(whole, 2))


def test_what_does_not_count_its_samples_cannot_end_within_a_frame(tmp_path):
    for kind, subtype, frame in (("IRCAM", "FLOAT", 8), ("PAF", "PCM_16", 4), ("PAF", "PCM_24", 64),
                                 ("PVF", "PCM_32", 8)):
        path = tmp_path/f"a.{kind.lower()}"
        _, data = kept(path, kind, subtype, channels=2)
        left = frame - 1
        assert f"{left} of {frame} bytes" in refusal(path, data[:-frame*100 - 1]), subtype


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "SD2"])  # it has no header
def test_joined_files_of_every_kind(tmp_path, kind):
    for subtype in KINDS[kind]:
        path = tmp_path/f"{subtype}.{kind.lower()}"
        made = [kept(path, kind, subtype, count, seed) for count, seed in (
            (3000, 0), (3000, 1), (3501, 2))]
        for order in ((0, 1), (0, 0), (2, 0, 1), (1, 2)):
            path.write_bytes(b"".join(made[n][1] for n in order))
            x = read_audio(path)[0]
            whole = np.concatenate([made[n][0] for n in order], axis=1)
            np.testing.assert_allclose(x, whole, atol=3e-6, err_msg=f"{path} {order}")
            assert probe_audio(path).frames == x.shape[1]
            begin = made[order[0]][0].shape[1] - 50
            part = read_audio(path, start=begin/probe_audio(path).sample_rate, duration=.01)[0]
            crop = whole[:, begin:begin+part.shape[1]]
            np.testing.assert_allclose(part, crop, atol=3e-6, err_msg=f"{path} {order}")


def test_long_flac_of_equal_lengths(tmp_path):
    rng, time = np.random.default_rng(0), np.arange(300_000)
    loud, quiet = rng.normal(0, .1, 300_000), np.sin(time/9)*np.linspace(0, 1, 300_000)
    for n, (a, b) in enumerate(((loud, loud), (loud, quiet), (quiet, loud), (loud, time*0.))):
        path = tmp_path/f"{n}.flac"
        halves = []
        for part in (a, b):
            sf.write(path, part, RATE)
            halves.append(path.read_bytes())
        path.write_bytes(b"".join(halves))
        assert probe_audio(path).frames == 600_000
    assert "promises 300000 samples, at most" in refusal(path, halves[0][:len(halves[0])//2])


def test_files_that_cannot_follow_each_other(tmp_path):
    for kind in ("AU", "NIST", "CAF", "W64", "VOC", "FLAC", "WAV", "AIFF"):
        path = tmp_path/f"a.{kind.lower()}"
        cause = refusal(path, coded(kind) + coded(kind, rate=16_000))
        assert "at 1.00 s (16000 Hz, 2 channels) cannot follow" in cause, kind


def test_files_of_different_families(tmp_path):
    made = [coded(*kind, seconds=.5, seed=n) for n, kind in enumerate((
        ("AIFF", "PCM_16"), ("AIFF", "FLOAT"), ("WAV", "PCM_16"), ("CAF", "PCM_16")))]
    alone = [kept_bytes(tmp_path/"one.aiff", data) for data in made]
    for order in ((0, 1), (1, 0), (0, 2), (2, 1), (3, 0, 2)):
        x = kept_bytes(tmp_path/"a.aiff", b"".join(made[n] for n in order))
        whole = np.concatenate([alone[n] for n in order], axis=1)
        np.testing.assert_allclose(x, whole, atol=3e-6, err_msg=str(order))


def test_a_file_behind_another_that_cannot_be_decoded(tmp_path):
    good, path = coded("WAV", channels=1), tmp_path/"a.wav"
    strange = wav(form(0x161), chunk(b"data", bytes(8000)))
    film = chunk(b"RIFF", b"AVI " + bytes(8000))
    for order, number in (((good, strange), 2), ((strange, good), 1), ((good, film), 2)):
        assert f"of which number {number} of 2 cannot be decoded" in refusal(path, b"".join(order))


def test_empty_recordings_and_files_in_files(tmp_path):
    for kind in ("WAV", "AIFF", "CAF", "W64", "AU", "RF64"):
        path = tmp_path/f"a.{kind.lower()}"
        empty, full = (coded(kind, "PCM_16", seconds, channels=1) for seconds in (0, .1))
        for order, count in ((empty + full, 1), (full + empty + full, 2), (full + empty, 1)):
            assert kept_bytes(path, order).shape == (1, 800*count), kind
        assert "0 samples" in refusal(path, empty + empty)
    inner = coded("WAV", channels=1)  # samples that look like a file, as raw wrappers make them
    for size in (None, 2**32 - 1):
        outer = wav(form(), chunk(b"data", inner, size))
        assert kept_bytes(tmp_path/"in.wav", outer).shape == (1, len(inner)//2)


def w64_chunk(name, mark, content):
    return name + bytes.fromhex(mark) + (24 + len(content)).to_bytes(8, "little") + content


def test_w64_with_tags_behind_the_samples(tmp_path):
    sound, path = coded("W64", "PCM_16", channels=1), tmp_path/"a.w64"
    text = b"x"*2000
    bext = w64_chunk(b"bext", "f3acd3118cd100c04f8edb8a", text)
    marker = w64_chunk(b"\x56\x62\xf7\xab", "2d39d21186c700c04f8edb8a", text)
    summary = w64_chunk(b"\xbc\x94\x5f\x92", "5a52d21186dc00c04f8edb8a", text)
    whole = kept_bytes(path, sound)
    for tags in (bext, marker, summary + bext):
        np.testing.assert_array_equal(kept_bytes(path, sound + tags), whole)
        np.testing.assert_array_equal(kept_bytes(path, (sound + tags)*2), np.tile(whole, 2))


def test_damaged_tags_behind_whole_samples(tmp_path):
    path, text = tmp_path/"a.wav", b"words "*800
    sound = form() + chunk(b"data", bytes(16_000))
    for tags in (chunk(b"LIST", text)[:-1200], chunk(b"id3 ", text, len(text) + 1),
                 chunk(b"\xa9nam", text), chunk(b"\xa9nam", text) + chunk(b"LIST", text, 10**6)):
        assert kept_bytes(path, wav(sound, tags)).shape == (1, RATE), tags[:4]
    caf = coded("CAF", channels=1) + b"info" + (9999).to_bytes(8, "big") + text
    assert kept_bytes(tmp_path/"a.caf", caf).shape == (1, RATE)
    assert "fewer samples" in refusal(path, wav(sound, b"\xa9nam\1\0\0\0" + text))


def test_a_file_behind_a_damaged_tag(tmp_path):
    "Its size took in the file behind it, wholly or in part"
    path, text, second = tmp_path/"a.wav", b"words "*800, coded("WAV", channels=1)
    sound, heard = form() + chunk(b"data", bytes(16_000)), kept_bytes(path, second)[0]
    for tag in (chunk(b"LIST", text)[:-10], chunk(b"LIST", text)[:-1200],
                chunk(b"id3 ", text, len(text) + 1), chunk(b"LIST", text, len(text) + 5000),
                chunk(b"LIST", text, 10**6), chunk(b"LIST", text, 2**32 - 1)):
        first = wav(sound, chunk(b"fact", bytes(4)), tag)
        for count in (1, 2):
            x = kept_bytes(path, first + second*count)[0]
            np.testing.assert_array_equal(x, np.r_[np.zeros(RATE), np.tile(heard, count)])
            assert probe_audio(path).frames == RATE*(1 + count)


def test_a_file_behind_a_damaged_tag_in_other_families(tmp_path):
    strange = {"AIFF": b"ANNO" + (9999).to_bytes(4, "big"),
               "CAF": b"info" + (9999).to_bytes(8, "big"),
               "W64": b"bext" + bytes.fromhex("f3acd3118cd100c04f8edb8a") + b"\x0f\x27" + bytes(6)}
    for kind, head in strange.items():
        path, sound = tmp_path/f"a.{kind.lower()}", coded(kind, "PCM_16", channels=1)
        whole = kept_bytes(path, sound)
        for second in (sound, coded("WAV", channels=1)):
            x = kept_bytes(path, sound + head + b"words "*8 + second)
            np.testing.assert_array_equal(x, np.tile(whole, 2), err_msg=kind)


def test_a_header_of_absurd_frames_costs_no_search(tmp_path):
    "It stated frames of 16 MB, and so much was searched in Python before anything was decoded."
    path = tmp_path/"a.flac"
    sound = .1*np.random.default_rng(0).standard_normal(40_000)
    sf.write(path, sound, 16_000)
    content = bytearray(path.read_bytes())
    content[15:18] = b"\xff\xff\xff"  # bytes of the longest frame
    path.write_bytes(content)
    header = flac_frames.flac_header(bytes(content[:64]))
    assert header.longest == 2**24-1
    with open(path, "rb") as raw: assert flac_frames.last_samples(raw, len(content), header) == []
    assert len(read_audio(path, mono=True)[0]) == 40_000
    path.write_bytes(content[:-9000])
    with pytest.raises(AudioError): read_audio(path)
