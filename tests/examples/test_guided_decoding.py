"""examples/guided_decoding.py on tiny random models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from srm import SentenceRewardModel
from tests.example_scripts import load

PROMPT = "Where does the cat sit?"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    return load("guided_decoding")


@pytest.fixture
def reward_model(awake_model: Callable[..., SentenceRewardModel]) -> SentenceRewardModel:
    return awake_model()


class Script:
    """A policy that has learned its lines: one list of continuations a step, written a few characters at a time."""

    def __init__(self, steps: Sequence[Sequence[str]]) -> None:
        self.steps = iter(steps)
        self.answers: list[str] = []

    def write(self, answer: str, *, count: int, max_tokens: int, candidates: Sequence[Any]) -> None:
        self.answers.append(answer)
        for candidate, line in zip(candidates, next(self.steps), strict=True):
            for end in range(2, len(line) + 3, 3):
                if candidate.grow(line[:end]):
                    break


def test_every_sentence_is_the_best_of_its_candidates(example: ModuleType, reward_model: SentenceRewardModel) -> None:
    first = ["The cat sat on the mat. It was", "Is this right? No, it", "Bread needs salt. Time"]
    second = [" It was warm there. Is this", " No, it is wrong! Bread needs", ""]
    last = ["\n\nBread needs flour, water", " The mat was warm", ""]
    policy = Script([first, second, last])
    scored = example.guided(policy, reward_model.stream(PROMPT), candidates=3, sentences=5, sentence_tokens=20)

    def best(answer: str, lines: list[str]) -> str:
        """By the full forward: `answer` and the first sentence behind it with the highest reward."""
        found = []
        for line in filter(str.strip, lines):
            text = answer + line
            sentences = reward_model.score([PROMPT], [text])[0].sentences
            one = next(sentence for sentence in sentences if text[len(answer) : sentence.end].strip())
            found.append((one.reward, text[: one.end].rstrip()))
        return max(found)[1]

    one = best("", first)
    two = best(one, second)
    three = best(two, last)
    assert len({one, two, three, ""}) == 4
    assert policy.answers == ["", one, two]
    assert "".join(sentence.text for sentence in scored.sentences) == three
    assert scored.reward == pytest.approx(reward_model.score([PROMPT], [three])[0].reward, abs=1e-4)


def test_a_policy_with_nothing_to_say_ends_the_answer(example: ModuleType, reward_model: SentenceRewardModel) -> None:
    policy = Script([["It was warm there. Is"], [" \n"]])
    scored = example.guided(policy, reward_model.stream(PROMPT), candidates=1, sentences=5, sentence_tokens=20)
    assert [sentence.text for sentence in scored.sentences] == ["It was warm there."]


def test_the_command(
    example: ModuleType, reward_model: SentenceRewardModel, tiny_policy_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reward_model.save_pretrained(tmp_path / "reward")
    sizes = ["--candidates", "3", "--sentences", "2", "--sentence_tokens", "12"]
    example.main(["--reward_model", str(tmp_path / "reward"), "--policy", str(tiny_policy_dir), "--prompt", PROMPT, *sizes])
    printed = capsys.readouterr().out
    assert printed.startswith(PROMPT)
    assert [line.split(":")[0] for line in printed.splitlines() if "response reward" in line] == [
        "plain sample",
        "best of 3 at every sentence",
    ]
