"""Which ids end a policy's answer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["end_ids", "turn_end_ids"]

# A word that no template rewrites, strips or writes itself.
_PROBE = "Xylophone"
_TURNS: list[dict[str, Any]] = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": _PROBE}]


def end_ids(tokenizer: PreTrainedTokenizerBase, listed: Iterable[int] = ()) -> frozenset[int]:
    """The ids that end an answer: it and what follows are no text. Those of `turn_end_ids`, and the pad id.

    Args:
        tokenizer: of the ids.
        listed: as in `turn_end_ids`.
    """
    pad = tokenizer.pad_token_id
    return turn_end_ids(tokenizer, listed) | frozenset(() if pad is None else (pad,))


def turn_end_ids(tokenizer: PreTrainedTokenizerBase, listed: Iterable[int] = ()) -> frozenset[int]:
    """The ids with which a policy ends its turn: the eos, the token that the chat template writes behind an answer, and `listed`.

    Args:
        tokenizer: of the ids.
        listed: what a model's configuration names as its end tokens. Those that are ordinary words of the tokenizer are left out:
            configurations of untrained models name ids that mean nothing.
    """
    marks = {*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids}
    eos = tokenizer.eos_token_id
    return frozenset(() if eos is None else (eos,)) | (marks & {*listed, *_behind_an_answer(tokenizer)})


def _behind_an_answer(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The first token that the chat template writes behind an answer, or where it writes nothing there, behind an earlier one."""
    if tokenizer.chat_template is None:
        return []
    for turns in (_TURNS, [*_TURNS, _TURNS[0]]):
        try:
            text = tokenizer.apply_chat_template(turns, tokenize=False)
        except Exception:
            # A template is a program of its own and may raise anything. Whoever renders with it says so; here it only shows no end.
            return []
        behind = str(text).rpartition(_PROBE)[2].lstrip()
        if behind:
            return tokenizer(behind, add_special_tokens=False)["input_ids"][:1]
    return []
