"""What benchmarks/tts.py compares with: a T3 as fine-tuning forks train it, on transformers' Llama, by a plain loop and by transformers' Trainer.

Written from the description of the upstream program, with the weights of our model under the same names: random batches, text and speech padded apart,
prompts filled up to their full length, the Llama asked without a mask for all its hidden states, rows of text and speech cut out clip by clip, logits of
all places kept for the cost. What upstream gets wrong is put right where that is free (labels are shifted, padding is not asked for); its padding
between text and speech stays, since it is what padded batches are.
"""
import sys
import time
from importlib.machinery import ModuleSpec
from types import ModuleType

import torch
from torch import nn
from torch.nn import functional as F

try: import torchaudio  # noqa: F401
except (ImportError, OSError):  # transformers looks for it, and does without
    sys.modules["torchaudio"] = ModuleType("torchaudio")
    sys.modules["torchaudio"].__spec__ = ModuleSpec("torchaudio", None)
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

from audiolab.tts import ConditionEncoder, LearnedPositions

IGNORED = -100


def llama_config(form, rows=8):
    "The form of a T3's transformer, in their words."
    stretch = dict(rope_type="llama3", rope_theta=form.rope_theta, factor=form.rope_factor,
                   low_freq_factor=form.rope_low, high_freq_factor=form.rope_high,
                   original_max_position_embeddings=int(form.rope_original))
    return LlamaConfig(
        vocab_size=rows, hidden_size=form.width, num_hidden_layers=form.layers,
        num_attention_heads=form.heads, num_key_value_heads=form.heads, head_dim=form.head_size,
        intermediate_size=form.feed_forward, rms_norm_eps=form.norm_eps, rope_parameters=stretch,
        max_position_embeddings=131072, attention_bias=False, tie_word_embeddings=False,
        bos_token_id=None, eos_token_id=None, pad_token_id=None, attn_implementation="sdpa")


class PaddedT3(nn.Module):
    "A T3 for padded batches; its tensors are named as released."
    def __init__(self, form):
        super().__init__()
        self.form, width = form, form.width
        self.tfmr, self.cond_enc = LlamaModel(llama_config(form)), ConditionEncoder(form)
        self.text_emb = nn.Embedding(form.text_vocab, width)
        self.speech_emb = nn.Embedding(form.speech_vocab, width)
        self.text_pos_emb = LearnedPositions(form.max_text + 2, width)
        self.speech_pos_emb = LearnedPositions(form.max_speech + 4, width)
        self.text_head = nn.Linear(width, form.text_vocab, bias=False)
        self.speech_head = nn.Linear(width, form.speech_vocab, bias=False)

    def embedded(self, emb, positions, tokens):
        return emb(tokens) + positions(torch.arange(tokens.shape[1], device=tokens.device))

    def logits(self, text, text_lengths, speech, speech_lengths, prompt, speaker, emotion):
        "Of all places of text [B, T, V] and of speech [B, S, C], padding among them."
        whole = torch.full((len(prompt),), prompt.shape[1], device=prompt.device)  # no mask
        heard = self.embedded(self.speech_emb, self.speech_pos_emb, prompt)
        voice, rows, mood = self.cond_enc(speaker, emotion, heard, whole)
        condition = torch.cat([voice[:, None], rows, mood[:, None]], 1)
        written = self.embedded(self.text_emb, self.text_pos_emb, text)
        spoken = self.embedded(self.speech_emb, self.speech_pos_emb, speech)
        embeds = torch.cat([condition, written, spoken], 1)
        found = self.tfmr(inputs_embeds=embeds, output_hidden_states=True, return_dict=True,
                          use_cache=False).hidden_states[-1]
        first, second = condition.shape[1], condition.shape[1] + text.shape[1]
        texts, sounds = found.new_zeros(written.shape), found.new_zeros(spoken.shape)
        for clip in range(len(text)):
            here, there = text_lengths[clip].item(), speech_lengths[clip].item()
            texts[clip, :here] = found[clip, first:first + here]
            sounds[clip, :there] = found[clip, second:second + there]
        return self.text_head(texts), self.speech_head(sounds)

    def forward(self, text, text_lengths, speech, speech_lengths, prompt, speaker, emotion,
                text_labels, speech_labels):
        "The mean cost of a sound, and of a letter at a tenth."
        texts, sounds = self.logits(text, text_lengths, speech, speech_lengths, prompt, speaker,
                                    emotion)
        def cost(logits, labels):
            return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
        return {"loss": cost(sounds, speech_labels) + .1*cost(texts, text_labels)}


def padded_model(model):
    "The same weights."
    padded = PaddedT3(model.config)
    state = model.state_dict()
    padded.load_state_dict(state)
    return padded.train()


def _rows(items, filler):
    return nn.utils.rnn.pad_sequence(items, batch_first=True, padding_value=filler)


def collate(items, form):
    "A padded batch of what `SpeechLessons.item` gives."
    start, stop = torch.tensor([form.start_speech]), torch.tensor([form.stop_speech])
    texts = [torch.from_numpy(item["text"]) for item in items]
    codes = [torch.from_numpy(item["speech"]) for item in items]
    prompt = torch.zeros(len(items), form.prompt_tokens, dtype=torch.int64)
    for row, item in zip(prompt, items):
        row[:len(item["prompt"])] = torch.from_numpy(item["prompt"])
    return {
        "text": _rows(texts, 0), "text_lengths": torch.tensor([len(part) for part in texts]),
        "speech": _rows([torch.cat([start, part]) for part in codes], 0),
        "speech_lengths": torch.tensor([len(part) + 1 for part in codes]), "prompt": prompt,
        "speaker": torch.stack([torch.from_numpy(item["speaker"]) for item in items]),
        "emotion": torch.tensor([float(item["emotion"]) for item in items]),
        "text_labels": _text_labels(texts),
        "speech_labels": _rows([torch.cat([part, stop]) for part in codes], IGNORED)}


def _text_labels(texts):
    "The next letter; nothing is asked at the last."
    nothing = torch.tensor([IGNORED])
    return _rows([torch.cat([part[1:], nothing]) for part in texts], IGNORED)


def useful(batch):
    "Tokens of text and speech that are no padding."
    return int(batch["text_lengths"].sum() + batch["speech_lengths"].sum())


class Clock:
    "CPU seconds and tokens from the end of one step to the end of the last."
    def __init__(self, skip): self.skip, self.steps, self.tokens = skip, 0, 0

    def tick(self, tokens):
        "A step has ended."
        self.steps += 1
        if self.steps == self.skip: self.begin = time.process_time()
        elif self.steps > self.skip:
            self.tokens += tokens
            self.seconds = time.process_time() - self.begin

    def result(self):
        return dict(tokens_s=self.tokens/self.seconds, tokens=self.tokens/(self.steps - self.skip),
                    step_s=self.seconds/(self.steps - self.skip))


def fork_run(model, lessons, batch_size, steps, seed, clock, rate=1e-3):
    "The plain loop of a fork."
    padded = padded_model(model)
    optimizer = torch.optim.AdamW(padded.parameters(), lr=rate, betas=(.9, .95), weight_decay=.01)
    shuffled = torch.Generator().manual_seed(seed)
    loader = torch.utils.data.DataLoader(
        Items(lessons), batch_size, shuffle=True, generator=shuffled, drop_last=True,
        collate_fn=lambda items: collate(items, model.config))
    done = 0
    while done < steps:
        for batch in loader:
            loss = padded(**batch)["loss"]
            loss.backward()
            nn.utils.clip_grad_norm_(padded.parameters(), 1.)
            optimizer.step()
            optimizer.zero_grad()
            clock.tick(useful(batch))
            done += 1
            if done == steps: return


class Items(torch.utils.data.Dataset):
    "Lessons as a data set of torch; `input_ids` says how long a clip is."
    def __init__(self, lessons): self.lessons = lessons
    def __len__(self): return len(self.lessons)

    def __getitem__(self, index):
        item = self.lessons.item(int(index))
        length = len(item["text"]) + len(item["speech"])
        return item | {"input_ids": range(length)}


def trainer_run(model, lessons, batch_size, steps, seed, clock, folder, grouped=False, rate=1e-3):
    "The same by transformers' Trainer, in the order of chance or in batches of similar length."
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Ticks(TrainerCallback):
        def on_step_end(self, *_, **__): clock.tick(seen.pop())

    seen = []

    def collated(items):
        batch = collate(items, model.config)
        seen.append(useful(batch))
        return batch
    args = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=batch_size, max_steps=steps,
        learning_rate=rate, adam_beta2=.95, weight_decay=.01, max_grad_norm=1., seed=seed,
        lr_scheduler_type="cosine", warmup_steps=1, logging_steps=10, save_strategy="no",
        report_to=[], use_cpu=True, remove_unused_columns=False, disable_tqdm=True,
        dataloader_drop_last=True, dataloader_pin_memory=False,
        train_sampling_strategy="group_by_length" if grouped else "random")
    Trainer(padded_model(model), args, data_collator=collated, train_dataset=Items(lessons),
            callbacks=[Ticks()]).train()


class SpokenLlama(LlamaForCausalLM):
    "Their language model, with a table of places for sounds as T3 has one."
    def __init__(self, config, places):
        super().__init__(config)
        self.places, self.prefix = nn.Embedding(places, config.hidden_size), 0

    def forward(self, input_ids=None, inputs_embeds=None, **others):
        if inputs_embeds is None:
            # its newer and its older name
            cache = others["cache" if "cache" in others else "past_key_values"]
            place = cache.get_seq_length() - self.prefix + 1
            inputs_embeds = self.model.embed_tokens(input_ids) + self.places.weight[place]
        return super().forward(input_ids=None, inputs_embeds=inputs_embeds, **others)


def spoken_llama(model):
    "The Llama of a T3 with the tables of sounds."
    form = model.config
    config = llama_config(form, form.speech_vocab)
    theirs = SpokenLlama(config, form.max_speech + 4).eval()
    state = {f"model.{name}": value for name, value in model.tfmr.state_dict().items()
             if not name.startswith("embed_tokens")}
    state |= {"model.embed_tokens.weight": model.speech_emb.weight,
              "lm_head.weight": model.speech_head.weight,
              "places.weight": model.speech_pos_emb.emb.weight}
    theirs.load_state_dict(state)
    return theirs


@torch.no_grad()
def generate(theirs, model, utterances, count, **how):
    "So many codes of each utterance by their `generate` [B, count]; shorter texts are padded at the left."
    rows, starts = model.embed_prefix(utterances)
    places = torch.arange(rows.shape[1])
    mask = (places >= starts[:, None]).long()
    theirs.prefix = rows.shape[1]
    return theirs.generate(inputs_embeds=rows, attention_mask=mask, max_new_tokens=count,
                           use_cache=True, pad_token_id=0, **how)[:, -count:]
