"""The tokenizer that a run trains with: other end, pad and template than the model's, where the settings name them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from srm.errors import UserError
from srm.modeling.loading import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from srm.training.model_arguments import ModelArguments

__all__ = ["settle_tokenizer"]


def settle_tokenizer(tokenizer: PreTrainedTokenizerBase, arguments: ModelArguments) -> None:
    """Give `tokenizer` what the settings name; it is saved with the model, so that scoring uses the same.

    Args:
        tokenizer: the model's.
        arguments: the settings.

    Raises:
        UserError: a token that it lacks, or no such template.
    """
    if arguments.chat_template_path is not None:
        tokenizer.chat_template = _template(arguments.chat_template_path, tokenizer)
    for name in ("eos_token", "pad_token"):
        token = getattr(arguments, name)
        if token is None:
            continue
        if token not in tokenizer.get_vocab():
            raise UserError(f"--{name} {token!r}: the tokenizer has no such token. Give one of its vocabulary, written as it is there.")
        # Not by the attribute alone: a loaded tokenizer would read the token in texts, where this one would not.
        tokenizer.add_special_tokens({name: token})


def _template(path: str, tokenizer: PreTrainedTokenizerBase) -> str:
    file = Path(path).expanduser()
    if file.is_file() or file.suffix in (".jinja", ".j2"):
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--chat_template_path {path}: cannot be read ({error}). Give a Jinja text file.") from error
    other = load_tokenizer(path)
    template = other.chat_template
    if not isinstance(template, str):
        raise UserError(f"--chat_template_path {path}: the tokenizer there has no chat template, or several. Give a Jinja text file.")
    vocabulary = tokenizer.get_vocab()
    lacking = [token for token in other.get_added_vocab() if token in template and token not in vocabulary]
    if lacking:
        raise UserError(
            f"--chat_template_path {path}: its template writes {lacking[0]!r}, which is no token of the model that is trained. "
            "Give a template that writes tokens which the model has learnt."
        )
    return template
