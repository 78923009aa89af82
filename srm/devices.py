"""The devices of this machine, by torch's names."""

from __future__ import annotations

from srm.errors import UserError

__all__ = ["check_device"]


def check_device(device: str, *, where: str) -> str:
    """A device that is here, or an error before anything is loaded.

    Args:
        device: `cpu`, `cuda`, `cuda:1`, ...
        where: what a message calls it: the flag or the argument.

    Returns:
        `device`.

    Raises:
        UserError: there is no such device here.
    """
    import torch

    here = {"cpu": 1}
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is not None:
        here[accelerator.type] = torch.accelerator.device_count()
    name, _, index = str(device).partition(":")
    if name not in here or not (index or "0").isdecimal() or int(index or 0) >= here[name]:
        known = ", ".join(f"{kind}:{number}" if kind != "cpu" else kind for kind, count in here.items() for number in range(count))
        raise UserError(f"{where} {device}: no such device here. Give one of {known}, or leave it out.")
    return device
