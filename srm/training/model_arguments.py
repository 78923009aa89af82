"""Settings of `srm-train` that say which model is trained, and what of it: under the names of `trl reward` where it has them."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Literal

from srm.data.schema import Granularity
from srm.errors import UserError
from srm.extras import way_to_install
from srm.runs.limits import check_limits
from srm.runs.settings import json_value, setting
from srm_kernels import Pooling

__all__ = ["PLACED_BY_TRAINER", "ModelArguments"]

# Arguments of from_pretrained that say where a model's weights are put, which Trainer does.
PLACED_BY_TRAINER = ("device_map", "max_memory", "tp_plan")

# The fields of ModelArguments that go into SentenceRewardConfig as they are.
_VARIANT_FIELDS = ("granularity", "pooling", "rope_theta", "include_prompt", "difference", "boundary_token", "attention_size")


@dataclass(kw_only=True)
class ModelArguments:
    """Which model is trained, and as which variant of the method (docs/method.md)."""

    model_name_or_path: str | None = setting(None, "Decoder, or reward model: hub name or folder.")
    init_value_from: str | None = setting(None, "Reward model to start from, its score too: hub name or folder.")
    head_init: Literal["zero", "linear"] = setting("zero", "Start of the head: zero, or torch's random linear layers.")
    model_revision: str = setting("main", "Branch, tag or commit on the hub.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting("float32", "Dtype of the backbone's weights.")
    attn_implementation: str | None = setting(None, "Of the backbone with --packing none.")
    trust_remote_code: bool = setting(False, "Run the code that comes with the model.")
    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": """More arguments of from_pretrained, as JSON."""}
    )
    chat_template_path: str | None = setting(None, "Another chat template: Jinja file, or tokenizer.")
    eos_token: str | None = setting(None, "One more token that ends an answer.")
    pad_token: str | None = setting(None, "Token that fills padded rows.")

    granularity: Granularity = setting("sentence", "What the loss is trained on.")
    pooling: Pooling = setting("value_attention", "How sentence rewards become the response's.")
    rope_theta: float | None = setting(10_000.0, "RoPE base on the sentence index, or none.")
    include_prompt: bool = setting(True, "Let the prompt join the pooling.")
    difference: bool = setting(True, "Rewards are changes of the value.")
    boundary_token: str | None = setting(None, 'New token after each sentence, such as "<END>".')
    attention_size: int = setting(256, "Width of the query and the key.")
    segmenter: Literal["punkt", "punkt_tab", "sat", "newline"] = setting("punkt", "What splits responses into sentences.")
    segmenter_config: dict[str, Any] | str | None = field(default=None, metadata={"help": """As JSON, such as '{"max_chars": 600}'."""})

    use_peft: bool = setting(False, "Train adapters and the head alone.")
    lora_r: int = setting(16, "LoRA rank.")
    lora_alpha: int = setting(32, "LoRA alpha.")
    lora_dropout: float = setting(0.05, "LoRA dropout.")
    lora_target_modules: list[str] | None = field(
        default=None,
        metadata={"help": "Linear layers that get an adapter [all]"},
    )
    lora_target_parameters: list[str] | None = field(
        default=None, metadata={"help": "Names of weights that get an adapter and are no linear layers, such as mlp.experts.down_proj."}
    )
    lora_modules_to_save: list[str] | None = field(default=None, metadata={"help": "Modules trained whole, such as embed_tokens."})
    lora_task_type: str | None = setting(None, "Taken for trl's sake: SEQ_CLS there keeps the head, which is always kept here.")
    use_rslora: bool = setting(False, "Scale adapters by alpha / sqrt(r).")
    use_dora: bool = setting(False, "Weight-decomposed LoRA.")
    load_in_4bit: bool = setting(False, "Hold the frozen backbone in 4 bits.")
    load_in_8bit: bool = setting(False, "Hold the frozen backbone in 8 bits.")
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = setting("nf4", "The 4-bit numbers.")
    use_bnb_nested_quant: bool = setting(False, "Quantise the scales of the 4-bit numbers, too.")
    bnb_4bit_quant_storage: str | None = setting(None, "Dtype that holds the 4-bit numbers, such as bfloat16 for FSDP; uint8 if not set.")

    def variant(self) -> dict[str, Any]:
        """The fields of `SentenceRewardConfig` that these settings decide."""
        own = {name: getattr(self, name) for name in _VARIANT_FIELDS}
        # A string has become a mapping in __post_init__.
        more = self.segmenter_config if isinstance(self.segmenter_config, dict) else {}
        return {**own, "segmenter": {"name": self.segmenter, **more}}

    def changed_variant(self) -> dict[str, Any]:
        """The part of `variant()` that differs from the defaults: what the user asked for."""
        default = ModelArguments().variant()
        return {name: value for name, value in self.variant().items() if value != default[name]}

    def init_kwargs(self) -> dict[str, Any]:
        """Arguments of `from_pretrained`, those of `model_init_kwargs` among them; a copy, without where the model is put."""
        # A string has become a mapping in __post_init__.
        given = self.model_init_kwargs if isinstance(self.model_init_kwargs, dict) else {}
        kwargs = {"revision": self.model_revision, "trust_remote_code": self.trust_remote_code, "dtype": self.dtype}
        kwargs |= {"attn_implementation": self.attn_implementation} if self.attn_implementation else {}
        return kwargs | {name: value for name, value in given.items() if value is not None and name not in PLACED_BY_TRAINER}

    def __post_init__(self) -> None:
        check_limits(vars(self))
        self._settle_start()
        for name, example in (("segmenter_config", '{"max_chars": 600}'), ("model_init_kwargs", '{"dtype": "bfloat16"}')):
            value = getattr(self, name)
            if isinstance(value, str):
                setattr(self, name, json_value(name, value, dict, example))
        self._check_quantization()

    def _settle_start(self) -> None:
        """A score says something about the states of its own backbone alone, so one name is both."""
        if self.init_value_from is None:
            return
        if self.head_init != "zero":
            raise UserError(
                f"--head_init {self.head_init} starts the value at random, --init_value_from at a score. Leave one of them out."
            )
        if self.model_name_or_path not in (None, self.init_value_from):
            raise UserError(
                f"--init_value_from {self.init_value_from}: its score means nothing on the states of another backbone, and "
                f"--model_name_or_path is {self.model_name_or_path}. Leave --model_name_or_path out: the backbone is the reward model's."
            )
        self.model_name_or_path = self.init_value_from

    def _check_quantization(self) -> None:
        if "quantization_config" in self.init_kwargs():
            raise UserError("--model_init_kwargs: say by --load_in_4bit or --load_in_8bit what quantization_config would say.")
        if not (self.load_in_4bit or self.load_in_8bit):
            return
        if self.load_in_4bit and self.load_in_8bit:
            raise UserError("--load_in_4bit and --load_in_8bit exclude each other. Leave one of them out.")
        if not self.use_peft:
            raise UserError("--load_in_4bit and --load_in_8bit freeze the backbone, so that only adapters can be trained. Add --use_peft.")
        if find_spec("bitsandbytes") is None:
            raise UserError(f"--load_in_{4 if self.load_in_4bit else 8}bit: {way_to_install('bitsandbytes')}")
