"""A tiny policy of the world: its tokenizer, its training on the generator's answers, and a quick way to let it write."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, rms_norm, silu
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
def write(
    models: Sequence[LlamaForCausalLM],
    prompts: Sequence[Sequence[Sequence[int]]],
    generators: Sequence[torch.Generator],
    *,
    num_generations: int,
    max_tokens: int,
    end: int,
) -> list[Responses]:
    """What `srm.rl.policy.generate` does at temperature 1, for several small models of one shape at once, each with prompts of its own.

    A step of one such model is some seventy calls of products too small to fill them. Side by side, all models share the calls.

    Args:
        prompts: of each model, as many for each.
        generators: of each model; what it writes does not depend on the others, but for the rounding of products.
    """
    width = max(len(prompt) for of in prompts for prompt in of)
    rows = [[end] * (width - len(prompt)) + list(prompt) for of in prompts for prompt in of]
    ids = torch.tensor(rows).view(len(models), -1, width)
    counts = torch.tensor([len(prompt) for of in prompts for prompt in of]).view(len(models), -1)
    prompt_mask = torch.arange(width) >= width - counts[..., None]
    weights = _Weights(models)
    caches = [torch.zeros(2, *ids.shape[:2], weights.heads, width, weights.head_size) for _ in weights.layers]
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    position = (prompt_mask.cumsum(-1) - 1).clamp(min=0)
    # Padding looks at itself, so that no row of the softmax is empty.
    visible = prompt_mask[:, :, None] & causal | torch.eye(width, dtype=torch.bool)
    logits = weights(ids, position, caches, 0, visible)[:, :, -1]
    caches = [_widened(cache, num_generations, max_tokens) for cache in caches]
    logits, counts, ids, prompt_mask = (x.repeat_interleave(num_generations, 1) for x in (logits, counts, ids, prompt_mask))
    visible = torch.cat([prompt_mask, torch.ones(*ids.shape[:2], max_tokens, dtype=torch.bool)], 2)[:, :, None]
    chance = torch.stack([torch.rand(ids.shape[1], max_tokens, generator=generator) for generator in generators])
    written, ended = [ids], torch.zeros(ids.shape[:2], dtype=torch.bool)
    for step in range(max_tokens):
        share = logits.softmax(-1).cumsum(-1)
        token = (share < chance[:, :, step, None] * share[..., -1:]).sum(-1, keepdim=True).clamp(max=share.shape[-1] - 1)
        # What is drawn behind the end counts nothing.
        token[ended] = end
        written.append(token)
        ended |= token[..., 0] == end
        if ended.all() or step == max_tokens - 1:
            break
        place = width + step
        logits = weights(token, (counts + step)[..., None], caches, place, visible[..., : place + 1])[:, :, 0]
    whole = torch.cat(written, 2)
    return [mark(one, mask.long(), [end]) for one, mask in zip(whole, prompt_mask, strict=True)]


def _widened(cache: Tensor, num_generations: int, max_tokens: int) -> Tensor:
    """Keys and values of prompts, one for each response, with room for its tokens."""
    return torch.nn.functional.pad(cache.repeat_interleave(num_generations, 2), (0, 0, 0, max_tokens))


class _Weights:
    """Of several Llamas without biases, side by side. Shape letters: `M` models, `B` rows of each, `T` new tokens, `S` tokens so far."""

    def __init__(self, models: Sequence[LlamaForCausalLM]) -> None:
        config = models[0].config
        self.heads, self.eps = config.num_attention_heads, config.rms_norm_eps
        self.head_size = config.hidden_size // config.num_attention_heads
        self.rotary = models[0].model.rotary_emb
        self.embedding = torch.stack([model.model.embed_tokens.weight for model in models])
        self.norm = torch.stack([model.model.norm.weight for model in models])[:, None]
        self.output = torch.stack([model.lm_head.weight for model in models]).transpose(1, 2)
        self.layers = [self._layer([model.model.layers[index] for model in models]) for index in range(config.num_hidden_layers)]

    def _layer(self, layers: Sequence[Any]) -> dict[str, Tensor]:
        def stacked(*names: str) -> Tensor:
            return torch.stack([torch.cat([layer.get_submodule(name).weight for name in names]) for layer in layers])

        return {
            "before attention": stacked("input_layernorm")[:, None],
            "query, key, value": stacked("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj").transpose(1, 2),
            "attended": stacked("self_attn.o_proj").transpose(1, 2),
            "before mlp": stacked("post_attention_layernorm")[:, None],
            "gate, up": stacked("mlp.gate_proj", "mlp.up_proj").transpose(1, 2),
            "down": stacked("mlp.down_proj").transpose(1, 2),
        }

    def __call__(self, ids: Tensor, position: Tensor, caches: Sequence[Tensor], place: int, visible: Tensor) -> Tensor:
        """Logits [M, B, T, V] of `ids` [M, B, T], whose keys and values go to the caches [2, M, B, heads, S, E] from `place` on.

        visible: bool [M, B, T, place + T].
        """
        models, rows, new = ids.shape
        hidden = self.embedding.gather(1, ids.flatten(1)[..., None].expand(-1, -1, self.embedding.shape[2]))
        cos, sin = (part.view(models, rows, 1, new, -1) for part in self.rotary(hidden, position.view(1, -1)))
        for layer, cache in zip(self.layers, caches, strict=True):
            mixed = torch.bmm(self._norm(hidden, layer["before attention"]), layer["query, key, value"])
            query, key, value = mixed.view(models, rows, new, 3, self.heads, -1).permute(3, 0, 1, 4, 2, 5)
            cache[0, ..., place : place + new, :], cache[1, ..., place : place + new, :] = _rotated(key, cos, sin), value
            seen = cache[..., : place + new, :]
            score = _rotated(query, cos, sin) @ seen[0].transpose(-1, -2) / self.head_size**0.5
            attended = score.masked_fill(~visible[:, :, None], -torch.inf).softmax(-1) @ seen[1]
            hidden = hidden + torch.bmm(attended.transpose(2, 3).reshape(models, rows * new, -1), layer["attended"])
            gate, up = torch.bmm(self._norm(hidden, layer["before mlp"]), layer["gate, up"]).chunk(2, -1)
            hidden = hidden + torch.bmm(silu(gate) * up, layer["down"])
        return torch.bmm(self._norm(hidden, self.norm), self.output).view(models, rows, new, -1)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return rms_norm(x, x.shape[-1:], None, self.eps) * weight


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions of `x` [..., E]."""
    low, high = x.chunk(2, -1)
    return x * cos + torch.cat([-high, low], -1) * sin
