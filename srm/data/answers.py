"""How an answer goes on from its prompt: its tokens, where a policy's end, and what of them is the template's."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from srm.data.messages import response_text
from srm.data.schema import RowProblem
from srm.data.template import ChatFormat
from srm.segmentation import end_ids, turn_end_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["AnswerTokens"]

# Common first words, which tokenizers join with a space before them, and a rare one.
_WORDS = ("It", "The", "Xylophone")


class AnswerTokens:
    """The tokens of answers as a policy that continues the prompt writes them.

    lead: white space that the template writes between the prompt and an answer ("[/INST] Sure"), if the tokenizer makes it part of the
        answer's first word; else "".
    end_ids: ids that end a policy's answer.

    Args:
        tokenizer: the model's.
        form: its chat template.
        listed_ends: what the model's configuration names as end tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, form: ChatFormat, listed_ends: Iterable[int] = ()) -> None:
        self._tokenizer = tokenizer
        self.end_ids = end_ids(tokenizer, listed_ends)
        turn_ends = turn_end_ids(tokenizer, listed_ends)
        self._turn_ends, self._ends = (tokenizer.convert_ids_to_tokens(sorted(ids)) for ids in (turn_ends, self.end_ids))
        # Encodes answers in the tokenizer's place, where it would put a space in front that no policy writes.
        self._bare: Tokenizer | None = None
        self.lead = self._find_lead(form)
        self._header = form.header
        bare, ends_header = form.question.removesuffix(form.header), form.question
        without, with_header = self._ids(bare), self._ids(ends_header)
        self._header_ids = with_header[len(without) :] if form.header and with_header[: len(without)] == without else self._ids(form.header)
        behind = form.behind.strip()
        if behind and self._ids(behind)[0] not in self.end_ids:
            form.say_once(f"ends an answer with {behind[:40]!r}, which is no token of its own; ids that spell it are read as text")

    def encode(self, texts: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """The tokens of `texts`, and the characters that each covers.

        Args:
            texts: answers, as they stand.
        """
        led = [self.lead + text for text in texts]
        if self._bare is not None:
            rows = [(one.ids, one.offsets) for one in self._bare.encode_batch(led, add_special_tokens=False)]
        else:
            made = self._tokenizer(led, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False, verbose=False)
            rows = list(zip(made["input_ids"], made["offset_mapping"], strict=True))
        if shift := len(self.lead):
            rows = [(ids, [(max(start - shift, 0), max(end - shift, 0)) for start, end in offsets]) for ids, offsets in rows]
        return rows

    def encode_behind(self, prompt: str, lead: str, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The tokens of `text` where it goes on from `prompt` in one string, and the characters that each covers.

        Where the prompt's last token would take in the text's first characters, the two are tokenised apart, as a policy reads and writes
        them.

        Args:
            prompt: what a template has written before it.
            lead: white space between the two.
            text: the rest of the string.
        """
        before = self._ids(prompt)
        made = self._tokenizer(
            prompt + lead + text, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False, verbose=False
        )
        ids, offsets, shift = made["input_ids"], made["offset_mapping"], len(prompt + lead)
        if ids[: len(before)] == before:
            ids, offsets = ids[len(before) :], offsets[len(before) :]
        elif (bare := _without_prefix(self._tokenizer.backend_tokenizer)) is not None:
            one = bare.encode(lead + text, add_special_tokens=False)
            ids, offsets, shift = one.ids, one.offsets, len(lead)
        else:
            made = self._tokenizer(lead + text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            ids, offsets, shift = made["input_ids"], made["offset_mapping"], len(lead)
        return ids, [(max(start - shift, 0), max(end - shift, 0)) for start, end in offsets]

    def words_of(self, text: str) -> str:
        """`without_end`, which must leave something.

        Raises:
            RowProblem: there is no text, or end tokens alone.
        """
        words = self.without_end(text)
        if text.strip() and not words.strip():
            raise RowProblem(f"`response` is empty once its end token is removed: {text.strip()[:40]!r} is all it has")
        return response_text(words, "response")

    def without_end(self, text: str) -> str:
        """`text` without end tokens that are written out behind its last word.

        Args:
            text: an answer.
        """
        stripped = text.rstrip()
        while mark := next((mark for mark in self._turn_ends if stripped.endswith(mark)), ""):
            text = stripped.removesuffix(mark)
            stripped = text.rstrip()
        return text

    def up_to_end(self, text: str, policy_ends: Sequence[str] = ()) -> str:
        """`text`, what a policy wrote with its special tokens written out, up to the first end or pad token.

        Args:
            text: an answer and what follows it.
            policy_ends: what else ends it: a policy with another tokenizer has end tokens of its own.
        """
        return text[: min((at for mark in (*self._ends, *policy_ends) if (at := text.find(mark)) >= 0), default=len(text))]

    def split_header_text(self, prompt: str, answer: str) -> tuple[str, str]:
        """`split_header` of texts: the prompt as the model reads it, and what is left of the answer.

        Args:
            prompt: what the policy read, in its template.
            answer: what it wrote.
        """
        header = self._header
        if not header or not answer.startswith(header):
            return prompt, answer
        return prompt if prompt.endswith(header) else prompt + header, answer.removeprefix(header)

    def split_header(self, prompt: Sequence[int], answer: Sequence[int]) -> tuple[list[int], int]:
        """A policy's prompt as the model reads it, and how many ids at the front of the policy's answer belong to it.

        A policy whose generation prompt lacks the template's header writes it itself.

        Args:
            prompt: the ids that the policy read.
            answer: those that it wrote.
        """
        header = self._header_ids
        if not header or list(answer[: len(header)]) != header:
            return list(prompt), 0
        return [*prompt, *([] if list(prompt[-len(header) :]) == header else header)], len(header)

    def _find_lead(self, form: ChatFormat) -> str:
        """Set `_bare` and return the lead so that prompt and answer, tokenised apart, are the tokens of the whole."""
        space = form.head.removeprefix(form.question) if form.head.startswith(form.question) else ""
        space = space if space.isspace() else ""
        before = self._ids(form.question)
        whole = [self._ids(form.question + space + word) for word in _WORDS]
        bare = _without_prefix(self._tokenizer.backend_tokenizer)
        for lead in dict.fromkeys(("", space)):
            # SentencePiece puts a space before a text by itself; byte-level tokenizers need to be given it.
            if whole == [before + self._ids(lead + word) for word in _WORDS]:
                return lead
            if bare and whole == [before + bare.encode(lead + word, add_special_tokens=False).ids for word in _WORDS]:
                self._bare = bare
                return lead
        form.say_once(
            f"ends a prompt with {form.question[-20:]!r}, whose tokens depend on the answer's first word; prompt and answer are tokenised "
            "apart, as a policy reads and writes them"
        )
        # No character may come in that stands in neither of the two.
        self._bare = bare
        return space

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]


def _without_prefix(backend: Tokenizer) -> Tokenizer | None:
    """`backend` without the space that it puts before a text; None where it puts none."""
    state = json.loads(backend.to_str())
    changed = {**state, "normalizer": _bare_step(state["normalizer"]), "pre_tokenizer": _bare_step(state["pre_tokenizer"])}
    if changed == state:
        return None
    bare = Tokenizer.from_str(json.dumps(changed))
    bare.no_truncation()
    bare.no_padding()
    return bare


def _bare_step(step: dict[str, Any] | None) -> dict[str, Any] | None:
    kind = None if step is None else step["type"]
    if step is None or kind == "Prepend":
        return None
    if kind == "Sequence":
        name = "normalizers" if "normalizers" in step else "pretokenizers"
        return {**step, name: [bare for one in step[name] if (bare := _bare_step(one)) is not None]}
    if kind == "Metaspace":
        return {**step, "prepend_scheme": "never"}
    return {**step, "add_prefix_space": False} if "add_prefix_space" in step else step
