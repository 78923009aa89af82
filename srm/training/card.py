"""The model card: what a saved reward model is, what it was trained on and how, and three lines that use it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from srm.training.saving import AtomicSavingTrainer

__all__ = ["model_card"]

_CARD = """---
{front}---

# {title}

A sentence-level reward model ([arXiv 2503.04793](https://arxiv.org/abs/2503.04793)): it scores a response and each of its sentences.

```python
from srm import SentenceRewardModel  # pip install 'srm-kernels[srm]'

model = SentenceRewardModel.from_pretrained({name!r})
print(model.score(["Where is Paris?"], ["It is in France. You should know that."])[0])
```

After `import srm`, `transformers.AutoModel` loads it too; it needs no `trust_remote_code`.

| | |
|---|---|
{rows}
"""


def model_card(trainer: AtomicSavingTrainer) -> str:
    """The text of README.md for the model that `trainer` has trained."""
    args, config, base, data = trainer.args, trainer.reward_model.config, trainer.reward_model.name_or_path or "", trainer.data_name
    is_local = Path(base).exists()
    front: dict[str, Any] = {"tags": ["reward-model", "sentence-level", "srm"], "library_name": "srm"}
    if base and not is_local:
        front["base_model"] = base
    name = args.hub_model_id or Path(args.output_dir).name
    evaluated = next((log for log in reversed(trainer.state.log_history) if "eval_accuracy" in log), {})
    said = {
        "base model": Path(base).name if is_local else base,
        # The name alone of what lies on this machine: the card may go to the hub.
        "training data": data and (Path(data).name if Path(data).exists() else data),
        "rows": None if trainer.train_dataset is None else len(trainer.train_dataset),  # type: ignore[arg-type]  # a sequence of ours
        "granularity, pooling": f"{config.granularity}, {config.head_arguments()['pooling']}",
        "segmenter": config.segmenter["name"],
        "epochs, or steps": args.num_train_epochs if args.max_steps <= 0 else f"{args.max_steps} steps",
        "rows a step": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
        "learning rate": f"{args.learning_rate:g}, head {args.resolved_head_learning_rate:g}, attention {args.attention_learning_rate:g}",
        "max_length": args.max_length,
        "seed": args.seed,
        **{f"evaluation: {name}": f"{evaluated[f'eval_{name}']:.4g}" for name in ("accuracy", "loss", "margin") if evaluated},
    }
    rows = "\n".join(f"| {key} | {_cell(value)} |" for key, value in said.items() if value not in (None, ""))
    return _CARD.format(front=yaml.safe_dump(front, sort_keys=False), title=_cell(name), name=name, rows=rows)


def _cell(value: object) -> str:
    """As text that stays inside its cell."""
    return " ".join(str(value).replace("|", "\\|").split())
