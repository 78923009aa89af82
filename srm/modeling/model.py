"""SentenceRewardModel: backbone -> boundary rows -> head.

Shape letters: `N` boundaries, `R` rows that the last layer runs, `B` responses, `D` hidden size.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import ModelOutput

from srm.data import OverlongPolicy, Prompt, Response, ResponseEncoder
from srm.errors import UserError, check_choice
from srm.hub import optional_file
from srm.modeling.adapter import find_adapter, load_adapter
from srm.modeling.alias import resolve_model_name
from srm.modeling.card import replace_draft, write_card
from srm.modeling.config import SentenceRewardConfig, check_fields
from srm.modeling.head_file import check_head, in_float32
from srm.modeling.head_start import HeadInit, head_start
from srm.modeling.loading import (
    add_boundary_token,
    check_is_reward_model,
    check_tokenizer_fits,
    hub_arguments,
    list_end_tokens,
    load_backbone,
    load_tokenizer,
    load_whole,
    unsharded,
)
from srm.modeling.reader import make_encoder
from srm.packing import PackedBatch, PackingMode, UnsupportedBackboneError, check_decoder, probe, prove_last_layer, run_to_boundaries
from srm.packing.backbone import num_embeddings
from srm.scoring.results import ScoredResponse
from srm.scoring.stream import RewardStream
from srm.scoring.text import score
from srm.scoring.token_ids import ScoredTokens, score_tokens
from srm_kernels import SentenceRewardHead

__all__ = ["SentenceRewardModel", "SentenceRewardOutput"]

logger = logging.getLogger(__name__)

_OF_PUSH = ("repo_id", "commit_message", "commit_description", "private", "token", "revision", "create_pr", "tags")


@dataclass
class SentenceRewardOutput(ModelOutput):
    """What the head says about a batch.

    Attributes:
        reward: fp32 [B], the response rewards `R`.
        sentence_reward: fp32 [N], `r_0 ... r_n` of each response; index 0 is the prompt's.
        weight: fp32 [N], the weights `w_i`; `R` is the sum of `w_i * r_i`.
        value: fp32 [N], the values `v_i` at the boundaries.
    """

    reward: Tensor | None = None
    sentence_reward: Tensor | None = None
    weight: Tensor | None = None
    value: Tensor | None = None


class SentenceRewardModel(PreTrainedModel):
    """A decoder with a sentence-level reward head (arXiv 2503.04793, section 3).

    Make one with `from_backbone`, load a trained one with `from_pretrained` or `transformers.AutoModel`, ask it with `score`.

    Args:
        config: what kind of reward model it is.
        backbone: the decoder; where None, one with fresh weights from `config.backbone_config`.
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
        self.backbone.name_or_path = config.name_or_path or backbone.name_or_path  # messages name the folder that was given
        self.head = SentenceRewardHead(config.hidden_size, **config.head_arguments())
        self.tokenizer: PreTrainedTokenizerBase | None = None
        # What has been proved of the backbone; see `packing_mode`.
        self._is_decoder = self._has_said_padded = False
        self._probed_as: tuple[str, torch.dtype] | None = None
        self._packing_refusal: UnsupportedBackboneError | None = None
        self.post_init()

    @classmethod
    @unsharded()
    def from_backbone(
        cls,
        model_name_or_path: str | os.PathLike[str],
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        dtype: torch.dtype | str = torch.float32,
        head_init: HeadInit = "zero",
        model_kwargs: dict[str, Any] | None = None,
        **config: Any,
    ) -> SentenceRewardModel:
        """A new reward model on a pretrained decoder.

        Args:
            model_name_or_path: hub name, folder, or the alias `smollm2-135m`.
            tokenizer: the backbone's own where None.
            dtype: of the backbone's weights; the head stays in float32.
            head_init: `zero`: every value is 0, and attention near uniform. `linear`: at random, as `torch.nn.Linear` starts; credit can
                settle on the wrong sign (docs/method.md). `score`: the value is the score of the classifier at `model_name_or_path`.
            model_kwargs: further arguments of `AutoModel.from_pretrained`.
            **config: fields of `SentenceRewardConfig`.

        Returns:
            The model, with its tokenizer.

        Raises:
            UserError: an unknown field; or the backbone cannot be loaded as a whole, is a reward model, or lacks the tokenizer's pad token.
        """
        check_fields(config)
        path = resolve_model_name(str(model_name_or_path))
        tokenizer = tokenizer or load_tokenizer(path, **hub_arguments(model_kwargs))
        start = head_start(head_init, path, **hub_arguments(model_kwargs))
        backbone = load_backbone(path, dtype=dtype, **(model_kwargs or {}))
        check_tokenizer_fits(path, tokenizer, backbone)
        list_end_tokens(backbone.config, path, **hub_arguments(model_kwargs))
        if (boundary_token := config.get("boundary_token")) is not None:
            add_boundary_token(boundary_token, tokenizer, backbone)
        model = cls(SentenceRewardConfig(backbone_config=backbone.config, **config), backbone=backbone)
        start(model.head)
        model.tokenizer = tokenizer
        # The name as given, alias included: a LoRA adapter records it as the model it belongs to.
        model.name_or_path = str(model_name_or_path)
        return model

    @classmethod
    @unsharded()
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> SentenceRewardModel:
        """Load a saved model with its tokenizer. A folder with a LoRA adapter loads its backbone and comes back merged.

        Args:
            pretrained_model_name_or_path: a folder, or a name on the hub.
            *args: as in `transformers.PreTrainedModel.from_pretrained`.
            **kwargs: as in `transformers.PreTrainedModel.from_pretrained`; `dtype` is the backbone's. The head
                stays in float32, and only a later `model.to(dtype)` rounds it, too.

        Returns:
            The model in eval mode; with `output_loading_info=True`, the pair that transformers returns.

        Raises:
            UserError: what is there is no reward model, or not a whole one.
        """
        name, hub = str(pretrained_model_name_or_path), hub_arguments(kwargs)
        adapter = None if pretrained_model_name_or_path is None else find_adapter(name, **hub)
        if adapter is not None:
            return load_adapter(cls, adapter, **kwargs)
        if kwargs.get("config") is None:
            check_is_reward_model(name, **hub)
        wants_info = kwargs.pop("output_loading_info", False)
        from_files = super().from_pretrained
        model, info = load_whole(lambda _, **given: from_files(pretrained_model_name_or_path, *args, **given), name, **kwargs)
        if kwargs.get("state_dict") is None:
            check_head(model.head, name, **hub)
        # A folder without one still loads, for callers who bring ids; `encoder` says what is missing when text comes.
        if optional_file(name, "tokenizer_config.json", **hub):
            model.tokenizer = load_tokenizer(name, **hub)
            check_tokenizer_fits(name, model.tokenizer, model)
        return (model, info) if wants_info else model  # type: ignore[return-value]  # as PreTrainedModel with output_loading_info

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Save weights (safetensors; the head in float32), config, tokenizer and a card: the folder is all that `from_pretrained` needs.

        Args:
            save_directory: the folder; made where there is none.
            *args: as in `transformers.PreTrainedModel.save_pretrained`.
            **kwargs: as in `transformers.PreTrainedModel.save_pretrained`.
        """
        # Trainers that compute in 16 bits hand over all weights in 16.
        if kwargs.get("state_dict") is not None or any(weight.dtype != torch.float32 for weight in self.head.parameters()):
            kwargs["state_dict"] = in_float32(kwargs.get("state_dict") or self.state_dict())
        push = kwargs.pop("push_to_hub", False)
        to_hub = {name: kwargs.pop(name) for name in _OF_PUSH if name in kwargs}
        super().save_pretrained(save_directory, *args, **kwargs)
        if kwargs.get("is_main_process", True):
            if self.tokenizer is not None:
                self.tokenizer.save_pretrained(save_directory)
            write_card(self.config, Path(save_directory))
            if push:
                # When all is there: transformers would push in between, without the tokenizer.
                self.push_to_hub(to_hub.pop("repo_id", Path(save_directory).resolve().name), **to_hub)

    def _upload_modified_files(self, working_dir: str | os.PathLike[str], repo_id: str, *args: Any, **kwargs: Any) -> Any:
        # The last that `push_to_hub` asks for; a release that asks otherwise fails the tests.
        replace_draft(self.config, Path(working_dir), repo_id)
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)

    def forward(self, batch: PackedBatch) -> SentenceRewardOutput:
        """Rewards of every response and sentence in `batch`."""
        if batch.cu_seqlens is not None:
            self.packing_mode("packed")
        return SentenceRewardOutput(*self.head(*run_to_boundaries(self.backbone, batch, last_layer_rows=self.config.last_layer_rows)))

    def packing_mode(self, asked: PackingMode | None = None) -> PackingMode:
        """How batches run on this backbone; every packed call asks here.

        That packing changes nothing is proved once on the loaded model, with a few passes of about twenty tokens; the answer is kept. So is
        which rows its last layer needs, see `config.last_layer_rows`.

        Args:
            asked: what was asked for by name. None: the config's mode where the backbone can run it, else `none`, with one line in the log.

        Raises:
            UserError: the backbone is no causal decoder, so that no mode is right; or there is no such mode.
            UnsupportedBackboneError: `asked` is a packed mode, and this backbone cannot run packed.
        """
        mode = self._proved_mode(asked)
        if self.config.last_layer_rows == "boundaries":
            prove_last_layer(self.backbone, packed=mode != "none")
        return mode

    def _proved_mode(self, asked: PackingMode | None) -> PackingMode:
        wanted = asked or self.config.packing
        check_choice("`packing`", wanted, get_args(PackingMode))
        if not self._is_decoder:
            # The proofs may need gradients, which inference mode of the caller would not give.
            with torch.inference_mode(False):
                check_decoder(self.backbone)
            self._is_decoder = True
        if wanted == "none":
            return wanted
        here = (self.backbone.device.type, self.backbone.dtype)
        if self._probed_as is None or (self._packing_refusal is not None and self._probed_as != here):
            # Some that a CPU refuses can be packed on a GPU, or in another dtype.
            self._probed_as, self._packing_refusal = here, None
            try:
                probe(self.backbone)
            except UnsupportedBackboneError as error:
                self._packing_refusal = error
        refusal = self._packing_refusal
        if refusal is None:
            return wanted
        if asked is not None:
            raise UnsupportedBackboneError(refusal.backbone, refusal.reason)
        if not self._has_said_padded:
            logger.warning("%s cannot run packed (%s), so it runs padded: packing none", refusal.backbone, refusal.reason)
            self._has_said_padded = True
        return "none"

    def score(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[Response] | Sequence[Sequence[Response]],
        *,
        tokens_per_batch: int = 8192,
        max_length: int | None = None,
        overlong: OverlongPolicy = "error",
        packing: PackingMode | None = None,
        show_progress: bool = False,
    ) -> list[ScoredResponse] | list[list[ScoredResponse]]:
        """Rewards of responses and of each of their sentences.

        Args:
            prompts: one a row, a string or a list of `{"role", "content"}` messages.
            responses: for each prompt a response, text or a list of messages that ends with the assistant's, or a list of responses; those
                share one pass over their prompt. See docs/data.md for responses of several messages.
            tokens_per_batch: upper bound on the tokens of one forward pass; a single longer response still runs, alone.
            max_length: longest prompt + response in tokens; never more than the backbone's own limit.
            overlong: what becomes of a longer row: `error`, `truncate_prompt` or `truncate_response`, which `truncated` marks.
            packing: `shared`, `packed` or `none`; where None, see `packing_mode`.
            show_progress: draw a progress bar on stderr.

        Returns:
            One `ScoredResponse` a response, nested as `responses` is.

        Raises:
            ValueError: lengths that do not match, an empty response, a response too long, or an `overlong` that would leave one out.

        A score does not depend on what else is in the batch, up to the rounding of the matrix products.
        """
        return score(
            self,
            prompts,
            responses,
            tokens_per_batch=tokens_per_batch,
            max_length=max_length,
            overlong=overlong,
            packing=packing,
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

        A response's text ends before its first end id (eos, pad, the chat template's, the backbone's configuration's); ids from there on
        belong to no sentence. A response without text has the prompt's share of the reward and no sentence. Equal prompts run once in
        a pass.

        Args:
            prompt_ids: the prompts as the policy read them: lists, or [B, P] with `prompt_mask`, padded on either side.
            response_ids: what the policy wrote: lists, or [B, L] padded on the right.
            prompt_mask: bool or int [B, P], nonzero on prompt tokens. Pass it if rows are padded: padding is otherwise read as prompt.
            response_lengths: int [B], an upper bound on each response's text.
            tokenizer: the policy's; the reward model's own where None.
            prompts: the prompts as strings or messages, where `tokenizer` has another vocabulary: then the reward model reads the text
                in its own tokens, and sentences are found again on the policy's through characters.
            tokens_per_batch: bound on the tokens of one forward pass.
            packing: `shared`, `packed` or `none`; where None, see `packing_mode`.

        Raises:
            ValueError: shapes that do not match, an empty prompt, more tokens than the reward model reads, or an id that it does not know.
        """
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
            max_length: longest prompt + response in tokens; never more than the backbone's own limit.

        Raises:
            UserError: a prompt that is too long, or a backbone that is no causal decoder or has no cache of keys and values.
        """
        return RewardStream(self, prompt, max_length=max_length)

    @cached_property
    def encoder(self) -> ResponseEncoder:
        """Turns prompts and responses into ids and boundaries, exactly as in training."""
        if self.tokenizer is None:
            raise UserError(
                f"{self.name_or_path or 'this model'}: no tokenizer was found beside the weights. "
                "Set `model.tokenizer`, or save the tokenizer into the model's folder."
            )
        return make_encoder(self.config, self.tokenizer)

    @property
    def num_embeddings(self) -> int:
        """How many token ids the backbone has an embedding for."""
        return num_embeddings(self.backbone)

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    def _init_weights(self, module: nn.Module) -> None:
        # Older releases of transformers call this for what is loaded, too.
        if isinstance(module, SentenceRewardHead) and not all(_is_loaded(weight) for weight in module.parameters()):
            module.reset_parameters()


def _is_loaded(weight: Tensor) -> bool:
    """Whether `from_pretrained` has taken the weight from a file: this is how it marks those."""
    return getattr(weight, "_is_hf_initialized", False)
