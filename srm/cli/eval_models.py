"""What `--model` of srm-eval names: what it is called, which rows it can read, what its scores depend on, and how it is loaded."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srm.cli.scoring import device_of, load_model, model_identity, row_check
from srm.errors import UserError

if TYPE_CHECKING:
    from srm import SentenceRewardModel
    from srm.data.boundary import RowCheck
    from srm.evaluation.models import RowScorer

__all__ = ["add_rival_options", "check_of_rows", "check_rival_options", "identity_of", "load", "models_of", "short_names"]


def add_rival_options(parser: argparse.ArgumentParser) -> None:
    """Settings of models that `--model` names by what makes sentence rewards of them."""
    rivals = parser.add_argument_group("rivals")
    rivals.add_argument("--num_permutations", type=int, help="of shapley:, for responses of more than six sentences [16]")
    rivals.add_argument("--ref_model", help="of dpo:, what the policy's training began with")
    rivals.add_argument("--beta", type=float, help="of dpo:, what the policy was trained with [0.1]")


def check_rival_options(arguments: argparse.Namespace) -> None:
    """Refuse a policy without a reference, and what no rival asks for; fill in what was not given."""
    policies = [model for model in arguments.model if model.startswith("dpo:")]
    if policies and arguments.ref_model is None:
        raise UserError(f"--model {policies[0]} needs --ref_model, the model that the policy's training began with.")
    if arguments.ref_model is not None and not policies:
        raise UserError(
            "--ref_model is what dpo:POLICY is compared with, and no --model is one. Leave it out, or write --model dpo:POLICY."
        )
    for name, rival, default in (("beta", "dpo:", 0.1), ("num_permutations", "shapley:", 16)):
        if getattr(arguments, name) is None:
            setattr(arguments, name, default)
        elif not any(model.startswith(rival) for model in arguments.model):
            raise UserError(f"--{name}: only {rival} models have one, and no --model is one. Leave the flag out.")


def models_of(arguments: argparse.Namespace) -> dict[str, str | None]:
    """Every model that is read, by its flag."""
    from srm.evaluation.models import read_model_name

    return {f"--model {model}": read_model_name(model).path for model in arguments.model} | {"--ref_model": arguments.ref_model}


def short_names(models: Sequence[str]) -> dict[str, str]:
    """The models by the shortest end of their path that tells them apart; a last folder `model` says nothing and is left out."""
    from srm.evaluation.models import read_model_name
    from srm.evaluation.score_suite import BASELINES

    read = {model: read_model_name(model) for model in models}
    parts = {
        model: Path(name.path).resolve().parts[1:] if Path(name.path).is_dir() else Path(name.path).parts for model, name in read.items()
    }
    if len({(read[model].rival, path) for model, path in parts.items()}) < len(models):
        raise UserError(f"--model names the same model twice: {', '.join(models)}. Name each once.")
    parts = {model: path[:-1] if len(path) > 1 and path[-1] == "model" else path for model, path in parts.items()}
    longest = max(len(path) for path in parts.values())
    for length in range(1, longest + 1):
        names = [read[model].with_path("/".join(path[-length:])) for model, path in parts.items()]
        if len(set(names)) == len(names) and not set(names) & set(BASELINES):
            return dict(zip(names, models, strict=True))
    raise UserError(f"--model {', '.join(models)}: two have one name, or one is called {' or '.join(BASELINES)}. Rename a folder.")


def check_of_rows(model: str, arguments: argparse.Namespace) -> RowCheck:
    """What finds rows that a model cannot read."""
    from srm.evaluation.attribution import one_text_check
    from srm.evaluation.classifier import classifier_check, is_classifier
    from srm.evaluation.implicit import policy_check
    from srm.evaluation.models import read_model_name

    name = read_model_name(model)
    if name.rival == "dpo":
        return policy_check(name.path, arguments.ref_model)
    check = classifier_check(name.path) if is_classifier(name.path) else row_check(name.path)
    return check if name.rival is None else one_text_check(check)


def load(model: str, arguments: argparse.Namespace) -> SentenceRewardModel | RowScorer:
    """A model, ready to score."""
    from srm.evaluation.attribution import AttributionModel
    from srm.evaluation.classifier import ClassifierModel, is_classifier
    from srm.evaluation.implicit import ImplicitRewardModel
    from srm.evaluation.models import read_model_name

    name = read_model_name(model)
    where: dict[str, Any] = {"dtype": arguments.dtype, "device": device_of(arguments)}
    if name.rival == "dpo":
        return ImplicitRewardModel(name.path, arguments.ref_model, beta=arguments.beta, **where)
    judge = ClassifierModel(name.path, **where) if is_classifier(name.path) else load_model(name.path, arguments)
    return judge if name.rival is None else AttributionModel(judge, name.rival, num_permutations=arguments.num_permutations)


def identity_of(model: str, source: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """What the scores of a model on `source` depend on. Ask before the model is loaded: what is hashed is what is loaded then."""
    from srm.evaluation.attribution import EXACT
    from srm.evaluation.models import read_model_name
    from srm.modeling.contents import model_contents

    name = read_model_name(model)
    identity = model_identity(name.path, source, arguments)
    if name.rival == "dpo":
        folder = Path(arguments.ref_model)
        reference: dict[str, Any] = {"ref_model": str(folder.resolve()) if folder.is_dir() else arguments.ref_model}
        reference |= {f"reference {what}": content for what, content in model_contents(arguments.ref_model).items()}
        return identity | {"rival": name.rival, "beta": arguments.beta} | reference
    if name.rival == "shapley":
        return identity | {"rival": name.rival, "num_permutations": arguments.num_permutations, "exact": EXACT}
    return identity if name.rival is None else identity | {"rival": name.rival}
