"""make demo: train on generated pairs and see which sentences the model blames.

python -m srm.cli.demo --output_dir outputs/demo --seed 0
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from srm.cli.common import run
from srm.errors import UserError
from srm.runs.limits import check_limits
from srm.runs.parser import Parser

if TYPE_CHECKING:
    from rich.console import Console

    from srm import SentenceRewardModel
    from srm.data.synthetic import SyntheticPair
    from srm.evaluation.credit import CreditSummary
    from srm.evaluation.generated import GeneratedResult
    from srm.training import RewardConfig

__all__ = ["DemoSettings", "cpu_is_fast_at_bf16", "demo", "main"]

T = TypeVar("T")

# Says that a folder is the demo's own, so that the next run may replace what is in it.
_MARKER = "demo.json"


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """What the demo does; each field is a flag.

    batch_size: pairs an optimizer step.
    """

    model_name_or_path: str = "smollm2-135m"
    output_dir: Path = Path("outputs/demo")
    seed: int = 0
    num_pairs: int = 520
    num_eval_pairs: int = 120
    batch_size: int = 4
    learning_rate: float = 1e-4

    def __post_init__(self) -> None:
        check_limits(vars(self))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit code for the shell."""
    return run(_run, argv, name="srm-demo")


def _run(argv: Sequence[str]) -> None:
    from srm.cli.terminal import Terminal

    demo(_parse(argv), Terminal())


def _parse(argv: Sequence[str]) -> DemoSettings:
    parser = Parser(prog="python -m srm.cli.demo", description="Train on generated pairs and look at the result.")
    helps = {
        "model_name_or_path": "decoder to start from: alias smollm2-135m, hub name or folder",
        "output_dir": "folder for pairs, model and report",
        "seed": "of the pairs and of the training",
        "num_pairs": "pairs to train on",
        "num_eval_pairs": "held-out pairs, from templates that training never sees",
        "batch_size": "pairs an optimizer step",
        "learning_rate": "of the backbone; the head's are those of srm-train",
    }
    for setting in fields(DemoSettings):
        names = [f"--{setting.name}", *(["--model"] if setting.name == "model_name_or_path" else [])]
        kind = type(setting.default)
        kind = Path if issubclass(kind, Path) else kind
        parser.add_argument(*names, type=kind, default=setting.default, help=helps[setting.name])
    return DemoSettings(**vars(parser.parse_args(argv)))


def demo(settings: DemoSettings, console: Console) -> GeneratedResult:
    """Generate pairs, train, measure before and after on held-out pairs, show one, and save model and report.

    Raises:
        UserError: a model that cannot be loaded, or an output folder that holds something else or that another run writes into.
    """
    from srm.runs.lock import hold
    from srm.runs.places import check_folder

    models = {"--model_name_or_path": settings.model_name_or_path}
    check_folder("--output_dir", settings.output_dir, data={}, models=models, whole=True)
    with hold(settings.output_dir):
        return _demo(settings, console)


def _demo(settings: DemoSettings, console: Console) -> GeneratedResult:
    folder = _claim(settings)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    started = time.perf_counter()
    train, test = _write_pairs(settings, folder)
    counts = f"{len(train)} training pairs, {len(test)} held-out pairs from templates that training never sees"
    _head(console, "1/4", f" {counts}: {folder}/*.jsonl")

    from srm.memory import keep_freed_memory
    from srm.training import RewardConfig

    config = _config(settings, folder)
    assert isinstance(config, RewardConfig)
    if config.device.type == "cpu":
        keep_freed_memory()
    model = _load(settings, config)
    _head(console, "2/4", f" {settings.model_name_or_path} on {config.device.type}, {_precision(config)}")
    before = _measure(model, test, config, console, "Before training")
    console.print(f"  accuracy before training {before.accuracy:.1%}: the head starts at zero, so that every reward ties")

    _head(console, "3/4", " Training")
    _train(model, config, folder, console)
    _head(console, "4/4", " Measuring")
    after = _measure(model, test, config, console, "After training")
    seconds = time.perf_counter() - started
    _write_report(settings, folder, before, after, seconds)
    _show(console, folder, test, before, after)
    console.print(f"{seconds / 60:.1f} minutes in all.")
    return after


def _head(console: Console, bold: str, rest: str) -> None:
    from rich.text import Text

    from srm.views.visible import visible

    console.print(Text.assemble((bold, "bold"), visible(rest)))


def _claim(settings: DemoSettings) -> Path:
    from srm.runs.lock import lock_file

    folder = settings.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    if any(path != lock_file(folder) for path in folder.iterdir()) and not (folder / _MARKER).is_file():
        raise UserError(f"--output_dir {folder} is not empty and was not written by the demo. Name another folder, or empty this one.")
    (folder / _MARKER).write_text(json.dumps({"settings": _plain(settings)}, indent=2) + "\n", encoding="utf-8")
    return folder


def _write_pairs(settings: DemoSettings, folder: Path) -> tuple[list[SyntheticPair], list[SyntheticPair]]:
    from srm.data.synthetic import generate_pairs, write_jsonl

    train = generate_pairs(settings.num_pairs, split="train", seed=settings.seed)
    test = generate_pairs(settings.num_eval_pairs, split="test", seed=settings.seed)
    write_jsonl(train, folder / "train.jsonl")
    write_jsonl(test, folder / "test.jsonl")
    return train, test


def _config(settings: DemoSettings, folder: Path) -> RewardConfig:
    import torch

    from srm.training import RewardConfig

    steps = -(-settings.num_pairs // settings.batch_size)
    return RewardConfig(
        output_dir=str(folder / "model"),
        seed=settings.seed,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        warmup_steps=max(1, steps // 10),
        # None leaves the choice on a GPU to RewardConfig.
        bf16=None if torch.accelerator.is_available() else cpu_is_fast_at_bf16(),
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def cpu_is_fast_at_bf16() -> bool:
    """Whether the CPU multiplies bf16 matrices in hardware; elsewhere bf16 is slower than float32."""
    try:
        words = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return False
    return bool(words & {"amx_bf16", "avx512_bf16"})


def _precision(config: RewardConfig) -> str:
    if config.device.type != "cpu":
        return "bf16 autocast" if config.bf16 else "float32"
    return (
        "bf16 autocast, which this CPU has hardware for" if config.bf16 else "float32, as this CPU has no hardware for bf16: twice as slow"
    )


def _load(settings: DemoSettings, config: RewardConfig) -> SentenceRewardModel:
    import torch
    from transformers import set_seed

    from srm import SentenceRewardModel

    set_seed(settings.seed)
    model = SentenceRewardModel.from_backbone(settings.model_name_or_path)
    # Scored before the trainer, which would move it, has it.
    torch.nn.Module.to(model, config.device)
    return model


def _measure(
    model: SentenceRewardModel, pairs: Sequence[SyntheticPair], config: RewardConfig, console: Console, what: str
) -> GeneratedResult:
    from srm.evaluation.generated import measure

    with console.status(f"{what}: scoring {2 * len(pairs)} answers"), _autocast(config):
        return measure(model, pairs)


def _autocast(config: RewardConfig) -> AbstractContextManager[Any]:
    import torch

    return torch.autocast(config.device.type, dtype=torch.bfloat16, enabled=bool(config.bf16))


def _train(model: SentenceRewardModel, config: RewardConfig, folder: Path, console: Console) -> None:
    from transformers import PrinterCallback

    from srm.cli.progress import ProgressBar
    from srm.data import encode_comparisons, read_comparisons
    from srm.training import SentenceRewardTrainer

    # Through the same reader as a user's own file.
    comparisons = read_comparisons(str(folder / "train.jsonl"))
    rows, _ = encode_comparisons(
        comparisons, model.encoder, max_length=config.max_length, positions=model.config.max_positions, progress=False
    )
    with ProgressBar(console) as bar:
        trainer = SentenceRewardTrainer(model, config, train_dataset=rows, callbacks=[bar])
        trainer.remove_callback(PrinterCallback)
        # The folder is the demo's, whose last run may have left a model.
        trainer.own(config.output_dir)
        trainer.train()
    trainer.save_model()


def _write_report(settings: DemoSettings, folder: Path, before: GeneratedResult, after: GeneratedResult, seconds: float) -> None:
    report = {"settings": _plain(settings), "seconds": round(seconds, 1), "before": before.to_dict(), "after": after.to_dict()}
    (folder / _MARKER).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _plain(settings: DemoSettings) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(settings).items()}


def _show(console: Console, folder: Path, test: Sequence[SyntheticPair], before: GeneratedResult, after: GeneratedResult) -> None:
    from srm.views.terminal import render_pair, save_svg

    index = _typical(after)
    pair, (chosen, rejected) = test[index], after.scored[index]
    view = render_pair(pair.prompt, chosen, rejected, damaged=pair.to_row()["damaged"])
    console.print()
    _head(console, "One held-out pair", ", the one with the median margin")
    console.print(view)
    save_svg(view, folder / "pair.svg", title="A scored pair")
    console.print()
    console.print(_table(before, after))
    console.print(
        f"\nModel: {folder / 'model'}   report: {folder / _MARKER}   picture: {folder / 'pair.svg'}\n"
        "Score answers with it:\n"
        f"  {_command('srm-score')} --model {folder / 'model'} --input {folder / 'test.jsonl'} --output {folder / 'scores.jsonl'}\n"
        "Train on pairs of your own:\n"
        f"  {_command('srm-train')} --model_name_or_path smollm2-135m --dataset_name YOUR_PAIRS.jsonl --output_dir outputs/reward",
        soft_wrap=True,
    )


def _typical(result: GeneratedResult) -> int:
    """The pair with the median margin: neither the best case nor the worst."""
    order = sorted(range(len(result.scored)), key=lambda index: result.scored[index][0].reward - result.scored[index][1].reward)
    return order[len(order) // 2]


def _table(before: GeneratedResult, after: GeneratedResult) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"{len(after.scored)} held-out pairs", title_justify="left")
    table.add_column("")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    table.add_row("accuracy", f"{before.accuracy:.1%}", Text(f"{after.accuracy:.1%}", style="bold"))
    table.add_row("  by the mean value of its sentences", f"{before.mean_value_accuracy:.1%}", f"{after.mean_value_accuracy:.1%}")
    table.add_row("  if the longer answer won", f"{after.longer_wins:.1%}", f"{after.longer_wins:.1%}", end_section=True)
    _add_credit(table, "AUC of sentence reward against the bad sentences", before.credit.overall, after.credit.overall, bold=True)
    for kind, summary in after.credit.by_kind.items():
        _add_credit(table, f"  {kind.replace('_', ' ')} ({summary.num_bad})", before.credit.by_kind[kind], summary)
    if after.credit.several is not None and before.credit.several is not None:
        _add_credit(table, f"  several in one answer ({after.credit.several.num_bad})", before.credit.several, after.credit.several)
    overall = after.credit.overall
    table.add_section()
    chance = f"lowest sentence is bad (by chance {overall.chance_hit_rate:.0%})"
    table.add_row(chance, f"{before.credit.overall.hit_rate:.1%}", f"{overall.hit_rate:.1%}")
    return table


def _add_credit(table: Any, name: str, before: CreditSummary, after: CreditSummary, *, bold: bool = False) -> None:
    from rich.text import Text

    table.add_row(name, f"{before.auc:.3f}", Text(f"{after.auc:.3f}", style="bold" if bold else ""))


def _command(name: str) -> str:
    """How to call an installed command from here: `make demo` runs in a virtual environment that the shell is not in."""
    script = Path(sys.executable).parent / name
    if not script.is_file():
        return name
    return str(script.relative_to(Path.cwd())) if script.is_relative_to(Path.cwd()) else str(script)


if __name__ == "__main__":
    sys.exit(main())
