"Teachers by name and by the space of a style"
import pytest

from audiolab.voice import (
    SUPERTONIC_NOTICE, TEACHER_EXTRAS, TEACHERS, StyleError, StyleSpace, licence_of, open_teacher,
    teacher_for, teacher_of, write_stub_engine,
)


@pytest.fixture
def stub(tmp_path):
    pytest.importorskip("supertonic", reason="optional: needs the package supertonic")
    pytest.importorskip("onnx", reason="optional: needs the package onnx")
    return write_stub_engine(tmp_path/"stub")


def test_names_and_options_that_are_not_there_are_refused_with_those_that_are():
    with pytest.raises(ValueError, match="no teacher 'supertonik', but supertonic; ") as told:
        open_teacher("supertonik")
    for name, extra in TEACHER_EXTRAS.items():
        assert name in str(told.value) and f"audiolab[{extra}]" in str(told.value) or not extra
    assert set(TEACHERS) == set(TEACHER_EXTRAS)
    with pytest.raises(ValueError, match="no option 'sed'; it has seed, seconds"):
        open_teacher("parametric", sed=1)


def test_a_space_finds_its_teacher_and_options(stub):
    older = open_teacher("supertonic", model_dir=stub, model="supertonic-2")
    for made, rest in ((open_teacher("parametric", seed=3), {}), (older, {"model_dir": stub})):
        again = teacher_for(made.space, **rest)
        assert again.space == made.space and again.fingerprint() == made.fingerprint()


def test_another_revision_is_not_spoken(stub):
    others = [StyleSpace("parametric", revision) for revision in ("2-7", "", "1-" + "7"*5000)]
    others.append(StyleSpace("parametric", "1-1234", ttl_shape=(1, 2)))
    others.append(StyleSpace("supertonic-3", "b"*40))
    for space in others:
        rest = {"model_dir": stub} if space.teacher == "supertonic-3" else {}
        with pytest.raises(StyleError, match="nothing to do with each other"):
            teacher_for(space, **rest)


def test_whose_styles_and_what_goes_with_them():
    for model in ("supertonic", "supertonic-2", "supertonic-3"):
        assert teacher_of(StyleSpace(model)) == "supertonic"
        assert licence_of(StyleSpace(model)) == SUPERTONIC_NOTICE
    assert "Apache-2.0" in licence_of(StyleSpace("kokoro"))
    assert licence_of(StyleSpace("parametric", "1-1")) == licence_of(StyleSpace("piper")) == ""
    with pytest.raises(StyleError, match="of no teacher here; there are parametric"):
        teacher_of(StyleSpace("piper"))
