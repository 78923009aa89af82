"""What `srm-train --help` shows, in which order. `--help_all` shows the rest, too."""

from __future__ import annotations

__all__ = ["BRIEFS", "SECTIONS"]

SECTIONS = {
    "what is trained, and on what": (
        *("model_name_or_path", "init_value_from", "dataset_name", "output_dir", "config"),
        *("eval_dataset_name", "datasets", "test_split_size", "dataset_train_split", "dataset_test_split", "dataset_config"),
        *("dataset_streaming", "max_pairs", "max_eval_pairs", "max_length", "overlong", "skip_bad_rows"),
    ),
    "method": (
        *("granularity", "pooling", "rope_theta", "include_prompt", "difference", "boundary_token", "attention_size", "head_init"),
        *("segmenter", "segmenter_config", "mean_value_coefficient", "sentence_reward_l2", "center_rewards_coefficient"),
        "label_smoothing_factor",
    ),
    "backbone": (
        *("dtype", "model_revision", "trust_remote_code", "attn_implementation", "model_init_kwargs"),
        *("chat_template_path", "eos_token", "pad_token", "disable_dropout"),
    ),
    "packing and batches": (
        *("packing", "last_layer_rows", "tokens_per_batch", "per_device_train_batch_size", "gradient_accumulation_steps"),
        *("gradient_checkpointing", "activation_offloading"),
    ),
    "LoRA": (
        *("use_peft", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules"),
        *("lora_modules_to_save", "use_rslora", "use_dora", "load_in_4bit", "load_in_8bit"),
    ),
    "training": (
        *("learning_rate", "head_learning_rate", "attention_learning_rate", "num_train_epochs", "max_steps"),
        *("warmup_steps", "bf16", "seed"),
    ),
    "the run": (
        *("resume_from_checkpoint", "overwrite_output_dir", "logging_steps", "save_steps", "eval_strategy", "eval_steps"),
        *("early_stopping_patience", "report_to"),
    ),
}

# transformers' own texts are long.
BRIEFS = {
    "per_device_train_batch_size": "Rows of a forward pass on each device.",
    "gradient_accumulation_steps": "Such passes for one step.",
    "gradient_checkpointing": "Less memory, more time.",
    "max_steps": "Steps in all [as --num_train_epochs says]",
    "warmup_steps": "Steps, or share of them, in which rates rise.",
    "seed": "Of the head's start and the order of rows.",
    "resume_from_checkpoint": "Go on from the last checkpoint, or this one.",
    "save_steps": "Write a checkpoint every N steps.",
    "eval_strategy": "When to evaluate, beside the end.",
    "eval_steps": "Every N steps [as logging_steps]",
    "report_to": "Such as tensorboard or wandb.",
}
