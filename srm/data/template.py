"""How a tokenizer's chat template writes a prompt, up to where the answer begins."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from srm.data.messages import is_prefilled
from srm.data.responses import THOUGHTS
from srm.data.schema import Conversation, Message, Prompt
from srm.data.tool_calls import names_of, spell_out, texts_of, unwritten
from srm.errors import UserError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["PLAIN_TEMPLATE", "QUESTION", "ChatFormat"]

logger = logging.getLogger(__name__)

# For tokenizers without a template: "User:\n<text>\n\nAssistant:\n". The header ends with a line break, so that a response begins as a
# policy would begin it, without a space in front.
PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'] | capitalize }}:{{ '\\n' }}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{{ '\\n' }}{% endif %}"
)
QUESTION = "Hello"
"""The short question of `ChatFormat.question` and `ChatFormat.head`."""
# A word that no template rewrites, strips or writes itself.
_PROBE = "Xylophone"


class ChatFormat:
    """A tokenizer's chat template, or the plain one. What it cannot do is said once, in the log.

    head: what it writes before the answer to a short question in a whole conversation.
    behind: what it writes behind that answer.
    question: what it writes before the answer as a prompt.
    header: what it writes before an answer in a whole conversation and leaves out of its generation prompt. It ends each prompt here, as
        in the conversation; an empty thought does not, because a policy that goes on from the generation prompt does not have it.

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
        self._said: set[str] = set()
        self.header = ""
        question: list[Message] = [{"role": "user", "content": QUESTION}]
        whole = self.write([*question, {"role": "assistant", "content": _PROBE}])
        if _PROBE not in whole:
            raise UserError(
                f"{_name(tokenizer)}: its chat template does not write the assistant's words as they are, so its tokens cannot "
                "be told from the template's. Set `tokenizer.chat_template` to one that does, or to None for the plain one."
            )
        self.head, _, self.behind = whole.rpartition(_PROBE)
        self.header = self._find_header(self.render(question))
        self.question = self.render(question)

    def render(self, prompt: Prompt) -> str:
        """The text of `prompt`, up to where the assistant's answer begins, or goes on. A string is one user message.

        Tools and settings of a `Conversation` go to the template. Calls of tools that the template leaves out are spelled out in the
        messages.

        Args:
            prompt: text or chat messages, as `srm.data.messages.check_prompt` returns them.

        Raises:
            UserError: the template refuses the conversation, or does not write its tools.
        """
        return self.read(prompt)[2]

    def read(self, prompt: Prompt) -> tuple[list[Message], dict[str, Any], str]:
        """The messages of `prompt` as the template takes them, what else it is given, and the text of `render`. Raises as `render`."""
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        settings = prompt.settings if isinstance(prompt, Conversation) else {}
        text = self._write_prompt(messages, settings)
        if (tools := settings.get("tools")) and self._drops(messages, {**settings, "tools": None}, text, names_of(tools)):
            raise UserError(
                "the chat template does not write `tools`, so the model would not read which tools there are. Delete the column, or use "
                "a tokenizer whose template writes them."
            )
        said = [part for message in messages for part in texts_of(message.get("tool_calls") or ())]
        if said and self._drops([{**message, "tool_calls": None} for message in messages], settings, text, said):
            self.say_once("leaves out calls of tools, so they are read as <tool_call> blocks of JSON in their messages")
            messages = spell_out(messages)
            text = self._write_prompt(messages, settings)
        if any(unwritten([message[key]], text) for message in messages for key in THOUGHTS if isinstance(message.get(key), str)):
            self.say_once("leaves the thoughts of earlier answers out, so the model does not read them")
        return messages, settings, text + ("" if is_prefilled(messages) else self.header)

    def prompt_ids(self, texts: list[str]) -> list[list[int]]:
        """Tokens of rendered prompts.

        A template writes the bos token itself, so none is added. With the plain template the tokenizer's own habit decides.
        """
        rows = self._tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"] if texts else []
        return [[*self._bos, *ids] or self._ids_of_nothing() for ids in rows]

    @property
    def special_tokens(self) -> list[str]:
        """The tokenizer's special tokens, as texts."""
        return [str(token) for token in self._tokenizer.all_special_tokens]

    def say_once(self, what: str) -> None:
        """Log what the template does, unless it has been said: "<tokenizer>: its chat template <what>"."""
        if what not in self._said:
            self._said.add(what)
            logger.warning("%s: its chat template %s", _name(self._tokenizer), what)

    def _write_prompt(self, messages: list[Message], settings: dict[str, Any]) -> str:
        if not is_prefilled(messages):
            return self.write(messages, add_generation_prompt=True, **settings)
        text = self.write(messages, continue_final_message=True, **settings)
        content = messages[-1]["content"]
        # A template may trim it, and the answer's first word would join its last one.
        space = content[len(content.rstrip()) :]
        return text if text.endswith(space) else text.rstrip() + space

    def write(self, messages: list[Message], **settings: Any) -> str:
        """What the template makes of `messages`.

        Args:
            messages: as `read` returns them.
            **settings: keyword arguments of `apply_chat_template`.

        Raises:
            UserError: the template refuses them.
        """
        try:
            text = self._tokenizer.apply_chat_template(messages, chat_template=self._template, tokenize=False, **settings)
        except Exception as error:
            # A template is a program that came with the model: what it makes of odd messages may be any error.
            name = "" if isinstance(error, TemplateError) else f"{type(error).__name__}: "
            reason = name + first_line(error)
            roles = ", ".join(message["role"] for message in messages)
            raise UserError(
                f"the chat template refuses the messages ({roles}): {reason}. Change the messages, or use a tokenizer whose template "
                "takes them."
            ) from None
        assert isinstance(text, str)
        return text

    def _drops(self, messages: list[Message], settings: dict[str, Any], text: str, parts: list[str]) -> bool:
        """Whether `text` lacks one of `parts`, or is what the template writes without them: for `messages` with `settings`."""
        if unwritten(parts, text):
            return True
        try:
            return self._write_prompt([{k: v for k, v in message.items() if v is not None} for message in messages], settings) == text
        except UserError:
            # It misses them, so it writes them.
            return False

    def _find_header(self, prompt: str) -> str:
        header = self.head.removeprefix(prompt)
        if not self.head.startswith(prompt):
            self.say_once(
                f"ends its generation prompt with {prompt[-40:]!r} and writes {self.head[-40:]!r} before an answer; the first is read"
            )
            return ""
        if not header.strip():
            return ""
        if "think" in header:
            self.say_once(f"writes {header!r} before an answer, but not in its generation prompt; it is left out")
            return ""
        self.say_once(f"writes {header!r} before an answer, but not in its generation prompt; it is put behind each prompt")
        # A space at its end belongs to the answer's first word.
        return header.rstrip(" ")

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


def _name(tokenizer: PreTrainedTokenizerBase) -> str:
    return str(tokenizer.name_or_path or "the tokenizer")
