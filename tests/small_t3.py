"A small T3 with rows for a second language, sentences for it, and what they cost it."
import torch
from torch import nn

from audiolab.tts import T3Config, Utterance, extend_vocabulary, init_t3

SMALL = dict(codes=12, width=16, layers=2, heads=2, start_text=1, speaker_size=4, queries=2,
             max_text=16, max_speech=32)
BASE, ROWS = 20, 26
TABLES = "text_emb.weight", "text_head.weight"


def extended_t3():
    return extend_vocabulary(init_t3(T3Config.small(text_vocab=BASE, **SMALL)), ROWS)


def sentences(count, seed=0, size=ROWS):
    "Random texts of all letters, and random sounds."
    draw = torch.Generator().manual_seed(seed)
    texts = torch.randint(2, size, (count, 5), generator=draw)
    ends = torch.tensor([1]), torch.tensor([0])
    return [Utterance(torch.cat([ends[0], text, ends[1]]),
                      torch.randint(12, (6,), generator=draw), None,
                      torch.randn(4, generator=draw)) for text in texts]


def loss_of(model, pack):
    "Of text and speech."
    text, speech = model(pack)
    cost = nn.functional.cross_entropy
    return cost(text, pack.text_labels) + cost(speech, pack.speech_labels)
