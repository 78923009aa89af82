"""Settings of `srm-train` that say where its data comes from: under the names of `trl reward` where it has them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from srm.data import DataPart
from srm.data.mixture import check_fractions
from srm.errors import UserError
from srm.modeling.card import without_place
from srm.runs.limits import check_limits
from srm.runs.settings import json_value, setting

__all__ = ["DataArguments"]


@dataclass(kw_only=True)
class DataArguments:
    """Where the preference pairs come from (docs/data.md)."""

    dataset_name: str | None = setting(None, "Pairs: JSONL, CSV or Parquet, folder, hub name.")
    dataset_config: str | None = setting(None, "Configuration of a hub data set.")
    dataset_streaming: bool = setting(False, "Download rows of a hub data set when read.")
    datasets: list[dict[str, Any]] | str | None = field(
        default=None,
        metadata={"help": """A mixture, as JSON: '[{"path": "pairs.jsonl"}]'."""},
    )
    streaming: bool = setting(False, "As --dataset_streaming, for --datasets.")
    test_split_size: float | None = setting(None, "Share or rows of --datasets to evaluate on.")
    dataset_train_split: str = setting("train", "Split to train on.")
    dataset_test_split: str = setting("test", "Split to evaluate on.")
    eval_dataset_name: str | None = setting(None, "Pairs to evaluate on.")
    max_pairs: int | None = setting(None, "Train on the first N pairs only.")
    max_eval_pairs: int | None = setting(None, "Evaluate on the first N pairs only.")
    skip_bad_rows: bool = setting(False, "Drop bad rows and list them.")

    dataset_num_proc: int | None = setting(
        None, "Taken for trl's sake: rows are tokenised once, in batches, by the tokenizer's own threads (RAYON_NUM_THREADS)."
    )
    ignore_bias_buffers: bool = setting(False, "Taken for trl's sake, whose reward script does not look at it either.")

    @property
    def parts(self) -> list[DataPart]:
        """The sources of the mixture; none where there is no mixture."""
        return [DataPart.of(entry, f"datasets, entry {number}") for number, entry in enumerate(self.datasets or [], start=1)]

    @property
    def title(self) -> str:
        """What a person calls the training data: names alone of what lies on this machine."""
        names = [part.path for part in self.parts] or [self.dataset_name or ""]
        return ", ".join(dict.fromkeys(map(without_place, names)))

    def read(self) -> dict[str, str | None]:
        """What is read, by the flag or entry that names it."""
        named = {"--dataset_name": None if self.datasets else self.dataset_name, "--eval_dataset_name": self.eval_dataset_name}
        places = dict.fromkeys(place for part in self.parts for place in part.places)
        return named | {f"datasets ({place})": place for place in places}

    def __post_init__(self) -> None:
        check_limits(vars(self))
        if isinstance(self.datasets, str):
            self.datasets = json_value("datasets", self.datasets, list, '[{"path": "pairs.jsonl"}]')
        check_fractions(self.parts, streaming=self.streaming)
        for name in ("test_split_size", "streaming"):
            if getattr(self, name) and not self.datasets:
                other = "--dataset_streaming" if name == "streaming" else "--eval_dataset_name"
                raise UserError(f"--{name} is about a mixture, and there are no `datasets`. For --dataset_name, use {other}.")
        if (self.test_split_size or 0) > 1 and self.test_split_size != int(self.test_split_size or 0):
            raise UserError(f"--test_split_size must be a share below 1 or a whole number of rows, got {self.test_split_size}.")
        if self.test_split_size is not None and self.eval_dataset_name is not None:
            raise UserError("--test_split_size and --eval_dataset_name both say what to evaluate on. Leave one of them out.")
