"""A tiny policy of the world: its tokenizer, its training on the generator's answers, and a quick way to let it write.

Shape letters: `B` responses, `P` width of the padded prompts, `L` width of the padded responses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, embedding, linear, rms_norm, scaled_dot_product_attention, silu
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from research.world.grammar import WORDS, Answer, Facts, draw_answer, draw_facts
from srm.data.synthetic.draw import Draw
from srm.rl.policy import Responses, mark

__all__ = ["Speech", "pretrain", "write"]

END, UNKNOWN = "<end>", "<unknown>"


class Speech:
    """Words to ids and back, with a tokenizer that reads the same text the same way."""

    def __init__(self) -> None:
        # The first word of an answer has no space before it, as no full stop has.
        tokens = [END, UNKNOWN, "The", "You", "This", "What", "Facts", ":", ".", "\n"]
        tokens += [f" {word}" for word in WORDS if word not in ("Facts", ":", ".", "\n")]
        self.ids = {token: index for index, token in enumerate(tokens)}
        self.words = [token.strip(" ") for token in tokens]
        self.end, self.stop = self.ids[END], self.ids["."]
        self.tokenizer = _tokenizer(tokens)

    def prompt(self, facts: Facts) -> list[int]:
        return self._encode(["Facts", ":", *(f" {word}" for fact in facts.items() for word in fact), "\n"])

    def response(self, answer: Answer) -> list[int]:
        """Without the end token."""
        words = [word if word == "." else f" {word}" for sentence in answer.sentences for word in sentence]
        return self._encode([words[0].strip(), *words[1:]]) if words else []

    def sentences(self, ids: Sequence[int]) -> tuple[list[tuple[str, ...]], list[int]]:
        """The words of each sentence of a response, and the index of its last token. One that no full stop ends is a sentence, too."""
        ends = [index for index, token in enumerate(ids) if token == self.stop]
        if ids and (not ends or ends[-1] != len(ids) - 1):
            ends.append(len(ids) - 1)
        starts = [0, *(end + 1 for end in ends)]
        return [tuple(self.words[token] for token in ids[start : end + 1]) for start, end in zip(starts, ends, strict=False)], ends

    def _encode(self, tokens: Sequence[str]) -> list[int]:
        return [self.ids[token] for token in tokens]


def _tokenizer(tokens: Sequence[str]) -> PreTrainedTokenizerFast:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    # Bytes are written as characters that are no white space, as in GPT-2.
    spelled = [token if token in (END, UNKNOWN) else token.replace(" ", "Ġ").replace("\n", "Ċ") for token in tokens]
    tokenizer = Tokenizer(models.WordLevel({token: index for index, token in enumerate(spelled)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END, special=True), AddedToken(UNKNOWN, special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END, unk_token=UNKNOWN)


def pretrain(speech: Speech, folder: Path, *, steps: int, batch_size: int = 64, rate: float = 2e-3, seed: int = 0, **shape: Any) -> float:
    """Train a fresh Llama on the generator's answers, and save it with its tokenizer. Returns the mean loss of the last tenth of the steps.

    Args:
        shape: of the model, fields of `LlamaConfig`.
    """
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(speech.ids),
        num_key_value_heads=shape["num_attention_heads"],
        max_position_embeddings=256,
        tie_word_embeddings=True,
        eos_token_id=speech.end,
        bos_token_id=speech.end,
        pad_token_id=speech.end,
        initializer_range=0.05,
        **shape,
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0, fused=True)
    draw, losses = Draw("world", "pretrain", seed), []
    for step in range(steps):
        rows = [
            (speech.prompt(facts), speech.response(draw_answer(facts, draw))) for facts in (draw_facts(draw) for _ in range(batch_size))
        ]
        width = max(len(prompt) + len(response) for prompt, response in rows) + 1
        ids = torch.full((batch_size, width), speech.end)
        target = torch.full((batch_size, width), -100)
        for row, (prompt, response) in enumerate(rows):
            text = torch.tensor([*prompt, *response, speech.end])
            ids[row, : len(text)] = text
            target[row, len(prompt) : len(text)] = text[len(prompt) :]
        # Padding is on the right, where nothing that counts looks at it.
        loss = cross_entropy(model(input_ids=ids).logits[:, :-1].flatten(0, 1), target[:, 1:].flatten())
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    model.save_pretrained(folder)
    speech.tokenizer.save_pretrained(folder)
    tail = losses[-max(1, steps // 10) :]
    return sum(tail) / len(tail)


@torch.no_grad()
def write(model: LlamaForCausalLM, prompts: Sequence[Sequence[int]], *, num_generations: int, max_tokens: int, end: int) -> Responses:
    """What `srm.rl.policy.generate` does at temperature 1, without the calls that take most of its time with so small a model."""
    width = max(map(len, prompts))
    ids = torch.tensor([[*[end] * (width - len(prompt)), *prompt] for prompt in prompts]).repeat_interleave(num_generations, 0)
    counts = torch.tensor([len(prompt) for prompt in prompts]).repeat_interleave(num_generations)
    prompt_mask = (torch.arange(width) >= width - counts[:, None]).long()
    visible = torch.cat([prompt_mask.bool(), torch.ones(len(ids), max_tokens, dtype=torch.bool)], 1)[:, None, None]
    first = model(
        input_ids=ids,
        attention_mask=prompt_mask,
        position_ids=(prompt_mask.cumsum(1) - 1).clamp(min=0),
        logits_to_keep=1,
        use_cache=True,
    )
    caches = []
    for layer in first.past_key_values.layers:
        cache = torch.zeros(2, *layer.keys.shape[:2], width + max_tokens, layer.keys.shape[3])
        cache[0, :, :, :width], cache[1, :, :, :width] = layer.keys, layer.values
        caches.append(cache)
    logits, written, ended = first.logits[:, -1], [ids], torch.zeros(len(ids), dtype=torch.bool)
    for step in range(max_tokens):
        token = torch.multinomial(logits.softmax(-1), 1)
        # What is drawn behind the end counts nothing.
        token[ended] = end
        written.append(token)
        ended |= token[:, 0] == end
        if ended.all() or step == max_tokens - 1:
            break
        logits = _next_logits(model, token[:, 0], counts + step, caches, width + step, visible)
    return mark(torch.cat(written, 1), prompt_mask, [end])


def _next_logits(model: LlamaForCausalLM, token: Tensor, position: Tensor, caches: Sequence[Tensor], place: int, visible: Tensor) -> Tensor:
    """Logits behind `token` [B]. Its keys and values go to column `place` of the caches."""
    config = model.config
    heads, eps = config.num_attention_heads, config.rms_norm_eps
    hidden = embedding(token, model.model.embed_tokens.weight)
    cos, sin = (part.transpose(0, 1)[..., None, :] for part in model.model.rotary_emb(hidden, position[None]))
    for layer, cache in zip(model.model.layers, caches, strict=True):
        x = rms_norm(hidden, hidden.shape[-1:], layer.input_layernorm.weight, eps)
        own = layer.self_attn
        query, key, value = (linear(x, part.weight).view(len(token), heads, 1, -1) for part in (own.q_proj, own.k_proj, own.v_proj))
        cache[0, :, :, place], cache[1, :, :, place] = _rotated(key, cos, sin)[:, :, 0], value[:, :, 0]
        seen = cache[:, :, :, : place + 1]
        mixed = scaled_dot_product_attention(_rotated(query, cos, sin), seen[0], seen[1], attn_mask=visible[..., : place + 1])
        hidden = hidden + linear(mixed.flatten(1), own.o_proj.weight)
        x = rms_norm(hidden, hidden.shape[-1:], layer.post_attention_layernorm.weight, eps)
        hidden = hidden + linear(
            silu(linear(x, layer.mlp.gate_proj.weight)) * linear(x, layer.mlp.up_proj.weight), layer.mlp.down_proj.weight
        )
    return linear(rms_norm(hidden, hidden.shape[-1:], model.model.norm.weight, eps), model.lm_head.weight)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions of `x` [B, heads, 1, D]."""
    low, high = x.chunk(2, -1)
    return x * cos + torch.cat([-high, low], -1) * sin
