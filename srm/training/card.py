"""What a run's model card says of its training."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from srm.modeling.card import without_place

if TYPE_CHECKING:
    from srm.training.saving import AtomicSavingTrainer

__all__ = ["training_facts"]

_EVALUATED = ("accuracy", "loss", "margin")


def training_facts(trainer: AtomicSavingTrainer) -> list[tuple[str, Any]]:
    """Base, data, recipe and evaluation of the model that `trainer` has trained, as its configuration keeps them."""
    args, state = trainer.args, trainer.state
    logged = [item for log in state.log_history for item in log.items()]
    # The last of each name: that of the model as it was left. With several evaluation sets, names have the set's in them.
    evaluated = {key: value for key, value in logged if key.startswith("eval_") and key.endswith(_EVALUATED)}
    evaluation = {f"evaluation: {key.removeprefix('eval_')}": f"{value:.4g}" for key, value in evaluated.items()}
    if trainer.is_idle and (config := trainer.resumed_from / "config.json").is_file():
        # Nothing was trained since, so the settings of today say nothing of these weights.
        facts = {**dict(json.loads(config.read_text(encoding="utf-8")).get("training", [])), **evaluation}
        return list(facts.items())
    facts = {
        "base model": without_place(trainer.reward_model.name_or_path or ""),
        "training data": without_place(trainer.data_name or ""),
        "before a resume": "; ".join(trainer.earlier_data),
        "rows": None if trainer.train_dataset is None else len(trainer.train_dataset),  # type: ignore[arg-type]  # a sequence of ours
        "steps": state.global_step,
        "epochs": f"{state.epoch:.4g}" if state.epoch else None,
        "rows a step": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
        "learning rate": f"{args.learning_rate:g}, head {args.resolved_head_learning_rate:g}, attention {args.attention_learning_rate:g}",
        "max_length": args.max_length,
        "seed": args.seed,
        **evaluation,
    }
    return [(name, value) for name, value in facts.items() if value not in (None, "")]
