"""The reward server: requests are encoded beside the event loop, batched with equal prompts merged, and run by one thread.

Needs the extra `serve`. The command is `srm-serve`, the client `srm.Client`.
"""

from srm.serving.app import create_app
from srm.serving.server import make_server
from srm.serving.settings import ServerSettings

__all__ = ["ServerSettings", "create_app", "make_server"]
