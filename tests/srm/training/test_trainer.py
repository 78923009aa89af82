"""Loss, gradients, logs and evaluation against plain loops over one pair at a time."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import logsigmoid
from transformers import TrainerCallback

from srm.data import EncodedComparison
from srm.errors import UserError
from srm.modeling import SentenceRewardModel
from srm.packing import PromptGroup, ResponseIds, pack
from srm.training import SentenceRewardTrainer
from srm.training.sampling import GlobalBatchSampler


def plain_loss(
    model: SentenceRewardModel, row: EncodedComparison, smoothing: float = 0.0, centering: float = 0.0, terms: tuple | None = None
) -> torch.Tensor:
    """The loss of one row, each response run by itself, unpacked.

    terms: weights of the mean value's pair loss and of the price on sentence rewards; None stands for the trainer's defaults.
    """
    of_mean, price = terms or ((1.0, 0.01) if model.config.granularity == "sentence" else (0.0, 0.0))
    rewards, means, squares = [], [], []
    for response in row.responses:
        ends = range(len(response.ids)) if model.config.granularity == "token" else response.sentence_ends.tolist()
        group = PromptGroup(prompt_ids=row.prompt_ids.tolist(), responses=[ResponseIds(ids=response.ids.tolist(), sentence_ends=ends)])
        output = model(pack([group], mode="none", pad_token_id=0))
        rewards.append(output.reward[0])
        means.append(sum(output.value[1:]) / (len(output.value) - 1))
        squares.append(sum(reward**2 for reward in output.sentence_reward) / len(output.sentence_reward))
    losses = []
    for better, worse, margin in row.pairs:
        loss = centering * (rewards[better] + rewards[worse]) ** 2 + price * (squares[better] + squares[worse]) / 2
        differences = (rewards[better] - rewards[worse] - (margin or 0.0), means[better] - means[worse])
        for weight, difference in zip((1.0, of_mean), differences, strict=True):
            loss = loss - weight * ((1 - smoothing) * logsigmoid(difference) + smoothing * logsigmoid(-difference))
        losses.append(loss)
    return sum(losses) / len(losses)


def plain_descent(model: SentenceRewardModel, rows: list[EncodedComparison], batch_size: int, rate: float, seed: int) -> list[float]:
    """Plain gradient descent over one epoch's global batches; `model` is changed, each step's loss returned."""
    losses = []
    for (batch,) in GlobalBatchSampler(rows, packing="shared", batch_size=batch_size, seed=seed):
        loss = sum(plain_loss(model, rows[index]) for index in batch) / len(batch)
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for weight in model.parameters():
                weight -= rate * weight.grad
        losses.append(loss.item())
    return losses


def assert_same_weights(model: SentenceRewardModel, other: SentenceRewardModel, tolerance: float) -> None:
    theirs = dict(other.named_parameters())
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight, theirs[name], rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}")


SGD = {"optim": "sgd", "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "seed": 5}
SGD |= {"learning_rate": 0.01, "head_learning_rate": 0.01, "attention_learning_rate": 0.01}


@pytest.fixture
def ranked(rows: list[EncodedComparison]) -> list[EncodedComparison]:
    """Rows with margins and rankings of three among them; margins and weights (1/2) are exact in fp32."""
    third = rows[1].responses[1]
    ranking = replace(rows[0], responses=(*rows[0].responses, third), pairs=((0, 1, 0.25), (0, 2, None)))
    return [ranking, replace(rows[1], pairs=((0, 1, 0.5),)), *rows[2:]]


@pytest.mark.parametrize(
    ("per_device", "steps", "packing"),
    [(8, 1, "shared"), (2, 4, "shared"), (4, 2, "packed"), (8, 1, "none"), (3, 3, "shared")],
)
def test_an_epoch_is_plain_gradient_descent(new_model, ranked, make_trainer, per_device, steps, packing):
    """22 rows: the last global batch is short. fp64, so that equal means equal."""
    model = new_model(awake=True).double()
    expected = copy.deepcopy(model)
    losses = plain_descent(expected, ranked, per_device * steps, rate=0.01, seed=5)
    trainer = make_trainer(model, ranked, per_device_train_batch_size=per_device, gradient_accumulation_steps=steps, packing=packing, **SGD)
    trainer.train()
    # Trainer keeps its running loss in fp32: the only rounding.
    assert_same_weights(trainer.reward_model, expected, 1e-6)
    logged = [entry["objective"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged == pytest.approx(losses, rel=1e-6)


@pytest.mark.parametrize("config", [{}, {"granularity": "response"}], ids=["sentence", "response"])
@pytest.mark.parametrize("terms", [None, (0.0, 0.0), (0.5, 0.3)])
def test_every_term_reaches_the_loss(new_model, ranked, make_trainer, config, terms):
    model = new_model(awake=True, **config).double()
    with torch.no_grad():
        expected = sum(plain_loss(model, row, smoothing=0.1, centering=0.2, terms=terms).item() for row in ranked[:8]) / 8
        pair_loss = sum(plain_loss(model, row, smoothing=0.1, terms=(0.0, 0.0)).item() for row in ranked[:8]) / 8
    trainer = make_trainer(
        model,
        ranked[:8],
        label_smoothing_factor=0.1,
        center_rewards_coefficient=0.2,
        mean_value_coefficient=terms and terms[0],
        sentence_reward_l2=terms and terms[1],
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
    )
    trainer.train()
    logs = trainer.state.log_history[0]
    assert logs["loss"] == pytest.approx(pair_loss, rel=1e-6)
    assert logs["objective"] == pytest.approx(expected, rel=1e-6)
    weights = trainer.args.sentence_terms(model.config.granularity)
    parts = {"mean_value_loss": weights["mean_value_coefficient"], "sentence_reward_penalty": weights["sentence_reward_l2"]}
    added = sum(weight * logs.get(name, 0.0) for name, weight in (parts | {"centering_penalty": 0.2}).items())
    assert logs["loss"] + added == pytest.approx(expected, rel=1e-6)
    assert {name for name, weight in parts.items() if weight} == parts.keys() & logs.keys()


@pytest.mark.parametrize(("packing", "limit", "steps"), [("shared", 1, 1), ("shared", 200, 2), ("packed", 300, 1), ("shared", 10_000, 1)])
def test_a_limit_on_tokens_changes_nothing_but_the_passes(new_model, ranked, make_trainer, packing, limit, steps):
    """Gradients are those of the global batch, run one response at a time."""
    model = new_model(awake=True).double()
    expected = copy.deepcopy(model)
    losses = plain_descent(expected, ranked, 8, rate=0.01, seed=5)
    settings = {"per_device_train_batch_size": 8 // steps, "gradient_accumulation_steps": steps, "packing": packing}
    trainer = make_trainer(model, ranked, tokens_per_batch=limit, **settings, **SGD)
    passes = []
    model.register_forward_pre_hook(lambda module, args, kwargs: passes.append(kwargs["batch"]), with_kwargs=True)
    trainer.train()
    assert_same_weights(trainer.reward_model, expected, 1e-6)
    logged = [entry["objective"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged == pytest.approx(losses, rel=1e-6)
    longest = max(_row_tokens(row, packing) for row in ranked)
    assert max(batch.num_tokens for batch in passes) <= max(limit, longest)
    # Each row alone, several passes a slot, and as without a limit.
    if limit in (1, 10_000):
        assert len(passes) == {1: len(ranked), 10_000: 3}[limit]
    else:
        assert 3 * steps < len(passes) < len(ranked)


def _row_tokens(row: EncodedComparison, packing: str) -> int:
    prompts = 1 if packing == "shared" else len(row.responses)
    return prompts * len(row.prompt_ids) + sum(len(response.ids) for response in row.responses)


def test_gradient_checkpointing_changes_nothing(new_model, rows, make_trainer):
    models = []
    for checkpointing in (False, True):
        trainer = make_trainer(new_model(awake=True), rows, gradient_checkpointing=checkpointing, max_steps=2, **SGD)
        trainer.train()
        assert trainer.reward_model.backbone.layers[0].gradient_checkpointing == checkpointing
        models.append(trainer.reward_model)
    assert_same_weights(*models, tolerance=1e-6)


@pytest.mark.parametrize(
    "variant",
    [
        {"granularity": "response"},
        {"granularity": "token"},
        {"pooling": "mean"},
        {"pooling": "sum", "difference": False},
        {"pooling": "last", "include_prompt": False},
        {"rope_theta": None},
        {"boundary_token": "<END>"},
    ],
    ids=str,
)
def test_every_variant_takes_a_step_downhill(new_model, encode, pairs_file, make_trainer, variant):
    model = new_model(awake=True, **variant).double()
    rows = encode(model, pairs_file)[:8]
    expected = copy.deepcopy(model)
    plain_descent(expected, rows, 8, rate=0.01, seed=5)
    before = model.get_input_embeddings().weight.detach().clone()
    trainer = make_trainer(model, rows, per_device_train_batch_size=8, **SGD)
    trainer.train()
    assert_same_weights(trainer.reward_model, expected, 1e-6)
    assert not torch.equal(model.get_input_embeddings().weight, before)


def test_bf16_autocast_trains(new_model, rows, make_trainer):
    trainer = make_trainer(new_model(awake=True), rows, bf16=True, max_steps=2)
    trainer.train()
    assert all(weight.dtype == torch.float32 and weight.isfinite().all() for weight in trainer.reward_model.parameters())


def test_evaluation_is_exact_whatever_the_batches(new_model, ranked, make_trainer):
    model = new_model(awake=True).double()
    with torch.no_grad():
        expected = sum(plain_loss(model, row, terms=(0.0, 0.0)).item() for row in ranked) / len(ranked)
        objective = sum(plain_loss(model, row).item() for row in ranked) / len(ranked)
    for size in (3, 8, 22):
        trainer = make_trainer(model, None, eval_dataset=ranked, per_device_eval_batch_size=size)
        metrics = trainer.evaluate()
        assert metrics["eval_loss"] == pytest.approx(expected, rel=1e-6)
        assert {"eval_accuracy", "eval_margin", "eval_chosen_reward_mean", "eval_attention_entropy"} <= set(metrics)
        assert metrics["eval_objective"] == pytest.approx(objective, rel=1e-6)


@pytest.mark.parametrize(("packing", "limit"), [("shared", 1), ("shared", 200), ("packed", 300)])
def test_a_limit_on_tokens_holds_in_evaluation_and_changes_no_metric(new_model, ranked, make_trainer, packing, limit):
    model = new_model(awake=True).double()
    settings = {"eval_dataset": ranked, "per_device_eval_batch_size": 8, "packing": packing}
    expected = make_trainer(model, None, **settings).evaluate()
    trainer = make_trainer(model, None, tokens_per_batch=limit, **settings)
    passes = []
    model.register_forward_pre_hook(lambda module, args, kwargs: passes.append(kwargs["batch"].num_tokens), with_kwargs=True)
    metrics = trainer.evaluate()
    assert max(passes) <= max(limit, *(_row_tokens(row, packing) for row in ranked))
    assert 3 < len(passes) <= len(ranked)
    # Times are the run's, and what packing saves is counted against each pass's own padding.
    told = {name for name in expected if not any(word in name for word in ("time", "per_second", "saved"))}
    assert {"eval_loss", "eval_accuracy", "eval_chosen_reward_std", "eval_sentences_per_response"} <= told
    assert {name: metrics[name] for name in told} == pytest.approx({name: expected[name] for name in told}, rel=1e-6)


def test_training_and_evaluation_log_the_same_loss(new_model, rows, make_trainer):
    """A head that is zero knows nothing, which costs log 2 a pair, whatever the recipe adds; and the run's mean is of that loss."""
    trainer = make_trainer(new_model(), rows, eval_dataset=rows, center_rewards_coefficient=0.1, max_steps=1, learning_rate=0.0)
    before = trainer.evaluate()
    result = trainer.train()
    (logs,) = (entry for entry in trainer.state.log_history if "loss" in entry)
    for loss in (before["eval_loss"], logs["loss"], result.metrics["train_loss"], logs["mean_value_loss"], before["eval_mean_value_loss"]):
        assert loss == pytest.approx(math.log(2), rel=1e-6)
    assert logs["objective"] == pytest.approx(before["eval_objective"]) == pytest.approx(2 * math.log(2), rel=1e-6)
    assert logs["sentence_reward_penalty"] == logs["centering_penalty"] == before["eval_centering_penalty"] == 0


def test_several_evaluation_sets(new_model, rows, make_trainer):
    trainer = make_trainer(new_model(awake=True), None, eval_dataset={"one": rows[:5], "two": rows[5:]})
    metrics = trainer.evaluate()
    assert metrics["eval_one_loss"] != metrics["eval_two_loss"]
    assert trainer.predict(rows[:5]).metrics["test_loss"] == pytest.approx(metrics["eval_one_loss"])


def test_each_epoch_has_an_order_of_its_own(new_model, rows, make_trainer):
    trainer = make_trainer(new_model(), rows, num_train_epochs=3)
    seen: list[str] = []
    collate = trainer._collator.collate
    trainer._collator.collate = lambda comparisons: seen.extend(row.where for row in comparisons) or collate(comparisons)
    trainer.train()
    epochs = [seen[start : start + len(rows)] for start in range(0, len(seen), len(rows))]
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert all(set(epoch) == {row.where for row in rows} for epoch in epochs)


def test_a_filler_runs_and_counts_nothing(new_model, rows, make_trainer):
    trainer = make_trainer(new_model(awake=True), rows)
    total = torch.tensor(2.0)
    row, filler = trainer._collator([[(rows[0], True)], [(rows[0], False)]])
    assert (row["num_items"], filler["num_items"]) == (1.0, 0.0)
    assert trainer.compute_loss(trainer.model, row, num_items_in_batch=total) > 0
    expected = trainer._train_metrics._sum.clone()
    loss = trainer.compute_loss(trainer.model, filler, num_items_in_batch=total)
    assert loss == 0
    # In the graph all the same: with DDP, every process must take part in the backward pass.
    loss.backward()
    assert all(weight.grad is not None and not weight.grad.any() for weight in trainer.model.parameters())
    assert torch.equal(trainer._train_metrics._sum, expected)


def test_logs_cover_every_metric_and_only_their_window(new_model, rows, make_trainer):
    model = new_model()
    trainer = make_trainer(model, rows, logging_steps=2, num_train_epochs=1)
    trainer.train()
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in steps] == [2, 4, 6]
    names = "accuracy margin chosen_reward_mean chosen_reward_std rejected_reward_mean rejected_reward_std sentences_per_response"
    names += " attention_entropy attention_entropy_normalized tokens_per_second tokens_saved_by_packing tokens_saved_by_sharing"
    for entry in steps:
        assert set(names.split()) <= set(entry)
        assert all(math.isfinite(entry[name]) for name in names.split())
    # Zero start: uniform attention, and before the first step no reward at all.
    assert steps[0]["attention_entropy_normalized"] == pytest.approx(1, abs=1e-3)


def test_the_head_has_its_own_learning_rates(new_model, rows, make_trainer):
    model = new_model()
    trainer = make_trainer(model, rows, learning_rate=1e-4, head_learning_rate=3e-3, attention_learning_rate=7e-5, weight_decay=0.1)
    optimizer = trainer.create_optimizer()
    names = {id(weight): name for name, weight in model.named_parameters()}
    rates = {names[id(weight)]: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for weight in group["params"]}
    assert set(rates) == set(names.values())
    for name, (rate, decay) in rates.items():
        assert rate == (1e-4 if name.startswith("backbone.") else 3e-3 if name.startswith("head.value.") else 7e-5)
        assert decay == (0.0 if name.endswith("bias") or "norm" in name else 0.1)


def test_dropout_is_off_unless_asked_for(new_model, rows, make_trainer):
    for disable in (True, False):
        model = new_model()
        model.backbone.layers[0].mlp.dropout = torch.nn.Dropout(0.5)
        model.backbone.layers[0].self_attn.attention_dropout = 0.5
        make_trainer(model, rows, disable_dropout=disable)
        layer = model.backbone.layers[0]
        assert (layer.mlp.dropout.p, layer.self_attn.attention_dropout) == ((0.0, 0.0) if disable else (0.5, 0.5))


class Poison(TrainerCallback):
    """Makes a weight NaN at the end of a step."""

    def __init__(self, step: int, value: float = math.nan) -> None:
        self.step, self.value = step, value

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.step:
            with torch.no_grad():
                model.head.value.weight.fill_(self.value)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_the_run(new_model, rows, make_trainer, tmp_path, value):
    model = new_model()
    trainer = make_trainer(model, rows, callbacks=[Poison(4, value)], save_strategy="steps", save_steps=3)
    with pytest.raises(UserError, match=r"the loss became (nan|inf) at step 5\. Lower --learning_rate"):
        trainer.train()
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-3"]
    assert torch.isfinite(SentenceRewardModel.from_pretrained(tmp_path / "run" / "checkpoint-3").head.value.weight).all()


def test_weights_that_are_no_numbers_are_never_saved(new_model, rows, make_trainer, tmp_path):
    model = new_model()
    trainer = make_trainer(model, rows, callbacks=[Poison(3)], save_strategy="steps", save_steps=1)
    with pytest.raises(UserError, match="weights became NaN or infinite before step 3, so nothing was saved"):
        trainer.train()
    assert sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]
    with pytest.raises(UserError, match="nothing was saved"):
        trainer.save_model()


def test_a_tiny_task_is_learnt(new_model, encode, write_pairs, tmp_path, make_trainer):
    model = new_model()
    train, test = encode(model, write_pairs(tmp_path / "train.jsonl", 96)), encode(model, write_pairs(tmp_path / "test.jsonl", 48, seed=1))
    trainer = make_trainer(model, train, eval_dataset=test, learning_rate=3e-3, num_train_epochs=3, per_device_train_batch_size=8)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert before["eval_loss"] == pytest.approx(math.log(2), abs=1e-3)
    assert before["eval_accuracy"] == pytest.approx(0.5, abs=0.01)
    assert after["eval_accuracy"] >= 0.95
    assert after["eval_loss"] < 0.3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "there is no row to train on"),
        ({"dataloader_drop_last": True, "per_device_train_batch_size": 64}, "fewer than one global batch of 64"),
    ],
)
def test_too_few_rows_are_named(new_model, rows, make_trainer, settings, message):
    model = new_model()
    with pytest.raises(UserError, match=message):
        make_trainer(model, rows if settings else [], **settings).train()


def test_other_models_are_refused(rows, make_trainer):
    with pytest.raises(TypeError, match="must be a SentenceRewardModel"):
        make_trainer(torch.nn.Linear(2, 2), rows)


def test_a_model_without_a_tokenizer_is_refused(new_model, rows, make_trainer):
    model = new_model()
    model.tokenizer = None
    with pytest.raises(UserError, match="has no tokenizer"):
        make_trainer(model, rows)


def test_trainer_is_transformers_trainer():
    from transformers import Trainer

    assert issubclass(SentenceRewardTrainer, Trainer)


@pytest.mark.parametrize(("config", "watched"), [({}, 22), ({"pooling": "mean"}, 0), ({"granularity": "response"}, 0)])
def test_every_pair_is_watched_where_attention_ranks(new_model, rows, make_trainer, monkeypatch, config, watched):
    seen = []
    monkeypatch.setattr("srm.training.credit_watch.CreditWatch.add", lambda self, *sums: seen.append(sums))
    trainer = make_trainer(new_model(awake=True, **config), rows, per_device_train_batch_size=4, logging_steps=2, **SGD)
    trainer.train()
    assert sum(weight for weight, *_ in seen) == watched
    if watched:
        logs = [entry for entry in trainer.state.log_history if "mean_value_accuracy" in entry]
        for (weight, correct, mean_value_correct, step), entry in zip(seen, logs, strict=True):
            assert (step, correct / weight, mean_value_correct / weight) == (entry["step"], entry["accuracy"], entry["mean_value_accuracy"])
