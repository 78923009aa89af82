"""Runs: policies that start from an imitation of the generator and learn from one source of rewards, watched by the oracle.

Shape letters: `B` responses, `L` width of the padded responses.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from research.world.grammar import Facts, Verdict, draw_facts, outcome
from research.world.policy import Speech, write
from research.world.rewards import SOURCES, Oracle, Scorer, texts_of
from srm.data.synthetic.draw import Draw
from srm.rl import RewardKind, group_advantages, leave_one_out, padded_gae, rewards_to_go, sentence_rewards, token_level_rewards, whiten
from srm.rl.losses import clipped_policy_loss, clipped_value_loss, reference_kl, reinforce_loss
from srm.rl.policy import Policy, Responses, TokenStats
from srm.scoring.token_ids import ScoredTokens

__all__ = ["Algorithm", "Cell", "Learner", "Plan", "advantages_of", "run", "step_advantages"]

Algorithm = Literal["grpo", "reinforce", "ppo"]
# The longest good answer has 12 sentences of 5 tokens and the end; one of 6 tokens each just fits.
MAX_TOKENS = 73


@dataclass(frozen=True)
class Plan:
    """What all runs share.

    Attributes:
        steps: of a run.
        prompts, num_generations: of a step; a prompt is drawn anew each time.
        watch_every: steps from one look at KL, faults and length to the next.
        max_grad_norm, lam, ppo_epochs, cliprange, vf_coef: as in `srm-rl`.
    """

    steps: int = 40
    prompts: int = 8
    num_generations: int = 4
    watch_every: int = 5
    max_grad_norm: float = 1.0
    lam: float = 0.95
    ppo_epochs: int = 4
    cliprange: float = 0.2
    vf_coef: float = 0.1


@dataclass(frozen=True)
class Cell:
    """What a policy learns from, and how; a run is a cell and a seed.

    Attributes:
        source: of `SOURCES`.
        algorithm: `reinforce` and `ppo` are those of `srm-rl`, `grpo` is `group_advantages`.
        rate: the policy's learning rate.
        options: of `group_advantages` (grpo) or `token_level_rewards` (the others), where not the default. With grpo `baseline="steps"` is
            `step_advantages`, and `kl_estimator` that of `reference_kl`.
        kl_coef: price of one nat of KL from the start, in the reward or, with grpo, in the loss.
    """

    source: str
    algorithm: Algorithm
    rate: float
    options: Mapping[str, Any] = field(default_factory=dict)
    kl_coef: float = 0.0

    @property
    def name(self) -> str:
        """All but the learning rate."""
        options = {**self.options, **({"kl": f"{self.kl_coef:g}"} if self.kl_coef else {})}
        return "-".join([self.algorithm, self.source, *(f"{name}_{value}" for name, value in options.items())])


class Learner:
    """One run: a policy that starts as a copy of `start`, its optimizer and its curves.

    Args:
        scorer: of the source's reward model; None for the oracle's rewards.
    """

    def __init__(self, cell: Cell, seed: int, plan: Plan, *, start: LlamaForCausalLM, speech: Speech, scorer: Scorer | None) -> None:
        self.cell, self.seed, self.plan, self.speech, self.scorer = cell, seed, plan, speech, scorer
        self.draw, self.generator = Draw("world", "train", seed), torch.Generator().manual_seed(seed)
        self.oracle = Oracle(speech)
        is_ppo = cell.algorithm == "ppo"
        self.policy = Policy(copy.deepcopy(start), value_head=is_ppo, packing="shared").eval()
        groups: list[dict[str, Any]] = [{"params": list(self.policy.model.parameters()), "lr": cell.rate}]
        if self.policy.value_head is not None:
            groups.append({"params": list(self.policy.value_head.parameters()), "lr": 10 * cell.rate})
        self.optimizer = torch.optim.AdamW(groups, weight_decay=0.0, fused=True)
        self.scores: list[float] = []
        self.watched: list[dict[str, float]] = []
        self.facts: list[Facts] = []

    def ask(self) -> list[list[int]]:
        """Prompts of the next step."""
        self.facts = [draw_facts(self.draw) for _ in range(self.plan.prompts)]
        return [self.speech.prompt(of) for of in self.facts]

    def learn(self, responses: Responses, prompts: Sequence[Sequence[int]], reference: Policy) -> None:
        """One step, from responses to the prompts of `ask`. Their score is of a policy that has not learned from them yet."""
        count = self.plan.num_generations
        facts = [of for of in self.facts for _ in range(count)]
        score = self.scorer or self.oracle.scorer(facts)
        scored = score([prompt for prompt in prompts for _ in range(count)], responses)
        stats = self.policy(responses, 1.0)
        judged = [self.oracle.verdicts(of, ids) for of, ids in zip(facts, texts_of(responses), strict=True)]
        self.scores.append(statistics.fmean(outcome(of, verdicts) for of, verdicts in zip(facts, judged, strict=True)))
        is_watched = len(self.scores) % self.plan.watch_every == 0
        if is_watched or self.cell.kl_coef:
            with torch.no_grad():
                ref_logprobs = reference(responses, 1.0).logprobs
        else:
            ref_logprobs = stats.logprobs.detach()
        if is_watched:
            self.watched.append(_watched(responses, stats, ref_logprobs, facts, judged, scored))
        _update(self.policy, self.optimizer, responses, stats, ref_logprobs, scored, self.cell, self.plan)

    def record(self) -> dict[str, Any]:
        """What the study keeps. `responses` and `score` have an entry a step, the other curves one each `watch_every` steps."""
        size = self.plan.prompts * self.plan.num_generations
        rounded = {name: [round(point[name], 4) for point in self.watched] for name in self.watched[0]}
        return {
            "cell": self.cell.name,
            **asdict(self.cell),
            "seed": self.seed,
            "responses": [size * (step + 1) for step in range(len(self.scores))],
            "score": [round(score, 4) for score in self.scores],
            **rounded,
        }


def run(
    cell: Cell, seeds: Sequence[int], plan: Plan, *, start: LlamaForCausalLM, speech: Speech, scorers: Sequence[Scorer | None]
) -> list[dict[str, Any]]:
    """A run a seed, side by side because small models write faster together. Returns a record each, see `Learner.record`."""
    learners = [Learner(cell, seed, plan, start=start, speech=speech, scorer=of) for seed, of in zip(seeds, scorers, strict=True)]
    reference = Policy(copy.deepcopy(start), packing="shared").eval()
    for _ in range(plan.steps):
        prompts = [learner.ask() for learner in learners]
        written = write(
            [learner.policy.model for learner in learners],  # type: ignore[misc]  # a Policy's model is what it was given
            prompts,
            [learner.generator for learner in learners],
            num_generations=plan.num_generations,
            max_tokens=MAX_TOKENS,
            end=speech.end,
        )
        for learner, asked, responses in zip(learners, prompts, written, strict=True):
            learner.learn(responses, asked, reference)
    return [learner.record() for learner in learners]


@torch.no_grad()
def _watched(
    responses: Responses,
    stats: TokenStats,
    ref_logprobs: Tensor,
    facts: Sequence[Facts],
    judged: Sequence[Sequence[Verdict]],
    scored: ScoredTokens,
) -> dict[str, float]:
    """Of one step's responses: KL from the start in nats a response, entropy in nats a token, shares of faulty and of garbled sentences,
    sentences written and facts asked for, and the reward that the policy learns from."""
    kinds = [verdict for verdicts in judged for verdict in verdicts]
    kl = torch.where(responses.mask, stats.logprobs - ref_logprobs, 0).sum(1)
    return {
        "kl": float(kl.mean()),
        "entropy": float(stats.entropy[responses.mask].mean()),
        "faults": sum(verdict != "good" for verdict in kinds) / max(1, len(kinds)),
        "garbage": kinds.count("garbage") / max(1, len(kinds)),
        "sentences": len(kinds) / len(facts),
        "asked": statistics.fmean(map(len, facts)),
        "reward": float(scored.reward.mean()),
    }


def advantages_of(
    scored: ScoredTokens, responses: Responses, stats: TokenStats, ref_logprobs: Tensor, cell: Cell, plan: Plan
) -> tuple[Tensor, Tensor]:
    """Advantages and returns, [B, L] each, with the functions of `srm.rl` and the defaults of `srm-rl`; only `ppo` uses the returns.

    stats: of the policy that wrote the responses, without gradient.
    """
    source = SOURCES[cell.source]
    mask, options = responses.mask, dict(cell.options)
    if cell.algorithm == "grpo":
        options.pop("kl_estimator", None)
        group = torch.arange(plan.prompts).repeat_interleave(plan.num_generations)
        if options.pop("baseline", None) == "steps":
            advantages = step_advantages(scored, mask, plan.num_generations, kind=source.kind)
        else:
            advantages = group_advantages(scored, group, level=source.level, kind=source.kind, mask=mask, **options)  # type: ignore[arg-type]
        return advantages, torch.zeros_like(advantages)
    is_dense = source.level == "sentence"
    paid = scored if is_dense else replace(scored, sentence_reward=torch.zeros_like(scored.sentence_reward))
    penalty = {"logprobs": stats.logprobs, "ref_logprobs": ref_logprobs, "kl_coef": cell.kl_coef}
    rewards = token_level_rewards(paid, kind=source.kind, mask=mask, **penalty, **options)  # type: ignore[arg-type]
    if not is_dense:
        # On the last token, the end where there is one, as `srm-rl --reward response` does.
        rewards = rewards.scatter_add(1, mask.sum(1, keepdim=True) - 1, scored.reward[:, None])
    if cell.algorithm == "ppo":
        advantages, returns = padded_gae(rewards, stats.value, mask, lam=plan.lam)
    else:
        advantages = leave_one_out(rewards, mask, plan.num_generations)
        returns = torch.zeros_like(advantages)
    return whiten(advantages, mask), returns


def step_advantages(scored: ScoredTokens, mask: Tensor, num_generations: int, *, kind: RewardKind) -> Tensor:
    """[B, L]: process supervision as published (arXiv 2402.03300, section 4.1.3), which `group_advantages` is measured against.

    The rewards of all sentences of a group are normalised together, and a token has the sum of its own sentence's and the later ones'.
    The end token counts to the last sentence.
    """
    paid, kept = sentence_rewards(scored, kind), scored.is_sentence
    normal = torch.zeros_like(paid)
    for rows in torch.arange(len(mask)).split(num_generations):
        chosen = kept & torch.isin(scored.response_index, rows)
        part = paid[chosen]
        normal[chosen] = (part - part.mean()) / part.std().clamp(min=1e-6) if len(part) > 1 else 0.0
    going, advantages = rewards_to_go(normal, scored), torch.zeros(mask.shape)
    for row, (first, last) in enumerate(scored.cu_boundaries.unfold(0, 2, 1).tolist()):
        ends, to_go = scored.ends[first + 1 : last], going[first + 1 : last]
        if len(ends):
            advantages[row] = to_go[torch.searchsorted(ends, torch.arange(mask.shape[1])).clamp(max=len(ends) - 1)]
    return advantages * mask


def _update(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    responses: Responses,
    stats: TokenStats,
    ref_logprobs: Tensor,
    scored: ScoredTokens,
    cell: Cell,
    plan: Plan,
) -> None:
    """One update; with ppo one an epoch. `stats`, with their gradient, serve the first."""
    old = TokenStats(*(part.detach() for part in stats))
    advantages, returns = advantages_of(scored, responses, old, ref_logprobs, cell, plan)
    mask = responses.mask
    for epoch in range(plan.ppo_epochs if cell.algorithm == "ppo" else 1):
        now = stats if epoch == 0 else policy(responses, 1.0)
        if cell.algorithm == "ppo":
            loss, _ = clipped_policy_loss(now.logprobs, old.logprobs, advantages, mask, cliprange=plan.cliprange)
            loss = loss + plan.vf_coef * clipped_value_loss(now.value, old.value, returns, mask, cliprange=plan.cliprange)
        else:
            # A single update: the ratio of GRPO's clipped objective is 1, and this is its gradient.
            loss = reinforce_loss(now.logprobs, advantages, mask)
        if cell.algorithm == "grpo" and cell.kl_coef:
            loss = loss + cell.kl_coef * reference_kl(now.logprobs, ref_logprobs, mask, cell.options.get("kl_estimator", "k2"))
        (loss / mask.sum()).backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), plan.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
