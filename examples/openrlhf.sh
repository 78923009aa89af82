#!/usr/bin/env bash
# OpenRLHF's REINFORCE++ baseline with the rewards of a sentence-level reward model:
#
#   srm-serve --model out/rm --port 8000
#   bash examples/openrlhf.sh --actor.num_gpus_per_node 4 --ref.num_gpus_per_node 4 --vllm.num_engines 4
#
# What is typed behind the command goes to OpenRLHF and counts. REWARD_URL, POLICY and DATASET, a name on the Hub or a JSONL file whose rows have
# a `prompt`, choose the server, the policy and the prompts. Needs `pip install 'openrlhf[vllm]'` here, and 'srm-kernels[serve]' where the server is.
set -euo pipefail

exec python -m openrlhf.cli.train_ppo_ray \
    --reward.remote_url "${REWARD_URL:-http://localhost:8000}/get_reward" \
    --actor.model_name_or_path "${POLICY:-Qwen/Qwen2.5-1.5B-Instruct}" \
    --data.prompt_dataset "${DATASET:-trl-lib/ultrafeedback-prompt}" \
    --data.input_key prompt \
    --data.apply_chat_template \
    --data.max_len 2048 \
    --rollout.max_new_tokens 1024 \
    --rollout.batch_size 128 \
    --rollout.n_samples_per_prompt 8 \
    --train.batch_size 128 \
    --algo.advantage.estimator reinforce_baseline \
    --algo.kl.use_loss \
    --algo.kl.estimator k2 \
    --algo.kl.init_coef 1e-3 \
    --actor.adam.lr 5e-7 \
    --actor.num_gpus_per_node 8 \
    --ref.num_gpus_per_node 8 \
    --vllm.num_engines 8 \
    --vllm.tensor_parallel_size 1 \
    --vllm.enable_sleep \
    --vllm.gpu_memory_utilization 0.6 \
    --vllm.sync_backend nccl \
    --train.colocate_all \
    --ds.enable_sleep \
    --ds.zero_stage 3 \
    --ds.param_dtype bf16 \
    --actor.gradient_checkpointing_enable \
    --ckpt.output_dir outputs/openrlhf \
    "$@"
