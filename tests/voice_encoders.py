"Small encoders with weights that say something, and speech of the parametric teacher."
import numpy as np
import torch

from audiolab.data import keyed_rng
from audiolab.voice import (
    EncoderSpec, ParametricTeacher, StyleSpace, VoiceEncoder, draw_factors, fit_basis, stack_styles,
)

TEXT = "The birch canoe slid on the smooth planks. Four hours of steady work faced us."
KOKORO = StyleSpace("kokoro", "test", (1, 128), (1, 128), unit=False)


def unsettled(encoder, seed=0):
    "An encoder that answers differently for each recording, as if it had learnt something."
    torch.manual_seed(seed)
    for weights in encoder.parameters(): weights.data += .1*torch.randn_like(weights)
    directions = encoder.statistics.directions
    directions += .03*torch.randn_like(directions)
    return encoder.eval()


def parametric_encoder(**spec):
    "Of the parametric teacher's space"
    teacher = ParametricTeacher()
    styles = teacher.styles.encode(*draw_factors(40, keyed_rng(1)))
    bases = fit_basis(styles.ttl, 16), fit_basis(styles.dp, 4)
    spec = EncoderSpec(**{"hidden_dim": 16, "num_layers": 1} | spec)
    torch.manual_seed(0)
    return unsettled(VoiceEncoder(teacher.space, spec, *bases))


def kokoro_encoder():
    "Of a space without unit rows"
    rng = np.random.default_rng(0)
    bases = [fit_basis(rng.standard_normal((40, 1, 128)), 8, unit=False) for _ in range(2)]
    torch.manual_seed(0)
    return unsettled(VoiceEncoder(KOKORO, EncoderSpec(hidden_dim=16, num_layers=1), *bases))


def speech(seconds=None, voice="P1", seed=1):
    "What the parametric teacher says, float32 at 24 kHz"
    teacher = ParametricTeacher(seconds=seconds)
    style = stack_styles([teacher.presets()[voice]])
    return teacher.synthesize([TEXT], style, seeds=[seed])[0].audio
