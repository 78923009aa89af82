"""The namespace of the ops. A build for the Hugging Face kernel hub replaces this file, so that it can be loaded beside the package."""

from __future__ import annotations

__all__ = ["add_op_namespace_prefix"]

_NAMESPACE = "srm_kernels"


def add_op_namespace_prefix(op_name: str) -> str:
    """The name to register an op under.

    Args:
        op_name: without a namespace.

    Returns:
        `namespace::op_name`.
    """
    return f"{_NAMESPACE}::{op_name}"
