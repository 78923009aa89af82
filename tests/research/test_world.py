"""research/world: the oracle on texts made by hand, the generator's rates, rewards on tokens, and a study of seconds that goes on."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from research.world import __main__ as world
from research.world.grammar import FAULTS, OFF_TOPIC, RATES, RUDE, VALUES, draw_answer, draw_facts, judge, outcome
from research.world.policy import Speech, write
from research.world.rewards import Oracle, labelled_pairs
from research.world.summary import bootstrap, compare, responses_to, summarise
from research.world.train import Cell, Plan, advantages_of, step_advantages
from srm.data.synthetic.draw import Draw
from srm.rl.policy import Policy, Responses, TokenStats, mark
from srm.segmentation import make_segmenter

FACTS = {"city": "Rome", "pet": "dog", "drink": "tea", "job": "cook"}


def words(text: str) -> list[tuple[str, ...]]:
    return [(*sentence.split(), ".") for sentence in text.rstrip(".").split(". ")]


@pytest.mark.parametrize(
    ("text", "verdicts"),
    [
        ("The city is Rome. The pet is dog.", ["good", "good"]),
        ("The city is Oslo. The city is Rome.", ["wrong_fact", "good"]),
        ("The city is not Rome. The city is not Oslo.", ["contradiction", "off_topic"]),
        ("The city is Rome. The city is Rome. The city is Oslo. The city is Oslo.", ["good", "repetition", "wrong_fact", "repetition"]),
        # Right, but nobody asked; a value of something else; no sentence of this world.
        ("The metal is iron. The city is dog. The city Rome. Rome", ["off_topic", "garbage", "garbage", "garbage"]),
        ("The moon is round. You are a fool. The moon is round.", ["off_topic", "rudeness", "repetition"]),
    ],
)
def test_the_oracle_knows_every_fault(text: str, verdicts: list[str]) -> None:
    assert judge(FACTS, words(text)) == verdicts


def test_no_length_beats_the_right_one() -> None:
    perfect = [("The", name, "is", value, ".") for name, value in FACTS.items()]
    assert outcome(FACTS, judge(FACTS, perfect)) == 1
    assert outcome(FACTS, []) == 0
    assert outcome(FACTS, judge(FACTS, perfect[:3])) == 0.75
    assert outcome(FACTS, judge(FACTS, [*perfect, perfect[0]])) == 0.75
    assert outcome(FACTS, judge(FACTS, perfect * 3)) == -1


def test_the_generator_keeps_its_rates_and_says_what_the_oracle_says() -> None:
    draw = Draw("test")
    after: dict[str, Counter[bool]] = {"good": Counter(), "fault": Counter()}
    kinds: Counter[str] = Counter()
    for _ in range(3000):
        facts = draw_facts(draw)
        assert 6 <= len(facts) <= 12
        answer = draw_answer(facts, draw)
        verdicts = answer.verdicts
        assert judge(facts, answer.sentences) == list(verdicts)
        kinds.update(verdict for verdict in verdicts if verdict != "good")
        # The sentence that may follow at the end is always a fault.
        for before, now in zip(("good", *verdicts), verdicts[: len(facts) - 3], strict=False):
            after["good" if before == "good" else "fault"][now != "good"] += 1
    for state, rate in (("good", RATES["fault after a good sentence"]), ("fault", RATES["fault after a fault"])):
        assert after[state][True] / after[state].total() == pytest.approx(rate, abs=0.02)
    assert set(kinds) == set(FAULTS)
    assert all(count / kinds.total() == pytest.approx(0.2, abs=0.06) for count in kinds.values())


def test_text_ids_and_sentences_agree() -> None:
    speech, segmenter = Speech(), make_segmenter("punkt")
    everything = [("The", name, "is", value, ".") for name, values in VALUES.items() for value in values] + [*OFF_TOPIC, *RUDE]
    draw = Draw("texts")
    for _ in range(200):
        facts = draw_facts(draw)
        answer = draw_answer(facts, draw)
        ids = speech.response(answer)
        text = speech.tokenizer.decode(ids)
        assert speech.tokenizer(text)["input_ids"] == ids
        sentences, ends = speech.sentences(ids)
        assert sentences == list(answer.sentences)
        # What the reward models cut is what the oracle judges.
        spans = segmenter.segment(text)
        assert [text[start:end].strip() for start, end in spans] == [" ".join(one[:-1]) + "." for one in sentences]
        assert len(ends) == len(spans)
        prompt = speech.prompt(facts)
        assert speech.tokenizer(speech.tokenizer.decode(prompt))["input_ids"] == prompt
    assert len({word for sentence in everything for word in sentence}) < len(speech.ids)


def small(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(Speech().ids),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


def written(models: list[LlamaForCausalLM], prompts: list[list[list[int]]], **settings: Any) -> list[Responses]:
    generators = [torch.Generator().manual_seed(7) for _ in models]
    return write(models, prompts, generators, end=Speech().end, **settings)


def test_what_it_writes_has_the_probabilities_of_the_model() -> None:
    speech, model, draw = Speech(), small(), Draw("write")
    prompt = speech.prompt(draw_facts(draw))
    # So many samples of one prompt that frequencies tell: the second token, behind the most frequent first one.
    (responses,) = written([model], [[prompt]], num_generations=4000, max_tokens=2)
    first = responses.response_ids[:, 0].mode().values
    of_first = responses.response_ids[responses.response_ids[:, 0] == first]
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([[*prompt, int(first)]])).logits[0, -1].softmax(-1)
    counted = torch.bincount(of_first[:, 1], minlength=len(expected)) / len(of_first)
    assert expected.max() > 0.05, "else any counts would do"
    assert (counted - expected).abs().max() < 1.5 / len(of_first) ** 0.5


def test_models_side_by_side_write_what_each_writes_alone() -> None:
    speech, draw = Speech(), Draw("pad")
    models = [small(0), small(1)]
    prompts = [[speech.prompt(draw_facts(draw)) for _ in range(3)] for _ in models]
    assert len({len(prompt) for of in prompts for prompt in of}) > 1
    both = written(models, prompts, num_generations=2, max_tokens=20)
    for index, model in enumerate(models):
        # One prompt at a time has no padding either. Its rows have the chances of the first rows of the generator.
        (alone,) = written([model], [prompts[index][:1]], num_generations=2, max_tokens=20)
        together = both[index]
        assert torch.equal(alone.response_ids * alone.mask, (together.response_ids * together.mask)[:2, : alone.mask.shape[1]])
        marked = mark(together.ids, together.attention_mask[:, : -together.mask.shape[1]], [speech.end])
        assert all(torch.equal(a, b) for a, b in zip(together, marked, strict=True))


def test_padded_prompts_are_continued_as_the_model_does(monkeypatch: pytest.MonkeyPatch) -> None:
    speech, model, draw = Speech(), small(), Draw("greedy")
    prompts = [speech.prompt(draw_facts(draw)) for _ in range(4)]
    assert len({len(prompt) for prompt in prompts}) > 1
    # All the weight on the likeliest token.
    whole = torch.Tensor.softmax
    monkeypatch.setattr(torch.Tensor, "softmax", lambda x, dim: whole(x * 1e4 if x.shape[-1] == len(speech.ids) else x, dim))
    (together,) = written([model], [prompts], num_generations=1, max_tokens=8)
    for row, prompt in enumerate(prompts):
        ids = list(prompt)
        for token in together.response_ids[row][together.mask[row]].tolist():
            with torch.no_grad():
                assert int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()) == token
            ids.append(token)


def responses_of(speech: Speech, rows: list[list[int]]) -> Responses:
    width = max(map(len, rows)) + 1
    prompt = speech.prompt(FACTS)
    ids = torch.tensor([[*prompt, *row, *[speech.end] * (width - len(row))] for row in rows])
    return mark(ids, torch.ones(len(rows), len(prompt), dtype=torch.long), [speech.end])


def unlearned(responses: Responses) -> tuple[TokenStats, torch.Tensor]:
    """Statistics of a policy that is where it started."""
    zeros = torch.zeros(responses.mask.shape)
    return TokenStats(zeros, zeros, zeros), zeros


def test_the_oracle_pays_each_sentence_on_its_tokens() -> None:
    speech = Speech()
    texts = ["The city is Rome. You are a fool. The pet", "The city is Oslo."]
    rows = [speech.tokenizer(text)["input_ids"] for text in texts]
    scored = Oracle(speech).scorer([FACTS] * 2)([], responses_of(speech, rows))
    assert scored.to_padded(scored.sentence_reward).nonzero().tolist() == [[0, 4], [0, 9], [0, 11], [1, 4]]
    assert scored.sentence_reward.tolist() == [0, 1, -1, -1, 0, -1]
    assert scored.reward.tolist() == [-1, -1]
    assert scored.lengths.tolist() == [12, 5]


@pytest.mark.parametrize("algorithm", ["grpo", "reinforce", "ppo"])
def test_credit_goes_to_the_sentence_or_to_all(algorithm: Any) -> None:
    speech, plan = Speech(), Plan(prompts=1, num_generations=2)
    rows = [speech.tokenizer(text)["input_ids"] for text in ("The city is Rome. You are a fool.", "The city is Rome. The pet is dog.")]
    responses = responses_of(speech, rows)
    scored = Oracle(speech).scorer([FACTS] * 2)([], responses)
    stats, same = unlearned(responses)
    by_level = {
        source: advantages_of(scored, responses, stats, same, Cell(source, algorithm, 1e-3), plan)[0]
        for source in ("oracle_sentence", "oracle_response")
    }
    for advantages in by_level.values():
        assert advantages[0, 6] < advantages[1, 6], "the second sentence is rude in the first response"
    # What both began with alike is compared by what came later, and a response's reward says no more about it.
    own = advantages_of(scored, responses, stats, same, Cell("oracle_sentence", "grpo", 1e-3, {"to_go": "own"}), plan)[0]
    assert torch.equal(own[0, :5], own[1, :5])
    if algorithm == "grpo":
        assert by_level["oracle_response"][0, responses.mask[0]].unique().numel() == 1


def test_ending_early_pays_for_what_others_still_earn() -> None:
    speech = Speech()
    rows = [speech.tokenizer(text)["input_ids"] for text in ("The city is Rome.", "The city is Rome. The pet is dog. The drink is tea.")]
    responses = responses_of(speech, rows)
    scored = Oracle(speech).scorer([FACTS] * 2)([], responses)
    plan, stats = Plan(prompts=1, num_generations=2), unlearned(responses)
    found, _ = advantages_of(scored, responses, *stats, Cell("oracle_sentence", "grpo", 1e-3), plan)
    # To go: 1, 0 and 3, 2, 1, 0. Each less the mean of both at the same sentence.
    expected = torch.tensor([[-1.0] * 6 + [0.0] * 10, [1.0] * 10 + [0.5] * 5 + [0.0]])
    deviation = ((1 + 1 + 1 + 0.25) / 3) ** 0.5
    torch.testing.assert_close(found, expected / deviation)
    # Process supervision as published gives the end no price at all: every sentence is as good as the others.
    steps = Cell("oracle_sentence", "grpo", 1e-3, {"baseline": "steps"})
    assert not advantages_of(scored, responses, *stats, steps, plan)[0].any()


def test_steps_are_normalised_in_their_group() -> None:
    speech = Speech()
    rows = [speech.tokenizer(text)["input_ids"] for text in ("The city is Rome. You are a fool.", "The city is Rome.")]
    responses = responses_of(speech, rows)
    scored = Oracle(speech).scorer([FACTS] * 2)([], responses)
    found = step_advantages(scored, responses.mask, 2, kind="sentence")
    # 1, -1 and 1: less 1/3, over the deviation; from each token on their sum.
    deviation = (((2 / 3) ** 2 * 2 + (4 / 3) ** 2) / 2) ** 0.5
    expected = torch.tensor([[-2 / 3] * 5 + [-4 / 3] * 6, [2 / 3] * 6 + [0.0] * 5]) / deviation
    torch.testing.assert_close(found, expected)
    # Two groups of one have nobody to be compared with, but their own sentences.
    alone = step_advantages(scored, responses.mask, 1, kind="sentence")
    torch.testing.assert_close(alone[0, :11], torch.tensor([0.0] * 5 + [-(0.5**0.5)] * 6))
    assert not alone[1].any()


@pytest.mark.parametrize("source", ["oracle_sentence", "oracle_response"])
def test_kl_has_its_price_where_it_is(source: str) -> None:
    speech, plan = Speech(), Plan(prompts=1, num_generations=2)
    row = speech.tokenizer("The city is Rome. The pet is dog.")["input_ids"]
    responses = responses_of(speech, [row, row])
    scored = Oracle(speech).scorer([FACTS] * 2)([], responses)
    stats, same = unlearned(responses)
    # Equal rewards, and one response has moved away by 2 nats with its first token.
    moved = TokenStats(stats.logprobs.clone(), stats.entropy, stats.value)
    moved.logprobs[0, 0] = 2.0
    assert not advantages_of(scored, responses, moved, same, Cell(source, "reinforce", 1e-3), plan)[0].any()
    priced = advantages_of(scored, responses, moved, same, Cell(source, "reinforce", 1e-3, kl_coef=0.1), plan)[0]
    assert (priced[:, 0] != 0).all()
    assert priced[0, 0] < priced[1, 0]
    assert priced[:, 1:].abs().max() < 1e-5


def test_pairs_are_labelled_by_the_oracle() -> None:
    for facts, better, worse in labelled_pairs(Speech(), 50, seed="x"):
        assert outcome(facts, judge(facts, better.sentences)) > outcome(facts, judge(facts, worse.sentences))
    assert labelled_pairs(Speech(), 5, seed="x") == labelled_pairs(Speech(), 5, seed="x")


def record(cell: str, seed: int, score: list[float]) -> dict[str, Any]:
    counts = [100 * (at + 1) for at in range(len(score))]
    return {
        "cell": cell,
        "seed": seed,
        "responses": counts,
        "score": score,
        "kl": counts,
        "faults": score,
        "sentences": score,
        "asked": score,
    }


def test_responses_to_a_level_and_their_factor() -> None:
    quick, slow, never = [0.2, 0.6, 1.0], [0.2, 0.4, 1.2], [0.2, 0.2, 0.2]
    # Smooth: 0.2, 0.4, 0.6.
    assert responses_to(0.39, record("a", 0, quick)) == 200
    assert responses_to(0.1, record("a", 0, quick)) == 100
    assert responses_to(0.5, record("a", 0, never)) is None
    ours, theirs = [record("a", seed, quick) for seed in (0, 1, 2)], [record("b", 0, slow), record("b", 1, never)]
    found = compare(ours, theirs, [0.39])["responses to 0.39"]
    assert found["never"] == {"ours": 0, "theirs": 1}
    # 300 of all 300 and 300 against 200 each.
    assert (found["value"], found["low"], found["high"], found["seeds"]) == (1.5, 1.5, 1.5, 2)
    assert compare(ours, theirs, [0.9])["responses to 0.9"] == {"never": {"ours": 2, "theirs": 2}}
    assert compare(ours, theirs, [])["final score"]["value"] == pytest.approx((1.0 - 1.2 + 1.0 - 0.2) / 2)
    summary = summarise([*ours, *theirs], [0.39])
    assert summary["b"]["responses to 0.39"]["never"] == 1
    assert summary["a"]["responses to 0.39"]["value"] == 200


def test_the_interval_holds_what_seeds_vary() -> None:
    found = bootstrap([0.0, 1.0] * 20, statistics.fmean)
    assert found["value"] == 0.5
    # 1.96 standard errors of 0.5 / sqrt(40).
    assert (found["low"], found["high"]) == (pytest.approx(0.345, abs=0.04), pytest.approx(0.655, abs=0.04))


def test_a_study_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    ran: list[str] = []
    real = world.run

    def run(cell: Cell, *args: Any, **more: Any) -> list[dict[str, Any]]:
        ran.append(cell.name)
        return real(cell, *args, **more)

    def call(*flags: str) -> None:
        usual = ["--work", str(tmp_path / "work"), "--json", str(tmp_path / "world.json"), "--steps", "5"]
        monkeypatch.setattr("sys.argv", ["world", *usual, "--seeds", "1", "--pretrain_steps", "2", "--num_pairs", "8", *flags])
        world.main()

    monkeypatch.setattr(world, "run", run)
    monkeypatch.setattr("research.world.train.MAX_TOKENS", 12)
    monkeypatch.setattr(world, "RATES", {"small": (1e-3,)})
    monkeypatch.setattr(world, "TUNING_SEEDS", (1000,))
    monkeypatch.setattr(world, "REWARD_MODEL", {**world.REWARD_MODEL, "num_eval_pairs": 8, "num_train_epochs": 1})
    monkeypatch.setattr(world, "GRID", (("grpo", world.ORACLES, ({},), 0.0, 1), ("ppo", ("model_sentence", "paper"), ({},), 0.3, 1)))
    with pytest.raises(SystemExit, match="75"):
        call("--minutes", "0")
    assert ran == []
    call()
    result = json.loads((tmp_path / "world.json").read_text())
    cells = ["grpo-oracle_sentence", "grpo-oracle_response", "ppo-model_sentence-kl_0.3", "ppo-paper-kl_0.3"]
    assert [one["cell"] for one in result["runs"]] == cells
    assert all(one["responses"] == [32, 64, 96, 128, 160] and len(one["kl"]) == 1 for one in result["runs"])
    assert len(result["reward models"]["sentence"]) == 1
    assert (tmp_path / "world.png").exists()
    done = list(ran)
    call()
    assert ran == done
    with pytest.raises(SystemExit, match="other settings"):
        call("--num_pairs", "9")
    assert "grpo-oracle_sentence against grpo-oracle_response" in capsys.readouterr().out


def test_policy_without_packing_agrees() -> None:
    """The tiny Llama runs packed, which is what the study trains."""
    speech, model = Speech(), small()
    (responses,) = written([model], [[speech.prompt(FACTS)]], num_generations=3, max_tokens=7)
    packed, padded = (Policy(model, packing=mode)(responses, 1.0).logprobs for mode in ("shared", "none"))  # type: ignore[arg-type]
    torch.testing.assert_close(packed, padded, rtol=1e-4, atol=1e-5)
