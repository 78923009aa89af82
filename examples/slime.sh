#!/usr/bin/env bash
# slime's GRPO with an advantage for every sentence, inside slime's own image, where slime is /root/slime and Megatron-LM beside it:
#
#   pip install 'srm-kernels[srm,client]'
#   srm-serve --model out/rm --port 8000      # anywhere; REWARD_URL says where
#   bash examples/slime.sh
#
# POLICY is a folder with the policy, and POLICY_torch_dist beside it what slime's tools/convert_hf_to_torch_dist.py made of it; MODEL names its shape,
# one of slime's scripts/models. DATASET is a name on the Hub or a JSONL file, PROMPTS a folder that examples/prompts.py has written already.
# What is typed behind the command goes to slime and counts.
# For one reward a response, without our code in slime: --rm-type remote_rm --rm-url http://localhost:8000/remote_rm in place of the REWARD flags.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
policy=${POLICY:-/root/Qwen2.5-1.5B-Instruct}
prompts=$(realpath -m "${PROMPTS:-outputs/prompts}")

[ -n "${PROMPTS:-}" ] || python "$here/prompts.py" --dataset "${DATASET:-trl-lib/ultrafeedback-prompt}" --output "$prompts"

cd "${SLIME:-/root/slime}"
# It sets MODEL_ARGS.
source "scripts/models/${MODEL:-qwen2.5-1.5B}.sh"
export PYTHONPATH=${MEGATRON:-/root/Megatron-LM}${PYTHONPATH:+:$PYTHONPATH} CUDA_DEVICE_MAX_CONNECTIONS=1

REWARD=(
    --custom-rm-path srm.integrations.slime.reward
    --rm-url "${REWARD_URL:-http://localhost:8000}"
    --reward-key reward
    --custom-reward-post-process-path srm.integrations.slime.group_rewards
    --custom-advantage-function-path srm.integrations.slime.advantages
)

exec python train.py "${MODEL_ARGS[@]}" "${REWARD[@]}" \
    --hf-checkpoint "$policy" \
    --ref-load "${policy}_torch_dist" \
    --prompt-data "$prompts/train.jsonl" \
    --input-key prompt \
    --apply-chat-template \
    --rollout-shuffle \
    --num-rollout 200 \
    --rollout-batch-size 32 \
    --n-samples-per-prompt 8 \
    --rollout-max-response-len 1024 \
    --global-batch-size 256 \
    --advantage-estimator grpo \
    --use-kl-loss \
    --kl-loss-coef 0.001 \
    --kl-loss-type k2 \
    --lr 1e-6 \
    --lr-decay-style constant \
    --use-dynamic-batch-size \
    --max-tokens-per-gpu 9216 \
    --attention-dropout 0.0 \
    --hidden-dropout 0.0 \
    --actor-num-nodes 1 \
    --actor-num-gpus-per-node 8 \
    --rollout-num-gpus-per-engine 1 \
    --sglang-mem-fraction-static 0.7 \
    --colocate \
    "$@"
