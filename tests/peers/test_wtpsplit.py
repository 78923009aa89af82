"""The segmenter `sat` on the real wtpsplit: its own loading and cutting, of a tiny model that ends a sentence at every full stop."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import wtpsplit
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import XLMRobertaTokenizerFast
from wtpsplit.configs import SubwordXLMConfig
from wtpsplit.models import SubwordXLMForTokenClassification

from srm import UserError
from srm.segmentation import make_segmenter

LETTERS = [chr(code) for code in range(33, 127)]


@pytest.fixture(autouse=True)
def hub(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """wtpsplit asks the hub for XLM-R's tokenizer by name: here a cache holds one of letters."""
    cache = tmp_path_factory.mktemp("hub")
    home = cache / "models--facebookAI--xlm-roberta-base"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("0" * 40)
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "▁", *LETTERS]
    backend = Tokenizer(models.Unigram([(piece, 0.0) for piece in pieces], unk_id=3))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    snapshot = home / "snapshots" / ("0" * 40)
    XLMRobertaTokenizerFast(tokenizer_object=backend).save_pretrained(snapshot)
    (snapshot / "config.json").write_text('{"model_type": "xlm-roberta"}')
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(cache))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = SubwordXLMConfig(
        vocab_size=6 + len(LETTERS),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        num_labels=1,
        type_vocab_size=1,
        max_position_embeddings=514,
    )
    model = SubwordXLMForTokenClassification(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        for norm in (module for module in model.modules() if isinstance(module, torch.nn.LayerNorm)):
            norm.weight.fill_(1.0)
        # What tells a full stop from all else passes through untouched.
        words = model.get_input_embeddings().weight
        words[:, 0] = 1.0
        words[6 + LETTERS.index(".")] = torch.eye(8)[1]
        model.classifier.weight[0, 1] = 10.0
        model.classifier.bias.fill_(-5.0)
    model.save_pretrained(tmp_path / "sat")
    return tmp_path / "sat"


def cut(folder: Path, text: str) -> list[str]:
    return [text[start:end] for start, end in make_segmenter("sat", sat_model=str(folder)).segment(text)]


def test_its_sentences_are_ours_and_layout_still_counts(folder: Path) -> None:
    assert cut(folder, "one. two. three") == ["one. ", "two. ", "three"]
    text = "one. two\n\n- three. four\n```\na. b\n```\nfive"
    assert cut(folder, text) == ["one. ", "two\n\n", "- three. ", "four\n", "```\na. b\n```\n", "five"]
    assert cut(folder, "") == []


@pytest.mark.parametrize("text", [" a. b", "a.\n\n\nb. ", "一。二", "a\tb. é", ". . .", "x" * 2000 + ". y"])
def test_no_character_is_lost(folder: Path, text: str) -> None:
    assert "".join(cut(folder, text)) == text


def test_pieces_that_are_not_the_text(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an older or a later release might cut: no span may point at other characters."""
    monkeypatch.setattr(wtpsplit.SaT, "split", lambda self, text, **settings: ["less"])
    with pytest.raises(RuntimeError, match="4 characters for a text of 6"):
        cut(folder, "broken")


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"segmenter `sat`: the model '.*none' did not load"):
        make_segmenter("sat", sat_model=str(tmp_path / "none"))
