"""Do the sentence rewards mean anything? A cheap sign, watched while a model trains.

A pair loss is as content with rewards of the wrong sign as with right ones, as long as the attention picks what ranks the responses
(docs/method.md, "The start matters"). The mean value of a response is a sum of its sentence rewards with positive weights and nothing
else: where it ranks pairs much worse than the reward does, it is the attention that ranks them, and not the sentences.
"""

from __future__ import annotations

import logging

__all__ = ["CreditWatch"]

logger = logging.getLogger(__name__)


class CreditWatch:
    """Warns, once, when the mean value ranks the last pairs much worse than the reward.

    Args:
        window: pairs that are judged together, as a sum of their weights.
        limit: how far `mean_value_accuracy` may be below `accuracy`.
    """

    def __init__(self, *, window: float = 128, limit: float = 0.2) -> None:
        self.window = window
        self.limit = limit
        self._weight = self._correct = self._mean_value_correct = 0.0
        self._warned = False

    def add(self, weight: float, correct: float, mean_value_correct: float, step: int) -> None:
        """Count pairs of so much `weight`, and how much of it the reward and the mean value got right, up to optimizer step `step`."""
        self._weight += weight
        self._correct += correct
        self._mean_value_correct += mean_value_correct
        if self._weight < self.window:
            return
        accuracy, of_mean_value = self._correct / self._weight, self._mean_value_correct / self._weight
        self._weight = self._correct = self._mean_value_correct = 0.0
        if accuracy - of_mean_value > self.limit and not self._warned:
            self._warned = True
            logger.warning(
                "step %d: the reward ranks %.0f%% of the last pairs as labelled, the mean of the values at sentence ends only %.0f%%. "
                "So the attention ranks them, and sentence rewards are probably noise or inverted, whatever the accuracy says. "
                "Start from a new head with a lower --attention_learning_rate, or a higher --mean_value_coefficient.",
                step,
                100 * accuracy,
                100 * of_mean_value,
            )
