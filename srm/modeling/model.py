"""SentenceRewardModel: backbone -> boundary rows -> head.

Shape letters: `T` tokens run, `N` boundaries, `B` responses, `D` hidden size.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel
from transformers.utils import ModelOutput, cached_file

from srm.errors import UserError
from srm.modeling.alias import resolve_model_name
from srm.modeling.config import SentenceRewardConfig
from srm.packing import PackedBatch, run_backbone
from srm_kernels import SentenceLayout, SentenceRewardHead

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from srm.data import Prompt, ResponseEncoder
    from srm.packing import PackingMode
    from srm.scoring.results import ScoredResponse
    from srm.scoring.stream import RewardStream
    from srm.scoring.token_ids import ScoredTokens

__all__ = ["SentenceRewardModel", "SentenceRewardOutput"]


@dataclass
class SentenceRewardOutput(ModelOutput):
    """What the head says about a batch.

    reward: [B] fp32, the response rewards `R`.
    sentence_reward: [N] fp32, `r_0 ... r_n` of each response; index 0 is the prompt's.
    weight: [N] fp32, the pooling weights `w_i`; `R` is the sum of `w_i * r_i`.
    value: [N] fp32, the values `v_i` at the boundaries.
    """

    reward: Tensor | None = None
    sentence_reward: Tensor | None = None
    weight: Tensor | None = None
    value: Tensor | None = None


class SentenceRewardModel(PreTrainedModel):
    """A decoder with a sentence-level reward head (arXiv 2503.04793, section 3).

    Make one with `from_backbone`, load a trained one with `from_pretrained` or `transformers.AutoModel`, ask it with `score`.
    """

    config_class = SentenceRewardConfig
    config: SentenceRewardConfig
    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True
    # Attention lives in the backbone, which checks its own; this wrapper must not refuse what the backbone accepts.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # The head is a few thousand weights whose differences are the result: float32 whatever dtype the backbone is loaded in.
    _keep_in_fp32_modules_strict = ["head"]  # noqa: RUF012, transformers declares it so

    def __init__(self, config: SentenceRewardConfig, backbone: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        if backbone is None:
            # Not the dtype that the backbone's own config remembers: `from_pretrained(dtype=...)` has set the default to what is wanted.
            backbone = AutoModel.from_config(config.backbone_config, dtype=torch.get_default_dtype())
        else:
            for module in backbone.modules():
                # transformers would initialise a pretrained backbone anew: this is how it marks what is loaded.
                module._is_hf_initialized = True  # type: ignore[assignment]  # nn.Module takes any attribute
        self.backbone = backbone
        self.head = SentenceRewardHead(config.hidden_size, **config.head_arguments())
        self.tokenizer: PreTrainedTokenizerBase | None = None
        self.post_init()

    @classmethod
    def from_backbone(
        cls,
        model_name_or_path: str | os.PathLike[str],
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        dtype: torch.dtype | str = torch.float32,
        model_kwargs: dict[str, Any] | None = None,
        **config: Any,
    ) -> SentenceRewardModel:
        """A new reward model on a pretrained decoder.

        The head starts at zero (every reward 0, attention uniform): a random one can settle on inverted credit, see docs/method.md.

        Args:
            model_name_or_path: hub name, folder, or the alias `smollm2-135m`.
            tokenizer: the backbone's own where None.
            dtype: of the backbone's weights; the head stays in float32.
            model_kwargs: further arguments of `AutoModel.from_pretrained`.
            **config: fields of `SentenceRewardConfig`.
        """
        path = resolve_model_name(str(model_name_or_path))
        tokenizer = tokenizer or load_tokenizer(path, **_hub_arguments(model_kwargs))
        backbone = _load_backbone(path, dtype=dtype, **(model_kwargs or {}))
        boundary_token = config.get("boundary_token")
        if boundary_token is not None:
            _add_boundary_token(boundary_token, tokenizer, backbone)
        model = cls(SentenceRewardConfig(backbone_config=backbone.config, **config), backbone=backbone)
        model.tokenizer = tokenizer
        # The name as given, alias included: a LoRA adapter records it as the model it belongs to.
        model.name_or_path = str(model_name_or_path)
        return model

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> SentenceRewardModel:
        """Load a saved model with its tokenizer. A folder with a LoRA adapter loads its backbone and comes back merged.

        Takes the arguments of `transformers.PreTrainedModel.from_pretrained`.
        """
        path = Path(str(pretrained_model_name_or_path))
        if (path / "adapter_config.json").is_file():
            from srm.modeling.adapter import load_adapter

            return load_adapter(cls, path, **kwargs)
        if kwargs.get("config") is None:
            _check_is_reward_model(str(pretrained_model_name_or_path), **_hub_arguments(kwargs))
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model, info = loaded if isinstance(loaded, tuple) else (loaded, None)
        name, hub_arguments = str(pretrained_model_name_or_path), _hub_arguments(kwargs)
        # A folder without one still loads, for callers who bring ids; `encoder` says what is missing when text comes.
        if cached_file(name, "tokenizer_config.json", _raise_exceptions_for_missing_entries=False, **hub_arguments):
            model.tokenizer = load_tokenizer(name, **hub_arguments)
        return model if info is None else (model, info)  # type: ignore[return-value]  # as PreTrainedModel with output_loading_info

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Save weights (safetensors), config and tokenizer, so that the folder is all that `from_pretrained` needs."""
        super().save_pretrained(save_directory, *args, **kwargs)
        if self.tokenizer is not None and kwargs.get("is_main_process", True):
            self.tokenizer.save_pretrained(save_directory)

    def forward(self, batch: PackedBatch) -> SentenceRewardOutput:
        """Rewards of every response and sentence in `batch`."""
        hidden_TD = run_backbone(self.backbone, batch)
        return SentenceRewardOutput(*self.head(hidden_TD, SentenceLayout(batch.boundaries, batch.cu_boundaries)))

    def score(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[str] | Sequence[Sequence[str]],
        *,
        tokens_per_batch: int = 8192,
        max_length: int | None = None,
        packing: PackingMode | None = None,
        show_progress: bool = False,
    ) -> list[ScoredResponse] | list[list[ScoredResponse]]:
        """Rewards of responses and of each of their sentences.

        Args:
            prompts: one a row, a string or a list of `{"role", "content"}` messages.
            responses: for each prompt a response, or a list of responses; those share one pass over their prompt.
            tokens_per_batch: upper bound on the tokens of one forward pass; a single longer response still runs, alone.
            max_length: longest prompt + response in tokens; the backbone's own limit where None.
            packing: `shared`, `packed` or `none`; the config's where None.
            show_progress: draw a progress bar on stderr.

        Returns:
            One `ScoredResponse` a response, nested as `responses` is.

        Raises:
            ValueError: lengths that do not match, an empty response, a response too long.

        A score does not depend on what else is in the batch, up to the rounding of the matrix products.
        """
        from srm.scoring.text import score

        return score(
            self,
            prompts,
            responses,
            tokens_per_batch=tokens_per_batch,
            max_length=max_length,
            packing=packing or self.config.packing,
            show_progress=show_progress,
        )

    def score_tokens(
        self,
        prompt_ids: Tensor | Sequence[Sequence[int]],
        response_ids: Tensor | Sequence[Sequence[int]],
        *,
        prompt_mask: Tensor | None = None,
        response_lengths: Tensor | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        prompts: Sequence[Prompt] | None = None,
        tokens_per_batch: int = 8192,
        packing: PackingMode | None = None,
    ) -> ScoredTokens:
        """Rewards on a policy's own token ids, which are never retokenised or changed.

        A response's text ends before its first eos or pad id; ids from there on belong to no sentence. A response without text has the
        prompt's share of the reward and no sentence. Equal prompts run once for up to 64 of their responses.

        Args:
            prompt_ids: the prompts as the policy read them: lists, or [B, P] with `prompt_mask`, padded on either side.
            response_ids: what the policy wrote: lists, or [B, L] padded on the right.
            prompt_mask: bool or int [B, P], nonzero on prompt tokens; all of them where None.
            response_lengths: int [B], an upper bound on each response's text.
            tokenizer: the policy's; the reward model's own where None.
            prompts: the prompts as strings or messages, where `tokenizer` has another vocabulary: then the reward model reads the text
                in its own tokens, and sentences are found again on the policy's through characters.
            tokens_per_batch: bound on the tokens of one forward pass.
            packing: `shared`, `packed` or `none`; the config's where None.

        Raises:
            ValueError: shapes that do not match, an empty prompt, or more tokens than the reward model reads. IndexError: an unknown id.
        """
        from srm.scoring.token_ids import score_tokens

        return score_tokens(
            self,
            prompt_ids,
            response_ids,
            prompt_mask=prompt_mask,
            response_lengths=response_lengths,
            tokenizer=tokenizer,
            prompts=prompts,
            tokens_per_batch=tokens_per_batch,
            packing=packing,
        )

    def stream(self, prompt: Prompt, *, max_length: int | None = None) -> RewardStream:
        """Scores one response to `prompt` while it is being written, sentence by sentence, with the backbone's key-value cache.

        Closed, the stream's score is that of `score` up to the rounding of the matrix products.

        Args:
            prompt: a string or a list of `{"role", "content"}` messages; it runs at once.
            max_length: longest prompt + response in tokens; the backbone's own limit where None.

        Raises:
            UserError: a prompt that is too long, or a backbone without a cache of keys and values.
        """
        from srm.scoring.stream import RewardStream

        return RewardStream(self, prompt, max_length=max_length)

    @cached_property
    def encoder(self) -> ResponseEncoder:
        """Turns prompts and responses into ids and boundaries, exactly as in training."""
        from srm.data import ResponseEncoder
        from srm.segmentation import make_segmenter

        if self.tokenizer is None:
            raise UserError(
                f"{self.name_or_path or 'this model'}: no tokenizer was found beside the weights. "
                "Set `model.tokenizer`, or save the tokenizer into the model's folder."
            )
        return ResponseEncoder(self.tokenizer, make_segmenter(**self.config.segmenter), boundary_token=self.config.boundary_token)

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, SentenceRewardHead):
            module.reset_parameters()


def load_tokenizer(path: str, **hub_arguments: Any) -> PreTrainedTokenizerBase:
    """The tokenizer at `path`, or a `UserError` that names what was tried."""
    try:
        return AutoTokenizer.from_pretrained(path, **hub_arguments)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no tokenizer could be loaded ({_first_line(error)}). Save one beside the weights.") from error


def _load_backbone(path: str, **kwargs: Any) -> PreTrainedModel:
    try:
        backbone = AutoModel.from_pretrained(path, **kwargs)
    except OSError as error:
        raise UserError(f"{path}: no model could be loaded ({_first_line(error)}). Give a folder with config.json and weights.") from error
    if isinstance(backbone, SentenceRewardModel):
        raise UserError(f"{path}: is a trained reward model already. Load it with `SentenceRewardModel.from_pretrained`.")
    return backbone


def _check_is_reward_model(path: str, **hub_arguments: Any) -> None:
    try:
        found = AutoConfig.from_pretrained(path, **hub_arguments).model_type
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: no model could be loaded ({_first_line(error)}). Give the folder that srm-train saved, or a hub name."
        ) from error
    if found != SentenceRewardConfig.model_type:
        raise UserError(
            f"{path}: is a plain {found} model, not a trained reward model. Train one on it: srm-train --model_name_or_path {path}"
        )


def _add_boundary_token(token: str, tokenizer: PreTrainedTokenizerBase, backbone: PreTrainedModel) -> None:
    tokenizer.add_special_tokens({"additional_special_tokens": [token]}, replace_extra_special_tokens=False)
    embeddings = backbone.get_input_embeddings()
    assert isinstance(embeddings.weight, Tensor)
    if len(tokenizer) > embeddings.weight.shape[0]:
        backbone.resize_token_embeddings(len(tokenizer))


def _hub_arguments(kwargs: dict[str, Any] | None) -> dict[str, Any]:
    names = ("cache_dir", "force_download", "local_files_only", "token", "revision", "trust_remote_code", "subfolder")
    return {name: value for name, value in (kwargs or {}).items() if name in names}


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
