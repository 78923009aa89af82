"""A policy's responses, and what it and its value head say about their tokens.

Shape letters: `B` responses, `P` width of the padded prompts, `L` width of the padded responses, `M` response tokens that count, `D` hidden
size, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from srm.packing import PackingMode, PromptGroup, ResponseIds, pack, probe, run_to_logits
from srm.packing.backbone import restore

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Policy", "Responses", "TokenStats", "generate", "mark"]


class Responses(NamedTuple):
    """Responses behind their prompts.

    Attributes:
        ids: int64 [B, P + L], prompts padded on the left, responses on the right.
        attention_mask: int64 [B, P + L], 1 on tokens, the end token included.
        mask: bool [B, L], the tokens that the policy answers for: up to and with its first end token.
        text_lengths: int64 [B], tokens before the end token.
    """

    ids: Tensor
    attention_mask: Tensor
    mask: Tensor
    text_lengths: Tensor

    @property
    def response_ids(self) -> Tensor:
        """int64 [B, L]."""
        return self.ids[:, -self.mask.shape[1] :]


class TokenStats(NamedTuple):
    """Of each response token, fp32 [B, L], 0 outside the responses' mask.

    Attributes:
        logprobs: log-probability of the token.
        entropy: of the distribution that it came from, in nats, without gradient.
        value: what the value head expects from this token on; zeros without a head.
    """

    logprobs: Tensor
    entropy: Tensor
    value: Tensor


class Policy(nn.Module):
    """A causal language model, with a value head on its last hidden state where `value_head` is on.

    The head starts at zero: until it has learned something, every advantage is the reward to go.

    Args:
        packing: `shared` runs a prompt once for all of its responses, `packed` with each of them but without padding, `none` padded.

    Raises:
        UnsupportedBackboneError: a packed mode, and the model cannot run packed.
    """

    def __init__(self, model: PreTrainedModel, *, value_head: bool = False, packing: PackingMode = "shared") -> None:
        super().__init__()
        self.model = model
        self.packing = packing
        if packing != "none":
            probe(model.base_model)
        self.value_head: nn.Linear | None = None
        if value_head:
            self.value_head = nn.Linear(model.config.get_text_config().hidden_size, 1, device=model.device)
            nn.init.zeros_(self.value_head.weight)
            nn.init.zeros_(self.value_head.bias)

    def forward(self, responses: Responses, temperature: float) -> TokenStats:
        """Statistics of the tokens of `responses`, exactly as they are, of softmax(logits / temperature)."""
        logits_M, hidden_M = self._run_padded(responses) if self.packing == "none" else self._run_packed(responses)
        logits_M = logits_M.float() / temperature
        log_total = logits_M.logsumexp(-1)
        logprobs = logits_M.gather(-1, responses.response_ids[responses.mask][:, None])[:, 0] - log_total
        with torch.no_grad():
            entropy = log_total - (logits_M.softmax(-1) * logits_M).sum(-1)
        value = torch.zeros_like(logprobs)
        if self.value_head is not None:
            assert hidden_M is not None, "asked for where there is a head"
            with torch.autocast(logits_M.device.type, enabled=False):
                value = self.value_head(hidden_M.float())[:, 0]
        zeros = logprobs.new_zeros(responses.mask.shape)
        return TokenStats(*(zeros.masked_scatter(responses.mask, part) for part in (logprobs, entropy, value)))

    def _run_packed(self, responses: Responses) -> tuple[Tensor, Tensor | None]:
        """Logits [M, V] and, for the value head, last hidden states [M, D] that the response tokens come from, in the order of the mask."""
        width = responses.mask.shape[1]
        groups = []
        for ids, kept in zip(responses.ids, responses.attention_mask.bool(), strict=True):
            prompt, response = (part.cpu().numpy() for part in (ids[:-width][kept[:-width]], ids[-width:][kept[-width:]]))
            every_token = ResponseIds(ids=response, sentence_ends=np.arange(len(response), dtype=np.int32))
            groups.append(PromptGroup(prompt_ids=prompt, responses=[every_token]))
        batch = pack(groups, mode=self.packing, pad_token_id=0).to(responses.ids.device)
        # Every token is a boundary, and so is the prompt's last one. Each says what comes next; behind the last one nothing does.
        has_next = torch.ones_like(batch.boundaries, dtype=torch.bool)
        has_next[batch.cu_boundaries[1:].long() - 1] = False
        rows = batch.boundaries[has_next]
        wants_hidden = self.value_head is not None
        logits, output = run_to_logits(self.model, batch, rows, output_hidden_states=wants_hidden)
        return logits, output.hidden_states[-1][0, rows] if wants_hidden else None

    def _run_padded(self, responses: Responses) -> tuple[Tensor, Tensor | None]:
        """The same from rows that are padded on both sides."""
        width = responses.mask.shape[1]
        restore(self.model)
        output: Any = self.model(
            input_ids=responses.ids,
            attention_mask=responses.attention_mask,
            # Prompts are padded on the left; a token's position counts from its own prompt's first.
            position_ids=(responses.attention_mask.cumsum(1) - 1).clamp(min=0),
            # A token's distribution comes from the token before it.
            logits_to_keep=width + 1,
            output_hidden_states=self.value_head is not None,
            use_cache=False,
        )
        hidden = None if self.value_head is None else output.hidden_states[-1][:, -width - 1 : -1][responses.mask]
        return output.logits[:, :-1][responses.mask], hidden


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    num_generations: int,
    max_completion_length: int,
    temperature: float,
    end_ids: Sequence[int],
    pad_id: int,
) -> Responses:
    """`num_generations` responses to each of `prompts` (token ids), one prompt's next to each other, drawn from the whole distribution.

    Args:
        prompts: token ids.
        num_generations: responses to each prompt.
        max_completion_length: most tokens of a response.
        temperature: what logits are divided by.
        end_ids: tokens that end a response.
        pad_id: fills up behind it, and may be one of them.

    Returns:
        One row a response, a prompt's next to each other.
    """
    from transformers import GenerationConfig

    width = max(map(len, prompts))
    ids = torch.tensor([[*[pad_id] * (width - len(prompt)), *prompt] for prompt in prompts], device=model.device)
    attention_mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
    sampling = GenerationConfig(
        do_sample=True,
        temperature=temperature,
        top_k=0,
        top_p=1.0,
        max_new_tokens=max_completion_length,
        num_return_sequences=num_generations,
        eos_token_id=list(end_ids),
        pad_token_id=pad_id,
    )
    # What `sampling` leaves open would come from the model's own settings, such as a repetition penalty: then the log-probabilities
    # would be those of another distribution.
    restore(model)
    own, model.generation_config = model.generation_config, sampling
    try:
        written: Tensor = cast(Any, model).generate(input_ids=ids, attention_mask=attention_mask, generation_config=sampling)
    finally:
        model.generation_config = own
    return mark(written, attention_mask.repeat_interleave(num_generations, 0), end_ids)


def mark(ids: Tensor, prompt_mask: Tensor, end_ids: Sequence[int]) -> Responses:
    """`ids` [B, P + L] with what of it counts. Where a response ends depends on its first end token alone, not on padding."""
    response = ids[:, prompt_mask.shape[1] :]
    is_end = torch.isin(response, torch.tensor(list(end_ids), device=ids.device))
    # Ends before this token: none up to and with the first end token itself.
    mask = is_end.cumsum(1) - is_end.long() == 0
    return Responses(ids, torch.cat([prompt_mask, mask.long()], 1), mask, (mask & ~is_end).sum(1))
