"""The ids that end a policy's answer."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from srm.segmentation import TokenSegmenter, end_ids, turn_end_ids

MARKS = ("<eos>", "<pad>", "<|turn|>", "<|end|>", "<|call|>")
TURNS = "{% for m in messages %}<|turn|>{{ m['role'] }}\n{{ m['content'] }}{% if END %}<|end|>\n{% endif %}{% endfor %}"


def tokenizer(template: str | None) -> PreTrainedTokenizerFast:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(["Yes. No."], trainers.BpeTrainer(special_tokens=list(MARKS), initial_alphabet=alphabet, show_progress=False))
    fast = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>", pad_token="<pad>")
    fast.chat_template = template
    return fast


@pytest.mark.parametrize(
    ("template", "ends"),
    [
        (None, {"<eos>"}),
        (TURNS.replace("END", "true"), {"<eos>", "<|end|>"}),
        # White space before it is no token of its own.
        (TURNS.replace("END", "true").replace("<|end|>", " <|end|>"), {"<eos>", "<|end|>"}),
        # The last turn stays open, an earlier one shows the end.
        (TURNS.replace("END", "not loop.last"), {"<eos>", "<|end|>"}),
        # Without an end of its own a turn ends where the next begins.
        (TURNS.replace("END", "false"), {"<eos>", "<|turn|>"}),
        # What the template spells out without such a token is text.
        (TURNS.replace("END", "true").replace("<|end|>", "[END]"), {"<eos>"}),
        ("{{ raise_exception('never') }}", {"<eos>"}),
        ("{{ messages[0]['content']['text'] + 1 }}", {"<eos>"}),
    ],
)
def test_the_template_shows_its_end(template: str | None, ends: set[str]) -> None:
    made = tokenizer(template)
    assert turn_end_ids(made) == set(made.convert_tokens_to_ids(sorted(ends)))
    assert end_ids(made) == turn_end_ids(made) | {made.pad_token_id}


def test_listed_ids_end_an_answer_unless_they_are_words() -> None:
    made = tokenizer(None)
    call, word = made.convert_tokens_to_ids(["<|call|>", "Y"])
    assert turn_end_ids(made, [call, word, 10**6]) == {made.eos_token_id, call}


def test_the_token_segmenter_knows_them() -> None:
    made = tokenizer(TURNS.replace("END", "true"))
    ids = made("Yes. No.<|end|>", add_special_tokens=False)["input_ids"]
    found = TokenSegmenter(made).segment(torch.tensor([ids]))
    assert found.lengths.tolist() == [len(ids) - 1]
    assert found.tolist()[0][-1] == len(ids) - 2
