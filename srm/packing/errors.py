"""The refusal of a backbone that cannot be packed."""

from srm.errors import UserError

__all__ = ["UnsupportedBackboneError"]


class UnsupportedBackboneError(UserError):
    """The backbone cannot run packed. The message names the reason and the way out, which is the padded mode.

    Args:
        backbone: the name of the model's class, or of its layer's.
        reason: why, as the end of a sentence.
    """

    def __init__(self, backbone: str, reason: str) -> None:
        super().__init__(f"{backbone} cannot run packed: {reason}. Use --packing none (one padded row per response).")
        self.backbone = backbone
        self.reason = reason
