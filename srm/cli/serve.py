"""srm-serve: rewards over HTTP."""

from __future__ import annotations

import argparse
import ipaddress
import os
import signal
import socket
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from srm.cli.common import LOG_FORMAT, run, say
from srm.cli.scoring import add_running_options, device_of, load_model
from srm.errors import UserError
from srm.runs.parser import Parser

if TYPE_CHECKING:
    from srm.serving import ServerSettings

__all__ = ["main", "server_settings"]

_TOKEN_VARIABLE = "SRM_TOKEN"
# Connections that wait to be accepted; as many as uvicorn asks for.
_BACKLOG = 2048


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `srm-serve`."""
    return run(_serve, argv, log_format=f"%(asctime)s {LOG_FORMAT}")


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="srm-serve",
        description="Serve a trained sentence reward model: POST /v1/rewards, OpenRLHF's POST /get_reward, GET /health, /metrics, /docs. "
        f"With {_TOKEN_VARIABLE} set in the environment, requests must bring it as their bearer token. SIGTERM ends it once all "
        "requests are answered.",
    )
    place = parser.add_argument_group("what is served, and where")
    place.add_argument("--model", required=True, help="folder or hub name of a trained sentence reward model")
    place.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for all")
    place.add_argument("--port", type=int, default=8000, help="0 for any free one")
    running = parser.add_argument_group("running")
    add_running_options(running)
    running.add_argument("--max_wait_ms", type=float, default=5.0, help="longest wait for more requests while some are expected")
    running.add_argument("--no_batching", action="store_true", help="run each row in a pass of its own, for comparison")
    running.add_argument(
        "--policy_ends", nargs="+", default=[], help="end tokens of OpenRLHF's or slime's policy, such as '</s>' [the reward model's own]"
    )
    limits = parser.add_argument_group("limits")
    limits.add_argument("--max_queue", type=int, default=4096, help="rows that may wait; beyond, 503 with Retry-After")
    limits.add_argument("--max_length", type=int, help="longest prompt + response in tokens [what the backbone can]")
    limits.add_argument("--max_body_mb", type=float, default=16.0, help="largest request body in MB")
    limits.add_argument(
        "--receive_seconds",
        type=float,
        default=30.0,
        help="how long a request may take to come in whole, and a second more for each 100 kB",
    )
    limits.add_argument("--drain_seconds", type=int, default=60, help="on SIGTERM, how long to go on answering what has come")
    return parser.parse_args(argv)


def _serve(argv: Sequence[str]) -> None:
    arguments = _parse(argv)
    from srm.serving import create_app, make_server

    device_of(arguments)
    settings = server_settings(arguments)
    listener = _listen(arguments.host, arguments.port)
    if settings.token is None and not ipaddress.ip_address(listener.getsockname()[0]).is_loopback:
        say(
            f"srm-serve: WARNING: ANYONE WHO REACHES {arguments.host} CAN USE THIS SERVER. Set {_TOKEN_VARIABLE} in its environment to ask "
            "for a token.",
            file=sys.stderr,
        )
    model = load_model(arguments.model, arguments)
    app = create_app(model, settings, packing=arguments.packing)
    # uvicorn raises the signal that ended it once more when all is answered. By default that would kill us; a drained server exits with 0.
    signal.signal(signal.SIGTERM, lambda *_: None)
    host, port = listener.getsockname()[:2]
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    say(f"srm-serve: {arguments.model} on {device_of(arguments)}, {address} (documentation: {address}/docs)")
    make_server(app, settings, drain_seconds=arguments.drain_seconds).run(sockets=[listener])


def server_settings(arguments: argparse.Namespace) -> ServerSettings:
    """What the flags, and the token of the environment, mean for the server.

    Raises:
        UserError: a token that no request can bring.
    """
    from srm.serving import ServerSettings

    names = ("tokens_per_batch", "max_wait_ms", "max_queue", "max_length", "max_body_mb", "receive_seconds", "policy_ends")
    chosen = {name: getattr(arguments, name) for name in names}
    return ServerSettings(**chosen, batching=not arguments.no_batching, token=os.environ.get(_TOKEN_VARIABLE))


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens on the address. Early clients wait until the model is there.

    It listens at once, because only then is a second server on the port found out before it has loaded a model.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except (OSError, OverflowError, TypeError) as error:  # TypeError: no name for DNS
        listener.close()
        raise UserError(f"cannot listen on {host}:{port} ({error}). Choose another --port or --host.") from None
    return listener


if __name__ == "__main__":
    sys.exit(main())
