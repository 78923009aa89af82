"""The reward model inside vLLM: its own implementation of the backbone, and a pooler that reads the head at the boundaries.

Shape letters: `T` tokens of a step, `N` boundaries, `D` hidden size, `A` attention width.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence, Set
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from vllm.config import VllmConfig
from vllm.model_executor.layers.pooler import Pooler
from vllm.model_executor.model_loader.weight_utils import default_weight_loader
from vllm.model_executor.models.interfaces_base import VllmModelForPooling
from vllm.model_executor.models.utils import init_vllm_registered_model, maybe_prefix
from vllm.v1.pool.metadata import PoolingMetadata

from srm.integrations.vllm import BOUNDARIES, TASK
from srm.integrations.vllm.config import EngineConfig
from srm_kernels import SentenceRewardHead

__all__ = ["BoundaryPooler", "EngineModel"]


class EngineModel(nn.Module, VllmModelForPooling):
    """A saved `SentenceRewardModel` on vLLM's implementation of its backbone, whatever architecture that is."""

    is_pooling_model: ClassVar = True

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        assert isinstance(config, EngineConfig)
        assert config.backbone_config is not None
        backbone = config.backbone_config.get_text_config()
        self.backbone = init_vllm_registered_model(
            _without_language_head(vllm_config),
            prefix=maybe_prefix(prefix, "backbone"),
            hf_config=backbone,
            architectures=[MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(backbone.model_type, "TransformersForCausalLM")],
        )
        # In float32 whatever the backbone is: the differences of its values are the result.
        with torch.device(vllm_config.device_config.device):
            self.head = SentenceRewardHead(config.hidden_size, **config.head_arguments()).float()
        self.pooler = BoundaryPooler(self.head)

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """Token embeddings [T, D] of int ids [T]."""
        return self.backbone.embed_input_ids(input_ids)

    def forward(
        self, input_ids: Tensor, positions: Tensor, intermediate_tensors: Any = None, inputs_embeds: Tensor | None = None
    ) -> Tensor:
        """Final hidden states [T, D]; the arguments are vLLM's."""
        return self.backbone(input_ids, positions, intermediate_tensors, inputs_embeds)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Loads what `srm-train` saved: `backbone.*` by vLLM's own loader of that architecture, `head.*` as it is.

        Args:
            weights: names and tensors of the files.

        Returns:
            The names of the parameters that were loaded, for vLLM's check that none is missing.
        """
        head = dict(self.head.named_parameters())
        loaded: set[str] = set()

        def of_backbone() -> Iterator[tuple[str, Tensor]]:
            for name, weight in weights:
                room, _, rest = name.partition(".")
                if room == "backbone":
                    yield rest, weight
                elif room == "head" and rest in head:
                    default_weight_loader(head[rest], weight)
                    loaded.add(name)
                else:
                    raise ValueError(f"{name}: no weight of a reward model. Serve the folder that srm-train saved.")

        loaded |= {f"backbone.{name}" for name in self.backbone.load_weights(of_backbone())}
        if missing := {f"head.{name}" for name in head} - loaded:
            raise ValueError(f"the files lack {', '.join(sorted(missing))}. Copy or download the folder again.")
        return loaded


def _without_language_head(vllm_config: VllmConfig) -> VllmConfig:
    """A view of the configuration with which vLLM makes a bare decoder: no language model's head, which may be 1 GB."""
    view = vllm_config.with_hf_config(vllm_config.model_config.hf_config)
    view.model_config.convert_type = "embed"
    return view


class BoundaryPooler(Pooler):
    """What the head says at a request's boundaries: fp32 [N, 2 + 2A], or [N, 2] of a head that does not attend.

    The columns are: 1 where this run had the token, else 0; the value; the key; the query. A row of zeros means that the prefix cache had
    the token, so that no hidden state of it came by. The last token of a request always comes by.

    A prompt's chunks give up their boundary rows one after the other, so that no hidden states are kept.

    Args:
        head: the model's.
    """

    def __init__(self, head: SentenceRewardHead) -> None:
        super().__init__()
        # Not as a child: its weights would be listed, and looked for in the files, twice.
        object.__setattr__(self, "_head", head)

    def get_supported_tasks(self) -> Set[str]:
        """vLLM's name for outputs of single tokens."""
        return {TASK}

    def forward(self, hidden_states: Tensor, pooling_metadata: PoolingMetadata) -> list[Tensor | None]:
        """The rows of each request that this step finishes, None for the others.

        Args:
            hidden_states: [T, D], those of a step's requests, one after the other.
            pooling_metadata: vLLM's: what has been run of each request, and its parameters.
        """
        cursor = pooling_metadata.get_pooling_cursor()
        counts = cursor.num_scheduled_tokens_cpu.tolist()
        ends, lengths = cursor.seq_lens_cpu.tolist(), pooling_metadata.prompt_lens.tolist()
        wanted = [_boundaries(params, length) for params, length in zip(pooling_metadata.pooling_params, lengths, strict=True)]
        here = [_between(boundaries, end - count, end) for boundaries, end, count in zip(wanted, ends, counts, strict=True)]
        offset, at = 0, []
        for boundaries, places, end, count in zip(wanted, here, ends, counts, strict=True):
            at += [offset + boundaries[place] - (end - count) for place in places]
            offset += count
        rows = self._read(hidden_states[torch.tensor(at, dtype=torch.long).to(hidden_states.device, non_blocking=True)])
        finished: list[Tensor | None] = []
        states, done = pooling_metadata.pooling_states, cursor.get_finished_mask()
        for boundaries, places, part, state, is_done in zip(wanted, here, rows.split([len(p) for p in here]), states, done, strict=True):
            # vLLM keeps a list of tensors for each request. A request that is run again after a preemption gives a boundary twice.
            state.hidden_states_cache.append((places, part))
            finished.append(_joined(state.hidden_states_cache, len(boundaries), rows) if is_done else None)
            if is_done:
                state.clean()
        return finished

    def _read(self, rows_ND: Tensor) -> Tensor:
        head, rows_ND = self._head, rows_ND.float()
        parts = [getattr(head, name) for name in ("value", "key", "query") if hasattr(head, name)]
        weight, bias = (torch.cat([getattr(part, name) for part in parts]) for name in ("weight", "bias"))
        return torch.cat([rows_ND.new_ones(len(rows_ND), 1), linear(rows_ND, weight, bias)], dim=1)


def _boundaries(params: Any, length: int) -> Sequence[int]:
    """Token positions, rising. A warm-up of vLLM's, and a request to its own routes, have none: all tokens."""
    return (params.extra_kwargs or {}).get(BOUNDARIES) or range(length)


def _between(boundaries: Sequence[int], start: int, end: int) -> range:
    """The indices of the boundaries from `start` to before `end`."""
    return range(bisect_left(boundaries, start), bisect_left(boundaries, end))


def _joined(parts: Sequence[tuple[range, Tensor]], count: int, like: Tensor) -> Tensor:
    joined = like.new_zeros(count, like.shape[1])
    for places, part in parts:
        joined[places.start : places.stop] = part
    return joined
