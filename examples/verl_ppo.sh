#!/usr/bin/env bash
# verl's PPO with the rewards of a sentence-level reward model:
#
#   srm-serve --model out/rm --port 8000
#   bash examples/verl_ppo.sh trainer.n_gpus_per_node=4
#
# Settings are those of examples/verl_ppo.yaml; what is typed behind the command goes to verl and counts. REWARD_URL, POLICY and DATASET, a name
# on the Hub or a JSONL file, choose the server, the policy and the prompts; PROMPTS is a folder that examples/prompts.py has written already.
# Needs `pip install 'verl[vllm]' 'srm-kernels[srm,client]'`.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
policy=${POLICY:-Qwen/Qwen2.5-1.5B-Instruct}
prompts=${PROMPTS:-outputs/prompts}

[ -n "${PROMPTS:-}" ] || python "$here/prompts.py" --dataset "${DATASET:-trl-lib/ultrafeedback-prompt}" --output "$prompts"

exec python -m verl.trainer.main_ppo --config-dir "$here" --config-name verl_ppo \
    reward.reward_kwargs.url="${REWARD_URL:-http://localhost:8000}" \
    actor_rollout_ref.model.path="$policy" \
    critic.model.path="$policy" \
    data.train_files="$prompts/train.jsonl" \
    data.val_files="$prompts/test.jsonl" \
    "$@"
