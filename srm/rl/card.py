"""The model card of a policy: what it was trained on, how, and lines that use it."""

from __future__ import annotations

from pathlib import Path

import yaml

from srm.modeling.card import is_hub_name, table, without_place
from srm.rl.arguments import RLConfig

__all__ = ["policy_card"]

_TEXT = """---
{front}---

# {name}

A language model that srm-rl has trained on the rewards of a sentence-level reward model.

```python
from transformers import pipeline

write = pipeline("text-generation", {name!r})
print(write("Where is Paris?", max_new_tokens=20)[0]["generated_text"])
```

{rows}
"""


def policy_card(config: RLConfig) -> str:
    """The text of README.md for the policy of a run.

    Args:
        config: the run's settings.
    """
    said = {
        "base model": without_place(config.model_name_or_path),
        "reward model": without_place(config.reward_model_path),
        "prompts": without_place(config.dataset_name),
        "algorithm": config.algorithm,
        "reward": f"{config.reward}, {config.sentence_reward}" if config.reward == "sentence" else config.reward,
        **({"credit": _credit(config)} if config.reward == "sentence" else {}),
        "price of KL": f"{config.kl_coef:g}, {config.resolved_kl_estimator} in the {'loss' if config.algorithm == 'grpo' else 'reward'}",
        "steps": config.max_steps,
        "responses a step and process": config.rollout_size,
        "learning rate": f"{config.learning_rate:g}",
        "seed": config.seed,
    }
    front: dict[str, object] = {"tags": ["srm-rl"], "library_name": "transformers", "pipeline_tag": "text-generation"}
    for key, name in (("base_model", said["base model"]), ("datasets", said["prompts"])):
        if is_hub_name(name):
            front[key] = name
    return _TEXT.format(front=yaml.safe_dump(front, sort_keys=False), name=Path(config.output_dir).resolve().name, rows=table(said))


def _credit(config: RLConfig) -> str:
    placed = {"last": "on the last token", "even": "on all tokens"}[config.reward_placement]
    whitened = "" if config.whitening == "none" else f", whitening {config.whitening}"
    return f"{config.to_go} to go" + ("" if config.algorithm == "grpo" else f", {placed}{whitened}")
