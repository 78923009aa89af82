"""SkyRL's trainer with a reward for every sentence, from a running srm-serve:

    srm-serve --model out/rm --port 8000
    python examples/skyrl_grpo.py srm.url=http://localhost:8000 trainer.policy.model.path=Qwen/Qwen2.5-1.5B-Instruct \
        trainer.algorithm.advantage_estimator=srm trainer.placement.policy_num_gpus_per_node=4 generator.inference_engine.num_engines=4

Takes SkyRL's settings, and `srm.url`, `srm.token`, `srm.model` and `srm.kind`. Needs Python 3.12 and GPUs. SkyRL wants transformers below
5.9, so srm-serve runs in an environment of its own: here `pip install 'skyrl[fsdp]' httpx`, then `pip install --no-deps srm-kernels`.
Prompts come from the Hub; `data.train_data="['prompts.jsonl']"` takes your own, whose rows have a `prompt` of messages.
"""

import sys
from dataclasses import asdict, dataclass, field

import ray
from skyrl.backends.skyrl_train.inference_servers.utils import resolve_policy_model_name
from skyrl.train.config import BaseConfig, SkyRLTrainConfig
from skyrl.train.entrypoints.main_base import BasePPOExp, validate_cfg
from skyrl.train.utils import initialize_ray

from srm.integrations.skyrl import SentenceRewardGenerator

# What is typed behind the command comes after these, and counts.
DEFAULTS = (
    "data.train_data=['trl-lib/ultrafeedback-prompt:train']",
    "data.val_data=['trl-lib/ultrafeedback-prompt:test']",
    "environment.env_class=srm",
    "trainer.logger=console",
)


@dataclass
class RewardConfig(BaseConfig):
    url: str | None = None
    token: str | None = None
    model: str | None = None
    kind: str = "weighted"


@dataclass
class Config(SkyRLTrainConfig):
    srm: RewardConfig = field(default_factory=RewardConfig)


class Experiment(BasePPOExp):
    def get_generator(self, cfg, tokenizer, inference_engine_client):
        return SentenceRewardGenerator(
            cfg.generator,
            cfg.environment.skyrl_gym,
            inference_engine_client,
            tokenizer,
            resolve_policy_model_name(cfg),
            **asdict(cfg.srm),
        )


@ray.remote(num_cpus=1)
def train(cfg: Config) -> None:
    Experiment(cfg).run()


def main() -> None:
    cfg = Config.from_cli_overrides([*DEFAULTS, *sys.argv[1:]])
    validate_cfg(cfg)
    initialize_ray(cfg)
    ray.get(train.remote(cfg))


if __name__ == "__main__":
    main()
