"""Flags, a YAML file, and the file that documents a run."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from srm.errors import UserError
from srm.runs.settings import settings_changes, to_yaml
from srm.training.arguments import ModelArguments, RewardConfig, parse_arguments

NEEDED = ["--model_name_or_path", "m", "--dataset_name", "d.jsonl", "--output_dir", "o"]


@pytest.fixture
def config(tmp_path: Path):
    def write(text: str) -> list[str]:
        path = tmp_path / "train.yaml"
        path.write_text(text)
        return ["--config", str(path)]

    return write


def test_defaults_that_differ_from_training_arguments():
    _, _, training = parse_arguments(NEEDED)
    assert (training.learning_rate, training.resolved_head_learning_rate) == (2e-5, 2e-4)
    assert (training.num_train_epochs, training.logging_steps, training.logging_nan_inf_filter) == (1.0, 10, False)
    assert (training.max_length, training.overlong, training.packing) == (1024, "drop", "shared")


def test_names_of_trl_and_transformers_are_understood():
    flags = "--per_device_train_batch_size 2 --gradient-accumulation-steps 4 --center_rewards_coefficient 0.01 --disable_dropout false"
    model, _, training = parse_arguments(
        [*NEEDED, *flags.split(), "--use_peft", "--lora_r", "4", "--lora_target_modules", "q_proj", "v_proj"]
    )
    assert (training.per_device_train_batch_size, training.gradient_accumulation_steps) == (2, 4)
    assert (training.center_rewards_coefficient, training.disable_dropout) == (0.01, False)
    assert (model.use_peft, model.lora_r, model.lora_target_modules) == (True, 4, ["q_proj", "v_proj"])


def test_switches_stand_alone_or_with_a_value():
    _, _, training = parse_arguments([*NEEDED, "--bf16", "--gradient_checkpointing", "--use_cpu"])
    assert training.bf16 is True
    assert training.gradient_checkpointing is True
    assert training.gradient_checkpointing_kwargs == {"use_reentrant": False}
    assert parse_arguments([*NEEDED, "--bf16", "false"])[2].bf16 is False
    assert parse_arguments([*NEEDED, "--resume_from_checkpoint"])[2].resume_from_checkpoint == "true"


def test_none_unsets_an_optional_number():
    model, _, training = parse_arguments([*NEEDED, "--rope_theta", "none", "--max_length=null"])
    assert model.rope_theta is None
    assert training.max_length is None
    # A value of its own for other settings.
    assert parse_arguments([*NEEDED, "--report_to", "none"])[2].report_to == []


def test_flags_win_over_the_file_and_the_file_over_defaults(config):
    argv = config(
        "learning_rate: 1e-5\npooling: mean\nrope_theta: null\nbf16: true\n"
        "lr_scheduler_type: polynomial\nlr_scheduler_kwargs: {power: 2}\nlora_target_modules: [q_proj, v_proj]\n"
    )
    model, _, training = parse_arguments([*NEEDED, *argv, "--pooling", "last", "--bf16", "false"])
    assert (model.pooling, model.rope_theta, model.lora_target_modules) == ("last", None, ["q_proj", "v_proj"])
    assert (training.learning_rate, training.lr_scheduler_kwargs, training.bf16) == (1e-5, {"power": 2}, False)


def test_everything_may_come_from_the_file(config):
    model, data, training = parse_arguments(config("model_name_or_path: m\ndataset_name: d\noutput_dir: o\n"))
    assert (model.model_name_or_path, data.dataset_name, training.output_dir) == ("m", "d", "o")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--lerning_rate", "1"], r"unknown argument '--lerning_rate'; did you mean --learning_rate\?"),
        (["--max-pair=3"], r"did you mean --max_pairs\?"),
        (["stray"], "unknown argument 'stray'"),
        (["--learning_rate", "fast"], "--learning_rate.*invalid float value: 'fast'"),
        (["--pooling", "median"], "--pooling: invalid choice: 'median'"),
        (["--bf16", "--fp16"], "At most one of fp16 and bf16"),
        (["--label_smoothing_factor", "0.5"], "--label_smoothing_factor must be at least 0 and below 0.5, got 0.5"),
        (["--max_length", "0"], "--max_length must be at least 2 and at most 2,147,483,647, got 0"),
        (["--tokens_per_batch", "0"], "--tokens_per_batch must be at least 1 and at most .*, got 0"),
        (["--max_pairs", "0"], "--max_pairs must be at least 1 and at most .*, got 0"),
        (["--center_rewards_coefficient", "-1"], "must be at least 0"),
        (["--sentence_reward_l2", "-1"], "must be at least 0"),
        (["--mean_value_coefficient", "-1"], "must be at least 0"),
        (["--train_sampling_strategy", "batch_rebalance"], "random.+sequential.+group_by_length"),
        (["--early_stopping_patience", "2"], "needs --load_best_model_at_end"),
        (["--segmenter_config", "{oops"], "--segmenter_config must be a JSON object"),
        (["--accelerator_config", '{"split_batches": true}'], "split_batches"),
        (["--config"], "--config needs a YAML file"),
        (["--config", "/nowhere.yaml"], "/nowhere.yaml: cannot be read"),
    ],
)
def test_wrong_flags_are_one_line(argv, message):
    with pytest.raises(UserError, match=message) as caught:
        parse_arguments([*NEEDED, *argv])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", ["model_name_or_path", "dataset_name"])
def test_what_is_missing_is_named(missing):
    position = NEEDED.index(f"--{missing}")
    with pytest.raises(UserError, match=f"--{missing} is missing"):
        parse_arguments(NEEDED[:position] + NEEDED[position + 2 :])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learnin_rate: 1e-5\n", r"train.yaml: unknown setting 'learnin_rate'; did you mean learning_rate\?"),
        ("learning_rate: fast\n", r"train.yaml: .*invalid float value: 'fast'"),
        ("pooling: median\n", r"train.yaml: .*invalid choice: 'median'"),
        ("learning_rate: [1, 2]\n", "learning_rate takes one value"),
        ("pooling: [mean\n", "train.yaml line 2: not valid YAML"),
        ("- pooling\n", "must hold `name: value` lines, got list"),
        ("", "must hold `name: value` lines, got NoneType"),
        ("seed: 1\nseed: 2\n", "train.yaml line 1: not valid YAML .'seed' stands there twice."),
        ("a: &a [x]\nb: *a\n", "train.yaml line 2: not valid YAML .aliases are not taken."),
        ("a: &a {x: 1}\nb: {<<: *a}\n", "aliases are not taken"),
        ("a: " + "[" * 50_000, "nested too deeply"),
        ("a: " + "{a: " * 3000 + "1" + "}" * 3000, "nested too deeply"),
        ("a: b\n" * 100_000, "is larger than 200 kB"),
        ("seed: " + "1" * 5000, "not valid YAML .Exceeds the limit|not valid YAML"),
        ("seed: 2020-99-99\n", "not valid YAML .month must be"),
        ("seed: !!python/object/apply:os.system [true]\n", "not valid YAML .could not determine a constructor"),
        ("seed: !!binary x\n", "not valid YAML|invalid int value"),
        ("? [a]\n: b\n", "not valid YAML|unknown setting"),
        ("seed: {a: 1}\n", "invalid int value"),
        ("seed: .nan\n", "invalid int value: 'nan'"),
        ("learning_rate: .nan\n", "--learning_rate must be at least 0 and at most .*, got nan"),
        ("learning_rate: -.inf\n", "--learning_rate must be at least 0"),
        ("lr_scheduler_kwargs: {a: 2020-01-01}\n", "lr_scheduler_kwargs must hold text, numbers and lists"),
        ("eval_dataset_name: ''\n", "the value after .*eval_dataset_name is empty"),
        ("lora_target_modules: [a, '']\n", "the value after .*lora_target_modules is empty"),
        ('dataset_name: "a\\0b"\n', "dataset_name holds a NUL"),
        ("\x00\x01", "not valid YAML"),
    ],
)
def test_wrong_files_are_named(config, text, message):
    with pytest.raises(UserError, match=message):
        parse_arguments([*NEEDED, *config(text)])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe\x00", "not valid YAML"),
        (bytes(range(256)) * 4, "not valid YAML"),
        (None, "is no regular file"),
    ],
)
def test_files_that_are_no_settings(content: bytes | None, message: str, tmp_path: Path):
    path = tmp_path / "x.yaml"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        parse_arguments([*NEEDED, "--config", str(path)])


def test_a_bomb_takes_no_time(config):
    lines = ["a0: &a0 [x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    started = time.perf_counter()
    with pytest.raises(UserError, match="aliases are not taken"):
        parse_arguments([*NEEDED, *config("\n".join(lines))])
    assert time.perf_counter() - started < 1


def test_a_record_that_was_changed_is_one_line(tmp_path: Path):
    settings = parse_arguments(NEEDED)
    record = tmp_path / "srm_train.yaml"
    for text, message in (("seed: [", "line 1: not valid YAML"), ("- 1", "was changed"), ("", "was changed")):
        record.write_text(text)
        with pytest.raises(UserError, match=f"srm_train.yaml.*{message}"):
            list(settings_changes(record, *settings, ignored=()))
    record.write_text("1: 2\nattention_size: 7\n")
    assert "attention_size was 7, is 256" in list(settings_changes(record, *settings, ignored=()))


def test_settings_that_transformers_chokes_on_are_one_line():
    unknown = ["--lr_scheduler_type", "cosine", "--lr_scheduler_kwargs", '{"min_lr": 1}']
    for flags in (unknown, ["--lr_scheduler_kwargs", "{"], ["--deepspeed", "nowhere.json"], ["--fsdp", "nonsense"], ["--optim", "sgdd"]):
        with pytest.raises(UserError) as caught:
            parse_arguments([*NEEDED, *flags])
        assert "\n" not in str(caught.value)


def test_the_resolved_settings_read_back_the_same(config):
    flags = "--gradient_checkpointing --rope_theta none --max_length none --warmup_steps 0.1 --use_peft --lora_target_modules q_proj"
    settings = parse_arguments([*NEEDED, *flags.split(), "--segmenter_config", '{"max_chars": 300}', "--report_to", "tensorboard"])
    text = to_yaml(*settings)
    again = parse_arguments(config(text))
    assert to_yaml(*again) == text
    assert again[:2] == settings[:2]
    assert again[2].to_dict() == settings[2].to_dict()


def test_tokens_are_not_written():
    assert "secret" not in to_yaml(*parse_arguments([*NEEDED, "--hub_token", "secret"]))


def test_the_variant_is_what_the_config_takes():
    from srm.modeling import SentenceRewardConfig

    variant = ModelArguments(pooling="mean", segmenter="newline", segmenter_config='{"max_chars": 300}').variant()
    config = SentenceRewardConfig(**variant)
    assert (config.pooling, config.segmenter) == ("mean", {"name": "newline", "max_chars": 300})
    assert ModelArguments(pooling="mean").changed_variant() == {"pooling": "mean"}


@pytest.mark.parametrize("name", ["train_full", "train_lora", "paper"])
def test_the_examples_are_understood(name):
    config = Path(__file__).parents[3] / "examples" / "configs" / f"{name}.yaml"
    model, _, training = parse_arguments(["--config", str(config), "--dataset_name", "d", "--output_dir", "o"])
    assert model.model_name_or_path
    # The paper's has one rate for all weights.
    assert training.head_learning_rate == (3e-6 if name == "paper" else 10 * training.learning_rate)


def test_head_learning_rate_can_be_set():
    assert RewardConfig(output_dir="o", head_learning_rate=0.5).resolved_head_learning_rate == 0.5
