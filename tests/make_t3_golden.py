"""What the released program's own T3 says of a short sentence: `python tests/make_t3_golden.py FILE.npz`.

It needs the package chatterbox-tts (0.1.7, installed without what it asks for, which is of other times) with torch,
transformers and einops beside it, in an environment of its own. Only its T3 is imported: what stands around it (a
watermark, a decoder) is not needed. The weights are made from a seed of NumPy, so that nothing large has to be kept.
"""
import sys
import types
from importlib.util import find_spec
from pathlib import Path

import numpy as np

SEED, LAYERS = 1301, 3
TEXT = [255, 31, 7, 2, 90, 311, 14, 14, 52, 0]
SPEECH = [6561, 4, 77, 1500, 6560, 3, 3, 902]  # the first starts
PROMPT_SEED, EMOTION = 5, .7


def made_weights(shapes):
    "Name -> float32 array: each drawn from a stream of its own name, norms near 1, the rest near 0."
    weights = {}
    for name in sorted(shapes):
        draw = np.random.default_rng([SEED, *name.encode()])
        value = draw.standard_normal(shapes[name], dtype=np.float32)
        is_norm = "norm" in name and name.endswith("weight")
        weights[name] = 1 + value*np.float32(.1) if is_norm else value*np.float32(.05)
    return weights


def made_condition():
    "Numbers of a speaker [256], a prompt of 150 sounds."
    draw = np.random.default_rng(PROMPT_SEED)
    return draw.standard_normal(256, dtype=np.float32)/16, draw.integers(0, 6561, 150)


def their_t3():
    "The class, without the imports of the package around it."
    place = find_spec("chatterbox")
    if place is None: raise SystemExit("chatterbox-tts is not installed here")
    package = types.ModuleType("chatterbox")
    package.__path__ = list(place.submodule_search_locations)
    sys.modules |= {"chatterbox": package, "torchaudio": None}  # it may not load, and is not needed
    from chatterbox.models.t3 import llama_configs
    from chatterbox.models.t3.modules.cond_enc import T3Cond
    from chatterbox.models.t3.modules.t3_config import T3Config
    from chatterbox.models.t3.t3 import T3
    llama_configs.LLAMA_CONFIGS["Llama_520M"]["num_hidden_layers"] = LAYERS
    return T3, T3Config, T3Cond


def main(path):
    import torch
    T3, T3Config, T3Cond = their_t3()
    found, (speaker, prompt) = {}, made_condition()
    for rows in (704, 2454):
        model = T3(T3Config(rows)).eval()
        state = model.state_dict()
        weights = made_weights({name: tuple(value.shape) for name, value in state.items()})
        tensors = {name: torch.from_numpy(value) for name, value in weights.items()}
        model.load_state_dict(tensors, strict=True)
        text, speech = torch.tensor([TEXT]), torch.tensor([SPEECH])
        for heard, tokens in (("prompt", torch.from_numpy(prompt)[None]), ("alone", None)):
            condition = T3Cond(
                speaker_emb=torch.from_numpy(speaker)[None], cond_prompt_speech_tokens=tokens,
                emotion_adv=torch.tensor([[[EMOTION]]]))
            with torch.inference_mode():
                out = model(
                    t3_cond=condition, text_tokens=text, text_token_lens=torch.tensor([len(TEXT)]),
                    speech_tokens=speech, speech_token_lens=torch.tensor([len(SPEECH)]))
            found[f"text_{rows}_{heard}"] = out.text_logits[0].float().numpy()
            found[f"speech_{rows}_{heard}"] = out.speech_logits[0, :, ::3].float().numpy()
        found[f"names_{rows}"] = np.array(sorted(state))
    np.savez_compressed(path, **found)
    print(Path(path).stat().st_size)


if __name__ == "__main__": main(sys.argv[1])
