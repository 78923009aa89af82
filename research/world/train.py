"""One run: a policy that starts from the generator's imitation and learns from one source of rewards, watched by the oracle.

Shape letters: `B` responses, `L` width of the padded responses.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from research.world.grammar import Facts, draw_facts, outcome
from research.world.policy import Speech, write
from research.world.rewards import SOURCES, Oracle, Scorer, Source, texts_of
from srm.data.synthetic.draw import Draw
from srm.rl import group_advantages, leave_one_out, padded_gae, token_level_rewards, whiten
from srm.rl.losses import clipped_policy_loss, clipped_value_loss, reinforce_loss
from srm.rl.policy import Policy, Responses, TokenStats
from srm.scoring.token_ids import ScoredTokens

__all__ = ["Plan", "Run", "advantages_of", "run"]

Algorithm = Literal["grpo", "reinforce", "ppo"]
# The longest good answer has 12 sentences of 5 tokens and the end; one of 6 tokens each just fits.
MAX_TOKENS = 73


@dataclass(frozen=True)
class Plan:
    """What all runs share.

    Attributes:
        steps: of a run.
        prompts, num_generations: of a step; a prompt is drawn anew each time.
        log_every: steps from one point of the curves to the next; a score is the mean of the steps between.
        max_grad_norm, lam, ppo_epochs, cliprange, vf_coef: as in `srm-rl`.
    """

    steps: int = 100
    prompts: int = 8
    num_generations: int = 4
    log_every: int = 5
    max_grad_norm: float = 1.0
    lam: float = 0.95
    ppo_epochs: int = 4
    cliprange: float = 0.2
    vf_coef: float = 0.1


@dataclass(frozen=True)
class Run:
    """source: of `SOURCES`. options: of `group_advantages` (grpo) or `token_level_rewards` (reinforce, ppo), where not the default."""

    source: str
    algorithm: Algorithm
    seed: int
    rate: float
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def cell(self) -> str:
        """All but seed and learning rate, as one word."""
        return "-".join([self.algorithm, self.source, *(f"{name}_{value}" for name, value in self.options.items())])

    @property
    def name(self) -> str:
        return f"{self.cell}-rate_{self.rate:g}-seed_{self.seed}"


def run(run: Run, plan: Plan, *, start: LlamaForCausalLM, speech: Speech, scorer: Scorer | None) -> dict[str, Any]:
    """Train a copy of `start`. scorer: of the source's reward model; None for the oracle's.

    Returns:
        `run`, the seconds it took, and curves: at each point the responses so far, the oracle's score of those since the last point (they
        are new ones to new prompts, written before the policy learns from them), KL from the start in nats a response, and more.
    """
    began, cpu = time.monotonic(), time.process_time()
    torch.manual_seed(run.seed)
    draw, oracle = Draw("world", "train", run.seed), Oracle(speech)
    policy = Policy(copy.deepcopy(start), value_head=run.algorithm == "ppo", packing="shared").eval()
    reference = Policy(start, packing="shared").eval()
    optimizer = torch.optim.AdamW(_groups(policy, run.rate), weight_decay=0.0, fused=True)
    curves: list[dict[str, float]] = []
    window: list[dict[str, float]] = []
    for step in range(1, plan.steps + 1):
        facts = [draw_facts(draw) for _ in range(plan.prompts)]
        prompts = [speech.prompt(of) for of in facts]
        responses = write(policy.model, prompts, num_generations=plan.num_generations, max_tokens=MAX_TOKENS, end=speech.end)
        each = [of for of in facts for _ in range(plan.num_generations)]
        score = scorer or oracle.scorer(each)
        scored = score([prompt for prompt in prompts for _ in range(plan.num_generations)], responses)
        window.append(_watched(oracle, each, responses, scored))
        stats = policy(responses, 1.0)
        if step % plan.log_every == 0:
            with torch.no_grad():
                kl = torch.where(responses.mask, stats.logprobs - reference(responses, 1.0).logprobs, 0).sum(1).mean()
            entropy = float(stats.entropy[responses.mask].mean())
            curves.append({"responses": step * len(each), "kl": float(kl), "entropy": entropy, **_means(window)})
            window = []
        _learn(policy, optimizer, responses, stats, scored, run, plan)
    rounded = {name: [round(point[name], 4) for point in curves] for name in curves[0]}
    return {
        **asdict(run),
        "cell": run.cell,
        "seconds": round(time.monotonic() - began, 1),
        "cpu": round(time.process_time() - cpu, 1),
        **rounded,
    }


def _groups(policy: Policy, rate: float) -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = [{"params": list(policy.model.parameters()), "lr": rate}]
    if policy.value_head is not None:
        groups.append({"params": list(policy.value_head.parameters()), "lr": 10 * rate})
    return groups


def _watched(oracle: Oracle, facts: Sequence[Facts], responses: Responses, scored: ScoredTokens) -> dict[str, float]:
    judged = [oracle.verdicts(of, ids) for of, ids in zip(facts, texts_of(responses), strict=True)]
    scores = [outcome(of, verdicts) for of, verdicts in zip(facts, judged, strict=True)]
    kinds = [verdict for verdicts in judged for verdict in verdicts]
    count = len(facts)
    return {
        "score": sum(scores) / count,
        "faults": sum(verdict != "good" for verdict in kinds) / max(1, len(kinds)),
        "garbage": kinds.count("garbage") / max(1, len(kinds)),
        "sentences": len(kinds) / count,
        "asked": sum(map(len, facts)) / count,
        "reward": float(scored.reward.mean()),
    }


def _means(window: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: sum(one[name] for one in window) / len(window) for name in window[0]}


def advantages_of(scored: ScoredTokens, responses: Responses, value: Tensor, run: Run, plan: Plan) -> tuple[Tensor, Tensor]:
    """Advantages and returns, [B, L] each, with the functions of `srm.rl` and their defaults; only `ppo` uses the returns."""
    source: Source = SOURCES[run.source]
    mask, options = responses.mask, dict(run.options)
    if run.algorithm == "grpo":
        group = torch.arange(plan.prompts).repeat_interleave(plan.num_generations)
        advantages = group_advantages(scored, group, level=source.level, kind=source.kind, mask=mask, **options)  # type: ignore[arg-type]
        return advantages, torch.zeros_like(advantages)
    if source.level == "sentence":
        rewards = token_level_rewards(scored, kind=source.kind, mask=mask, **options)  # type: ignore[arg-type]
    else:
        # On the last token, the end where there is one, as `srm-rl --reward response` does.
        rewards = torch.zeros(mask.shape).scatter(1, mask.sum(1, keepdim=True) - 1, scored.reward[:, None])
    if run.algorithm == "ppo":
        advantages, returns = padded_gae(rewards, value, mask, lam=plan.lam)
    else:
        advantages = leave_one_out(rewards, mask, plan.num_generations)
        returns = torch.zeros_like(advantages)
    return whiten(advantages, mask), returns


def _learn(
    policy: Policy, optimizer: torch.optim.Optimizer, responses: Responses, stats: TokenStats, scored: ScoredTokens, run: Run, plan: Plan
) -> None:
    """One update; with ppo one an epoch. `stats`, with their gradient, serve the first."""
    old = TokenStats(*(part.detach() for part in stats))
    advantages, returns = advantages_of(scored, responses, old.value, run, plan)
    mask = responses.mask
    for epoch in range(plan.ppo_epochs if run.algorithm == "ppo" else 1):
        now = stats if epoch == 0 else policy(responses, 1.0)
        if run.algorithm == "ppo":
            loss, _ = clipped_policy_loss(now.logprobs, old.logprobs, advantages, mask, cliprange=plan.cliprange)
            loss = loss + plan.vf_coef * clipped_value_loss(now.value, old.value, returns, mask, cliprange=plan.cliprange)
        else:
            # A single update: the ratio of GRPO's clipped objective is 1, and this is its gradient.
            loss = reinforce_loss(now.logprobs, advantages, mask)
        (loss / mask.sum()).backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), plan.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
