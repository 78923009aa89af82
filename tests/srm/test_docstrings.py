"""Docstrings of what users and other rooms call name every argument and every field. The kernels have the same in test_docs.py there."""

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from tests.docstrings import problems, public_names

MODULES = [
    "srm",
    "srm.client",
    "srm.data",
    "srm.integrations.openrlhf",
    "srm.integrations.slime",
    "srm.integrations.source",
    "srm.modeling",
    "srm.packing",
    "srm.segmentation",
    "srm.serving",
]
# Rooms that export nothing themselves: each of their modules is public.
ROOMS = ["srm.evaluation", "srm.runs", "srm.scoring", "srm.views"]


def public() -> Iterator[tuple[str, Any]]:
    inside = [module.name for room in ROOMS for module in pkgutil.iter_modules(importlib.import_module(room).__path__, f"{room}.")]
    seen = set()
    for name in MODULES + inside:
        for thing in public_names(importlib.import_module(name)).values():
            if thing not in seen:
                seen.add(thing)
                yield f"{thing.__module__}.{thing.__qualname__}", thing


PUBLIC = dict(public())


def test_the_public_things_are_found():
    assert len(PUBLIC) > 120
    some = {"srm.modeling.model.SentenceRewardModel", "srm.scoring.file.score_file", "srm.client.Client", "srm.packing.layout.pack"}
    assert some <= set(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_docstrings_name_every_argument_and_field(name):
    assert problems(PUBLIC[name]) == []


def test_what_is_missing_is_found():
    def bare(a, b):
        """Add."""

    def partly(a, b):
        """Add.

        Args:
            b: the other.
        """

    def whole(a, *b):
        """Add.

        Args:
            a: one.
            *b: others, which
                go on here.

        Returns:
            a: is no argument here.
        """

    class Fields(NamedTuple):
        """Two.

        Args:
            a: under the wrong heading.
        """

        a: int

    assert [problems(function) for function in (bare, partly, whole)] == [
        [f"{bare.__qualname__}: Args should be ['a', 'b'], got []"],
        [f"{partly.__qualname__}: Args should be ['a', 'b'], got ['b']"],
        [],
    ]
    assert problems(Fields) == ["Fields: Attributes should be ['a'], got []"]
