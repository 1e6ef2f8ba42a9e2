"A sample may carry a picture: it is kept beside its sound, read again, drawn, and logged."
import io

import numpy as np
import pytest
from PIL import Image
from tts_runs import changed, fit, settings, small_cache

from audiolab.training import Event, read_samples, RunFolder, Sample, TrainingConfig
from audiolab.watch import decoded_picture, plot_sample, TensorBoardLogger


def picture(height=20, width=80):
    out = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), 200, np.uint8)).save(out, "png")
    return out.getvalue()


SOUND = np.sin(np.arange(4000)/20).astype(np.float32)*.3


def test_a_picture_is_kept_and_read_again(tmp_path):
    folder = RunFolder(tmp_path/"run")
    folder.begin(TrainingConfig(steps=1))
    samples = [Sample("with", SOUND, 8000, None, picture()), Sample("without", SOUND, 8000)]
    folder.append(Event("sample", 3, 0, 1., {"samples": samples}))
    folder.close()
    found = read_samples(folder, 3, ["with", "without"])
    assert [sample.picture for sample in found] == [picture(), None]


def test_a_picture_stands_below_the_spectrograms():
    plain, more = plot_sample(Sample("a", SOUND, 8000)), plot_sample(
        Sample("a", SOUND, 8000, SOUND, picture(40, 80)))
    assert more.get_figheight() == pytest.approx(plain.get_figheight() + 4)
    assert len(plain.axes) == 2 and len(more.axes) == 4
    assert decoded_picture(picture()).shape == (20, 80, 3)


def test_a_run_shows_where_it_looks(tmp_path):
    pytest.importorskip("tensorboard", reason="optional: needs tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    corpus = small_cache(tmp_path/"corpus", 24)
    given = changed(settings(corpus, tmp_path/"run", epochs=1, sample_every="1 epoch"),
                    validation={"sample_texts": ["[am] buna neh", "selam"], "max_tokens": 20,
                                "n_samples": 1})
    fit(given, listeners=[TensorBoardLogger()])
    drawn = list((tmp_path/"run"/"samples").glob("step_*.png"))
    assert len(drawn) == 1 and drawn[0].with_suffix(".wav").is_file()
    tags = EventAccumulator(str(tmp_path/"run"/"logs")).Reload().Tags()
    assert any(tag.endswith("buna neh picture") for tag in tags["images"])
    assert {"train/speech_accuracy", "validation/speech_loss"} <= set(tags["scalars"])
