"Voice styles: files that strict readers open, and that strangers cannot misuse"
import json
import random

import numpy as np
import pytest

from audiolab.voice import (
    StyleError, StyleSpace, VoiceStyle, blend, fit_basis, load_style, perturb, save_style, slerp,
    stack_styles, unit_rows,
)

SPACE = StyleSpace("supertonic-3", "main")


def style(seed=0, space=SPACE):
    rng = np.random.default_rng(seed)
    return VoiceStyle(unit_rows(rng.standard_normal(space.ttl_shape)),
                      unit_rows(rng.standard_normal(space.dp_shape)), space)


def typed(part):
    "As a reader reads that knows of three levels of lists of float32, and nothing else"
    assert set(part) == {"data", "dims", "type"} and part["type"] == "float32"
    levels = [[[np.float32(value) for value in row] for row in rows] for rows in part["data"]]
    assert [len(levels), len(levels[0]), len(levels[0][0])] == part["dims"]
    return np.array(levels, np.float32)


def test_a_typed_reader_gets_the_same_numbers(tmp_path):
    one = style()
    tree = json.loads(save_style(one, tmp_path/"a.json").read_text())
    for name, rows in (("style_ttl", one.ttl), ("style_dp", one.dp)):
        np.testing.assert_array_equal(typed(tree[name])[0], rows)


def test_the_package_gets_the_same_numbers(tmp_path):
    loader = pytest.importorskip("supertonic.loader", reason="optional: needs the package supertonic")
    one = style()
    read = loader.load_voice_style_from_json_file(save_style(one, tmp_path/"a.json"))
    np.testing.assert_array_equal(np.asarray(read.ttl, np.float32)[0], one.ttl)
    np.testing.assert_array_equal(np.asarray(read.dp, np.float32)[0], one.dp)


@pytest.mark.parametrize("name, change", {
    "40 rows": {"data": [[[.0625]*256]*40]}, "two levels": {"data": [[.0625]*256]*50},
    "four levels": {"data": [[[[.0625]*256]*50]]}, "flat": {"data": [[.0625]*12800]},
    "not finite": {"data": [[[1e99]*256]*50]}, "rows of length 2": {"data": [[[.125]*256]*50]},
    "ragged": {"data": [[[.0625]*256]*49 + [[.0625]*255]]}, "words": {"data": [[["a"]*256]*50]},
    "huge": {"data": [[[10**400]*256]*50]}, "no type": {"type": None}, "no dims": {"dims": None},
    "other dims": {"dims": [1, 256, 50]}}.items())
def test_what_is_no_style_is_refused(name, change, tmp_path):
    path = save_style(style(), tmp_path/"a.json")
    tree = json.loads(path.read_text())
    tree["style_ttl"] |= change
    path.write_text(json.dumps(tree))
    with pytest.raises(StyleError, match="a.json: style_ttl"): load_style(path)


def test_other_teachers_are_refused(tmp_path):
    path = save_style(style(), tmp_path/"a.json")
    for space in (StyleSpace("supertonic-2", "main"), StyleSpace("supertonic-3", "later")):
        with pytest.raises(StyleError, match="means nothing to"): load_style(path, space)
    other = style(1, StyleSpace("supertonic-2", "main"))
    for mix in (lambda: stack_styles([style(), other]), lambda: slerp(style(), other, .5)):
        with pytest.raises(StyleError, match="nothing to do with each other"): mix()


def test_damaged_files_are_refused_or_are_styles(tmp_path):
    "Flipped, cut and repeated bytes: a clear error, or rows of length 1"
    content, rng = save_style(style(), tmp_path/"a.json").read_bytes(), random.Random(0)
    path, read = tmp_path/"b.json", 0
    for _ in range(60):
        damaged = bytearray(content)
        for _ in range(rng.choice((1, 3, 50))):
            damaged[rng.randrange(len(damaged))] = rng.choice(b'0123456789.,-[]{}":eNa\0\xff')
        if rng.random() < .3: damaged = damaged[:rng.randrange(len(damaged))]
        path.write_bytes(damaged)
        try: found = load_style(path)
        except StyleError as error: assert str(path) in str(error)
        else:
            read += 1
            assert abs(np.linalg.norm(found.ttl, axis=-1) - 1).max() < 1e-4
    assert read


def test_big_files_cost_nothing(tmp_path):
    path = tmp_path/"a.json"
    path.write_bytes(b'{"style_ttl":' + b" "*(17 << 20) + b"}")
    with pytest.raises(StyleError, match="no voice has so much"): load_style(path)
    with pytest.raises(StyleError, match="not a regular file"): load_style(tmp_path)


def test_all_that_is_computed_stays_on_the_spheres():
    made = [slerp(style(1), style(2), .3), blend(stack_styles([style(1), style(2)]), [1, 2]),
            perturb(style(1), .5, np.random.default_rng(0))]
    styles = unit_rows(np.random.default_rng(0).standard_normal((20, *SPACE.ttl_shape)))
    rows = [part for one in made for part in (one.ttl, one.dp)]
    for part in (*rows, fit_basis(styles, 5).decode(np.full(5, 3.))):
        assert abs(np.linalg.norm(part, axis=-1) - 1).max() < 1e-6
