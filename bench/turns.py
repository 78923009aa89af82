"""Trainers that take turns: each runs its own `train()` and hands over at the end of every step.

They are greenlets where that package is installed, because threads would have OpenMP threads of their own: with more of them than cores
OpenMP lets those that wait sleep, and every small operation then pays for waking one. No user of one trainer sees that, and a trainer of
many small operations suffers more. On a GPU there is next to nothing for OpenMP to do, so that threads do there.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable
from typing import Any

from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl

__all__ = ["HAS_GREENLETS", "Turns", "turns_by"]

HAS_GREENLETS = importlib.util.find_spec("greenlet") is not None


def turns_by() -> str:
    """What the trainers are, for the record."""
    return "greenlets" if HAS_GREENLETS else "threads"


class Turns(TrainerCallback):
    """Runs `trainer.train()` a step at a time."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._training: _Greenlet | _Thread = (_Greenlet if HAS_GREENLETS else _Thread)(trainer.train)
        self._stopping = False
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(self)

    def step(self, _: object) -> None:
        """One optimizer step; the first call also sets the training up. What the training raises is raised here."""
        self._training.resume()

    def close(self) -> None:
        """End the training at its next step."""
        self._stopping = True
        while self._training.is_running:
            self._training.resume()

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> TrainerControl:
        if not self._stopping:
            self._training.pause()
        control.should_training_stop = control.should_training_stop or self._stopping
        return control


class _Greenlet:
    """resume: run on to the next pause, from outside. pause: from inside."""

    def __init__(self, run: Callable[[], object]) -> None:
        from greenlet import greenlet

        self._greenlet = greenlet(run)
        self.resume = self._greenlet.switch

    @property
    def is_running(self) -> bool:
        """Begun and not at its end."""
        return bool(self._greenlet)

    def pause(self) -> None:
        self._greenlet.parent.switch()


class _Thread:
    """The same, with one of two threads waiting for the other at any time."""

    def __init__(self, run: Callable[[], object]) -> None:
        self._run = run
        self._go, self._paused = threading.Semaphore(0), threading.Semaphore(0)
        # A daemon: an error elsewhere must not wait for a training that nobody resumes.
        self._thread = threading.Thread(target=self._main, daemon=True)
        self._error: BaseException | None = None
        self._ended = False

    @property
    def is_running(self) -> bool:
        return self._thread.ident is not None and not self._ended

    def resume(self) -> None:
        if self._thread.ident is None:
            self._thread.start()
        self._go.release()
        self._paused.acquire()
        if self._error is not None:
            raise self._error

    def pause(self) -> None:
        self._paused.release()
        self._go.acquire()

    def _main(self) -> None:
        self._go.acquire()
        try:
            self._run()
        except BaseException as error:
            self._error = error
        finally:
            self._ended = True
            self._paused.release()
