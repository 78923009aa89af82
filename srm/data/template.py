"""How a tokenizer's chat template writes a prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jinja2 import TemplateError

from srm.data.schema import Message, Prompt
from srm.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["PLAIN_TEMPLATE", "ChatFormat"]

# For tokenizers without a template: "User:\n<text>\n\nAssistant:\n". The header ends with a line break, so that a response begins as a
# policy would begin it, without a space in front.
PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'] | capitalize }}:{{ '\\n' }}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{{ '\\n' }}{% endif %}"
)
# A word that no template rewrites, strips or writes itself.
_PROBE = "Xylophone"


class ChatFormat:
    """A tokenizer's chat template, or the plain one, taken apart.

    lead: white space that the template writes between the prompt and a response ("[/INST] Sure"), if the tokenizer makes it part of the
        response's first word; else "".

    Raises:
        UserError: the tokenizer is not a fast one, or its template cannot write a short conversation word for word.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not tokenizer.is_fast:
            raise UserError(
                f"{_name(tokenizer)}: {type(tokenizer).__name__} cannot tell which characters a token covers, which sentence boundaries "
                "need. Use its fast version (AutoTokenizer.from_pretrained(..., use_fast=True), or a tokenizer.json)."
            )
        self._tokenizer = tokenizer
        self._template = PLAIN_TEMPLATE if tokenizer.chat_template is None else None
        self._bos = self._own_bos() if self._template else []
        question: list[Message] = [{"role": "user", "content": "Hello"}]
        prompt = self.render(question)
        whole = self._render([*question, {"role": "assistant", "content": _PROBE}], add_generation_prompt=False)
        if _PROBE not in whole:
            raise UserError(
                f"{_name(tokenizer)}: its chat template does not write the assistant's words as they are, so its tokens cannot "
                "be told from the template's. Set `tokenizer.chat_template` to one that does, or to None for the plain one."
            )
        self.lead = self._find_lead(prompt, whole[: whole.rindex(_PROBE)])

    def render(self, prompt: Prompt) -> str:
        """The text of `prompt`, up to where the assistant's answer begins. A string is one user message.

        Raises:
            UserError: the template refuses the conversation.
        """
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        return self._render(messages, add_generation_prompt=True)

    def prompt_ids(self, texts: list[str]) -> list[list[int]]:
        """Tokens of rendered prompts.

        A template writes the bos token itself, so none is added. With the plain template the tokenizer's own habit decides.
        """
        batch = [[*self._bos, *ids] for ids in self._ids(texts)]
        return [ids or self._ids_of_nothing() for ids in batch]

    def has_tokens(self, text: str) -> bool:
        """Whether the tokenizer makes any token of `text`: its normalizer may leave nothing of it."""
        return bool(self._ids([text])[0])

    def _render(self, messages: list[Message], *, add_generation_prompt: bool) -> str:
        try:
            text = self._tokenizer.apply_chat_template(
                messages, chat_template=self._template, add_generation_prompt=add_generation_prompt, tokenize=False
            )
        except Exception as error:
            # A template is a program that came with the model: what it makes of odd messages may be any error.
            name = "" if isinstance(error, TemplateError) else f"{type(error).__name__}: "
            reason = name + (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            roles = ", ".join(message["role"] for message in messages)
            raise UserError(
                f"the chat template refuses the messages ({roles}): {reason}. Change the messages, or use a tokenizer whose template "
                "takes them."
            ) from None
        assert isinstance(text, str)
        return text

    def _ids(self, texts: list[str]) -> list[list[int]]:
        return self._tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"] if texts else []

    def _own_bos(self) -> list[int]:
        """The bos token, if the tokenizer puts one before a text."""
        bos = self._tokenizer.bos_token_id
        ids = self._tokenizer(_PROBE)["input_ids"]
        return [bos] if bos is not None and ids[:1] == [bos] else []

    def _ids_of_nothing(self) -> list[int]:
        """What stands for a prompt whose rendered text is empty: the first boundary needs a token."""
        for token in (self._tokenizer.bos_token_id, self._tokenizer.eos_token_id):
            if token is not None:
                return [token]
        raise UserError("a prompt is empty, and the tokenizer has neither a bos nor an eos token to stand for it. Drop the row.")

    def _find_lead(self, prompt: str, head: str) -> str:
        lead = head[len(prompt) :]
        if not head.startswith(prompt) or not lead.isspace():
            return ""
        whole, start, alone = self._ids([head + _PROBE, prompt, _PROBE])
        # SentencePiece puts the space before a text by itself; byte-level tokenizers need to be given it.
        return "" if start + alone == whole else lead


def _name(tokenizer: PreTrainedTokenizerBase) -> str:
    return str(tokenizer.name_or_path or "the tokenizer")
