"""Replicas of srm-serve behind one address, by Ray Serve: `serve run examples/ray_serve.yaml`, and `serve deploy` on a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from srm.cli.cluster import plan_workers
from srm.cli.scoring import load_model
from srm.cli.serve import _parse, server_settings
from srm.errors import UserError
from srm.extras import name_the_extra

with name_the_extra("srm.cli.replicas"):
    import ray
    from ray import serve

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray.serve import Application

__all__ = ["app"]

# Where it listens is for Serve to say (`http_options`), and how it waits for slow requests too.
_NOT_OURS = ("host", "port", "receive_seconds")


def app(args: Mapping[str, Any]) -> Application:
    """Ray Serve's application builder.

    Args:
        args: `args` of the application in the file: flags of srm-serve, and `num_replicas`: one a GPU where left out, or one a machine on
            CPUs. The token is SRM_TOKEN of the environment that this runs in.

    Raises:
        UserError: a flag that there is not, or that Serve sets itself; no machine that can hold a replica; no connection to Ray yet.
    """
    if not ray.is_initialized():
        raise UserError("srm.cli.replicas: Serve connects to a cluster first only for a file. Run `serve run examples/ray_serve.yaml`.")
    told = {name: str(value) for name, value in args.items()}
    for name in _NOT_OURS:
        if name in told:
            raise UserError(f"{name}: Ray Serve listens in srm-serve's place. Set it in Serve's http_options.")
    count = told.pop("num_replicas", None)
    if count is not None and not (count.isdecimal() and int(count)):
        raise UserError(f"num_replicas must be at least 1, got {count}.")
    several = {name: list(map(str, args[name])) for name in told if isinstance(args[name], list)}
    flags = [f"--{name}={value}" for name, value in told.items() if name not in several]
    arguments = _parse([*flags, *(word for name, words in several.items() for word in (f"--{name}", *words))])
    workers = plan_workers(arguments.device, int(count) if count else None)
    arguments.device = "cuda" if workers.num_gpus else "cpu"
    deployment = serve.deployment(
        name="rewards",
        num_replicas=workers.num_workers,
        ray_actor_options={"num_cpus": workers.num_cpus, "num_gpus": workers.num_gpus},
        # Rows wait in the server's own queue, which batches them.
        max_ongoing_requests=arguments.max_queue,
        graceful_shutdown_timeout_s=arguments.drain_seconds,
    )
    settings = server_settings(arguments)

    def replica() -> FastAPI:
        from srm.serving import create_app

        return create_app(load_model(arguments.model, arguments), settings, packing=arguments.packing)

    return deployment(serve.ingress(replica)()).bind()
