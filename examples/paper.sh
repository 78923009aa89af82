#!/usr/bin/env bash
# The authors' recipe: fine-tune a base model on the chosen answers with TRL, then train the reward model on it.
#
#   pip install 'srm-kernels[trl]'
#   bash examples/paper.sh pairs.jsonl --bf16
#
# PAIRS are what srm-train takes. BASE and OUTPUT choose the base model and the folder. What is typed behind PAIRS goes to both commands: the
# settings of the two steps are for one GPU, on four add `--num_processes 4 --gradient_accumulation_steps 8`. Run it from the repository's root.
# The reward model's settings, and what differs from the authors' code, are in examples/configs/paper.yaml. Then, for the policy:
#
#   srm-rl --config examples/rl/paper.yaml --dataset_name prompts.jsonl
set -euo pipefail

PAIRS="${1:?bash examples/paper.sh PAIRS}"
shift
BASE="${BASE:-meta-llama/Llama-3.1-8B}"
OUTPUT="${OUTPUT:-outputs/paper}"

python examples/chosen_answers.py "$PAIRS" "$OUTPUT/chosen/train.jsonl"

trl sft \
    --model_name_or_path "$BASE" \
    --dataset_name "$OUTPUT/chosen" \
    --output_dir "$OUTPUT/sft" \
    --chat_template_path examples/configs/paper.jinja \
    --learning_rate 3e-6 \
    --weight_decay 0.2 \
    --lr_scheduler_type cosine \
    --num_train_epochs 1 \
    --per_device_train_batch_size 8 \
    --gradient_accumulation_steps 32 \
    --max_length 1024 \
    --seed 1234 \
    --save_strategy no \
    --report_to none \
    "$@"

srm-train \
    --config examples/configs/paper.yaml \
    --model_name_or_path "$OUTPUT/sft" \
    --dataset_name "$PAIRS" \
    --output_dir "$OUTPUT/reward" \
    "$@"
