"""Rewards while the text arrives, against the full forward."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModel, AutoTokenizer

from srm import ScoredResponse, ScoredSentence, SentenceRewardModel, UserError
from srm.scoring.stream import RewardStream

PROMPT = "Where does the cat sit?"
TEXT = "The cat sat on the mat. It was warm there!\n\n- Bread, i.e. flour.\n- Salt é 🙂 and time.\nIs this right? No, it is wro"
ModelMaker = Callable[..., SentenceRewardModel]
CONFIGS: list[dict[str, Any]] = [
    {},
    {"pooling": "last"},
    {"include_prompt": False},
    {"granularity": "response"},
    {"granularity": "token"},
    {"boundary_token": "<END>"},
    {"segmenter": {"name": "newline"}},
    {"segmenter": {"name": "punkt", "min_chars": 12, "max_chars": 16}},
]


def pieces(text: str, size: int) -> Iterable[str]:
    return (text[start : start + size] for start in range(0, len(text), size))


def check_equal(scored: ScoredResponse, expected: ScoredResponse) -> None:
    assert [(one.text, one.start, one.end) for one in scored.sentences] == [(one.text, one.start, one.end) for one in expected.sentences]
    torch.testing.assert_close(numbers(scored), numbers(expected), atol=1e-4, rtol=0)


def numbers(scored: ScoredResponse) -> list[float]:
    return [scored.reward, scored.prompt_reward, *(x for one in scored.sentences for x in (one.reward, one.weight, one.weighted_reward))]


def follow(stream: RewardStream, text: str, size: int) -> list[ScoredSentence]:
    """Feeds `text` and keeps what the returned sentences say: one that begins before the end of another replaces it."""
    kept: list[ScoredSentence] = []
    for piece in pieces(text, size):
        for sentence in stream.feed(piece):
            kept = [one for one in kept if one.end <= sentence.start]
            kept.append(sentence)
        assert [one.text for one in kept][: len(stream.sentences)] == [one.text for one in stream.sentences]
    return kept


@pytest.mark.parametrize(("config", "size"), [*((config, 3) for config in CONFIGS), ({}, 1), ({}, 1000)], ids=str)
def test_equals_score(awake_model: ModelMaker, config: dict[str, Any], size: int) -> None:
    model = awake_model(**config)
    expected = model.score([PROMPT], [TEXT])[0]
    stream = model.stream(PROMPT)
    early = follow(stream, TEXT, size)
    assert 0 < len(early) < len(expected.sentences)
    # What was said while the text came is what the full forward says.
    torch.testing.assert_close([one.reward for one in early], [one.reward for one in expected.sentences[: len(early)]], atol=1e-4, rtol=0)
    assert stream.prompt_reward == pytest.approx(expected.prompt_reward, abs=1e-4)
    check_equal(stream.close(), expected)
    assert stream.close() == stream.close()


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("mistral", {"sliding_window": 5}),
        ("gemma3_text", {"head_dim": 8, "sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]}),
        ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}),
    ],
)
def test_other_backbones(
    awake_model: ModelMaker, tiny_tokenizer_dir: Path, tmp_path: Path, architecture: str, settings: dict[str, Any]
) -> None:
    model = awake_model(save_backbone(architecture, tmp_path, tiny_tokenizer_dir, **settings))
    stream = model.stream(PROMPT)
    follow(stream, TEXT, 3)
    check_equal(stream.close(), model.score([PROMPT], [TEXT])[0])


def save_backbone(architecture: str, path: Path, tokenizer_dir: Path, **settings: Any) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    torch.manual_seed(0)
    common = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    common |= {"num_key_value_heads": 2, "initializer_range": 0.2, "pad_token_id": 0}
    AutoModel.from_config(CONFIG_MAPPING[architecture](**common | settings)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def test_a_sentence_comes_when_the_word_behind_it_is_whole(model: SentenceRewardModel) -> None:
    stream = model.stream(PROMPT)
    assert stream.feed("It needs salt. Flou") == []
    assert [one.text for one in stream.feed("r alone")] == ["It needs salt. "]
    assert stream.feed(" is dull.") == []
    assert stream.reward == pytest.approx(model.score([PROMPT], ["It needs salt. "])[0].reward, abs=1e-4)
    # "Dr." ends no sentence, whatever follows; a terminator without white space waits for a few characters.
    assert [one.text for one in stream.feed(" Ask Dr. Salt now. 面包很好吃。面包需要盐和水和时间还有面粉和酵母呢")] == [
        "Flour alone is dull. ",
        "Ask Dr. Salt now. ",
        "面包很好吃。",
    ]


def test_a_piece_that_is_too_long_or_no_text_is_refused_and_changes_nothing(model: SentenceRewardModel) -> None:
    stream = model.stream(PROMPT)
    for piece, message in (
        ("warm" * 2000, "the limit is 256"),
        ("It is warm. " + "warm" * 2000, "the limit is 256"),
        (5, "takes text, got int"),
    ):
        with pytest.raises(UserError, match=message):
            stream.feed(piece)  # type: ignore[arg-type]
        assert stream.text == ""
    stream.feed("It is warm.")
    assert stream.close().reward == pytest.approx(model.score([PROMPT], ["It is warm."])[0].reward, abs=1e-4)


def test_long_sentences_are_scored_when_their_end_is_known(awake_model: ModelMaker) -> None:
    model = awake_model(segmenter={"name": "punkt", "max_chars": 30})
    long = "The cat sat on the mat and it was warm there and the mat was warm and the cat sat"
    stream = model.stream(PROMPT)
    assert all(stream.feed(piece) == [] for piece in pieces(long, 5))
    found = stream.feed(". It was right.")
    assert len(found) == 3
    assert "".join(one.text for one in found) == long + ". "


def test_what_later_text_changes_is_taken_back(model: SentenceRewardModel) -> None:
    stream = model.stream(PROMPT)
    # Behind a number on a line of its own the sentence begins again, until the second mark makes the line a heading.
    opening = "It is warm.\n\n**1. Bread needs"
    assert [one.text for one in stream.feed(opening)] == ["It is warm.\n\n", "**1. "]
    assert stream.feed(" salt**") == []
    assert [one.text for one in stream.sentences] == ["It is warm.\n\n"]
    assert [one.text for one in stream.feed("\n\nIt was right. No, it")] == ["**1. Bread needs salt**\n\n", "It was right. "]
    check_equal(stream.close(), model.score([PROMPT], [opening + " salt**\n\nIt was right. No, it"])[0])


def test_also_the_first_sentence_is_taken_back(model: SentenceRewardModel) -> None:
    stream = model.stream(PROMPT)
    of_prompt = stream.reward
    assert [one.text for one in stream.feed("**1. Bread needs")] == ["**1. "]
    assert stream.reward != of_prompt
    assert stream.feed(" salt**") == []
    assert stream.sentences == ()
    assert stream.reward == of_prompt
    assert stream.text == "**1. Bread needs salt**"
    check_equal(stream.close(), model.score([PROMPT], [stream.text])[0])


def test_tokens_that_change_leave_the_cache(model: SentenceRewardModel) -> None:
    stream = model.stream(PROMPT)
    stream.feed("The cat sat on the mat. It was")
    # As if the tokenizer had made other tokens of the same characters before it saw more.
    right = list(stream._ids)
    stream._advance([*right[:3], *reversed(right[3:])])
    found = stream.feed(" warm there. Is it")
    assert [one.text for one in found] == ["The cat sat on the mat. ", "It was warm there. "]
    check_equal(stream.close(), model.score([PROMPT], ["The cat sat on the mat. It was warm there. Is it"])[0])


def test_each_token_runs_once(model: SentenceRewardModel) -> None:
    model.stream(PROMPT)  # what is proved once is proved before, so that its passes are not counted
    lengths: list[int] = []
    model.backbone.register_forward_pre_hook(lambda module, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True)
    stream = model.stream(PROMPT)
    for piece in pieces(TEXT, 4):
        stream.feed(piece)
    stream.close()
    assert sum(lengths) == len(model.encoder.encode_prompt(PROMPT)) + len(model.encoder.encode_responses([TEXT])[0].ids)
    assert len(lengths) == 1 + len(stream.sentences)


def test_forks_grow_apart(model: SentenceRewardModel) -> None:
    opening, endings = "The cat sat on the mat. It was", [" warm there. Is this right", " wrong! No, it is salt"]
    stream = model.stream(PROMPT)
    stream.feed(opening)
    cached = stream._cache.layers[0].keys
    forks = [stream.fork() for _ in endings]
    assert all(fork._cache.layers[0].keys is cached for fork in forks)
    for fork, ending in zip(forks, endings, strict=True):
        for piece in pieces(ending, 3):
            fork.feed(piece)
        check_equal(fork.close(), model.score([PROMPT], [opening + ending])[0])
    assert stream.text == opening
    check_equal(stream.close(), model.score([PROMPT], [opening])[0])


def test_goes_on_after_other_calls_and_in_training(model: SentenceRewardModel) -> None:
    expected = model.score([PROMPT], [TEXT])[0]
    stream = model.stream(PROMPT)
    for piece in pieces(TEXT, 40):
        model.score([PROMPT], ["No, it is wrong!"])
        stream.feed(piece)
    assert not model.training
    check_equal(stream.close(), expected)
    for layer in model.backbone.layers:
        layer.self_attn.attention_dropout = 0.5
    model.train()
    with model.stream(PROMPT) as stream:
        stream.feed(TEXT)
    with pytest.raises(ValueError, match="`feed` on a closed stream"):
        stream.feed("x")
    assert model.training
    check_equal(stream.close(), expected)


def test_limits(model: SentenceRewardModel) -> None:
    prompt_length = len(model.encoder.encode_prompt(PROMPT))
    opening = "The cat sat on the mat. It was"
    length = prompt_length + len(model.encoder.encode_responses([opening])[0].ids)
    stream = model.stream(PROMPT, max_length=length)
    stream.feed(opening)
    with pytest.raises(UserError, match=f"tokens, the limit is {length}"):
        stream.feed(" warm there. Is this")
    # The call that failed left nothing behind.
    check_equal(stream.close(), model.score([PROMPT], [opening])[0])
    with pytest.raises(UserError, match=f"are {prompt_length} tokens, the limit is 3"):
        model.stream(PROMPT, max_length=3)
    with pytest.raises(UserError, match="the limit is 256"):
        model.stream("bread " * 300)


def test_closed_and_empty_streams(model: SentenceRewardModel) -> None:
    stream = model.stream(PROMPT)
    assert (stream.sentences, stream.text) == ((), "")
    assert stream.feed("") == stream.feed(" \n") == []
    with pytest.raises(UserError, match="the response is empty"):
        stream.close()
    stream.feed("No.")
    stream.close()
    for call in (lambda: stream.feed("x"), stream.fork):
        with pytest.raises(ValueError, match="on a closed stream"):
            call()
    error = RuntimeError("the policy failed")
    with pytest.raises(RuntimeError, match="the policy failed"), model.stream(PROMPT) as broken:
        raise error
    with pytest.raises(ValueError, match="on a closed stream"):
        broken.feed("x")


def test_backbones_that_cannot_stream(tiny_tokenizer_dir: Path, tmp_path: Path, model: SentenceRewardModel) -> None:
    stateful = SentenceRewardModel.from_backbone(save_backbone("mamba", tmp_path, tiny_tokenizer_dir))
    with pytest.raises(UserError, match="MambaModel keeps a running state"):
        stateful.stream(PROMPT)
    layers = {"lfm2": ["conv", "full_attention"], "minimax": ["full_attention", "linear_attention"]}
    for kind, said in (("lfm2", "Lfm2Model does not run on a cache"), ("minimax", "MiniMaxModel does not run on a cache")):
        backbone = save_backbone(kind, tmp_path / kind, tiny_tokenizer_dir, layer_types=layers[kind])
        hybrid = SentenceRewardModel.from_backbone(backbone)
        assert hybrid.score([PROMPT], ["Yes."])[0].sentences
        with pytest.raises(UserError, match=said):
            hybrid.stream(PROMPT)
    plain = model.backbone.forward
    model.backbone.forward = lambda input_ids, position_ids, **cache: plain(input_ids, position_ids=position_ids)  # type: ignore[method-assign]
    with pytest.raises(UserError, match="does not keep its keys and values"):
        model.stream(PROMPT)


def test_a_layer_that_mixes_tokens_beside_the_cache_is_found(model: SentenceRewardModel) -> None:
    """A convolution whose last inputs are in no cache: the keys and values are all there, and the states are wrong."""

    def convolve(module: torch.nn.Module, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return output + torch.nn.functional.pad(output, (0, 0, 1, 0))[:, :-1]

    hook = model.backbone.layers[0].mlp.register_forward_hook(convolve)
    assert model.score([PROMPT], ["Yes."], packing="none")[0].sentences
    with pytest.raises(UserError, match="LlamaModel goes on from its cache with other states"):
        model.stream(PROMPT)
    hook.remove()
    assert model.stream(PROMPT).prompt_reward
