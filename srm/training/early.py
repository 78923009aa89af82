"""What can be known to fail is found before a model is loaded, which may take minutes: no file of weights is opened here."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from transformers.trainer_utils import IntervalStrategy

from srm.errors import UserError, first_line
from srm.extras import way_to_install
from srm.hub import why_no_push
from srm.modeling.alias import resolve_model_name
from srm.modeling.loading import hub_arguments, read_config
from srm.runs.parser import did_you_mean
from srm.training.metrics import METRICS

if TYPE_CHECKING:
    from srm.training.arguments import RewardConfig
    from srm.training.data_arguments import DataArguments
    from srm.training.model_arguments import ModelArguments

__all__ = ["check_early"]

_SEGMENTERS = {"punkt_tab": "nltk", "sat": "wtpsplit"}


def check_early(model: ModelArguments, data: DataArguments, config: RewardConfig) -> None:
    """Refuse a run that lacks a package, evaluation data or a metric of it, a service to report to, a way to the hub, or its model.

    Args:
        model: settings of the model.
        data: of its data.
        config: of the run.

    Raises:
        UserError: what is lacking, and how to get it.
    """
    for flag, module in _needed(model, config):
        if find_spec(module) is None:
            raise UserError(f"{flag}: {way_to_install(module)}")
    _check_evaluation(data, config)
    _check_metric(config)
    if config.push_to_hub and (reason := why_no_push(config.hub_token)) is not None:
        raise UserError(f"--push_to_hub: {reason} Or leave the flag out, and upload the folder later: `hf upload`.")
    _check_services(config)
    path = resolve_model_name(str(model.model_name_or_path))
    if not Path(path).exists():
        read_config(path, "Give a folder, or a hub name.", **hub_arguments(model.init_kwargs()))


def _needed(model: ModelArguments, config: RewardConfig) -> Iterator[tuple[str, str]]:
    """Flags, with the modules that they need."""
    if model.use_peft:
        yield "--use_peft", "peft"
    if config.use_liger_kernel:
        yield "--use_liger_kernel", "liger_kernel"
    yield from ((f"--segmenter {name}", module) for name, module in _SEGMENTERS.items() if name == model.segmenter)


def _check_evaluation(data: DataArguments, config: RewardConfig) -> None:
    """A single file, and a mixture, have no split of their own to evaluate on."""
    if config.eval_strategy == "no" or data.eval_dataset_name is not None or data.test_split_size is not None:
        return
    if data.parts or Path(str(data.dataset_name)).is_file():
        ways = "--eval_dataset_name or --test_split_size" if data.parts else "--eval_dataset_name"
        raise UserError(
            f"--eval_strategy {IntervalStrategy(config.eval_strategy).value} needs pairs to evaluate on, "
            f"and {data.title} is all training data. Add {ways}."
        )


def _check_metric(config: RewardConfig) -> None:
    """Trainer looks the metric up after the first evaluation, which may be hours away."""
    name = config.metric_for_best_model
    if name is None:
        return
    speed = ("runtime", "samples_per_second", "steps_per_second")
    if name.removeprefix("eval_") not in (*METRICS, *speed):
        near = did_you_mean(name.removeprefix("eval_"), METRICS)
        ways = near if near != "." else f". Choose from {', '.join(METRICS)}."
        raise UserError(f"--metric_for_best_model {name}: evaluations yield no such metric{ways}")


def _check_services(config: RewardConfig) -> None:
    from transformers.integrations import get_reporting_integration_callbacks

    services = [config.report_to] if isinstance(config.report_to, str) else config.report_to
    try:
        for callback in get_reporting_integration_callbacks(services):
            # Each looks for its package.
            callback()
    except (ImportError, RuntimeError, ValueError) as error:
        raise UserError(f"--report_to {' '.join(services or [])}: {first_line(error)}. Install it, or leave it out.") from error
