"""Pushing a run's tokenizer to the Hub, during training and at the end."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Self

from imagetok.errors import HubError, ImagetokError
from imagetok.hub import Pushed
from imagetok.launch import collectives
from imagetok.tokenizer import ImageTokenizer

logger = logging.getLogger(__name__)

PATIENCE = 300.0
"""Seconds that a push under way may still take at the end of a run: a server that took a request
and never answers would keep the run from ending.
"""


@dataclass(frozen=True)
class PushPlan:
    """Where a run's tokenizer is pushed to.

    Attributes:
        repo_id: `user/name` on the Hub.
        every: Steps between pushes while it trains; 0 pushes at the end only.
        private: Whether a repository that has to be made is private; None is the account's default.
    """

    repo_id: str
    every: int = 0
    private: bool | None = None


class Pusher:
    """Pushes for a run on its main process, one push at a time, in a thread beside the training.

    A push that fails while the run trains gives a warning and does not end the run. As a context
    manager it waits at the end for the push under way, unless an error or a signal ended the run.

    Args:
        plan: Where to push to; None pushes nothing.
        steps: Number of steps of the whole run.
    """

    def __init__(self, plan: PushPlan | None, steps: int) -> None:
        self._plan, self._steps = plan, steps
        self._thread: Thread | None = None

    def offer(self, tokenizer: ImageTokenizer, done: int) -> None:
        """Push a tokenizer if that is due, unless the push before is still under way.

        Args:
            tokenizer: What is trained so far.
            done: Number of steps done.
        """
        plan = self._plan
        if plan is None or plan.every == 0 or done % plan.every or done == self._steps:
            return
        if collectives.rank() > 0:
            return
        if self._thread is not None and self._thread.is_alive():
            logger.warning(
                "warning: step %d is not pushed to %s, as the push before goes on",
                done,
                plan.repo_id,
            )
            return
        arguments = (plan, copy.deepcopy(tokenizer).cpu(), done)
        # A daemon, so that a push that never ends is left behind when the process does.
        self._thread = Thread(
            target=self._push_meanwhile, args=arguments, name="imagetok-push", daemon=True
        )
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        # A run that was stopped has little time, and what is half pushed leaves nothing behind.
        if self._thread is None or kind is not None:
            return
        self._thread.join(PATIENCE)
        if self._thread.is_alive():
            logger.warning("warning: a push did not end in %.0f s and is left behind", PATIENCE)

    def _push_meanwhile(self, plan: PushPlan, tokenizer: ImageTokenizer, done: int) -> None:
        message = f"Step {done:,} of {self._steps:,}"
        try:
            tokenizer.push_to_hub(plan.repo_id, private=plan.private, commit_message=message)
        except Exception as error:  # whatever it is, the training is worth more
            logger.warning("warning: step %d was not pushed, training goes on: %s", done, error)


def push_finished(folder: Path, plan: PushPlan) -> Pushed:
    """Push a finished run's tokenizer with its figures.

    Args:
        folder: The exported tokenizer.
        plan: Where to push to.

    Raises:
        HubError: The tokenizer could not be pushed, for whatever reason; the run itself is done.
    """
    try:
        tokenizer = ImageTokenizer.from_pretrained(folder)
        return tokenizer.push_to_hub(plan.repo_id, private=plan.private)
    except ImagetokError as error:
        raise HubError(
            f"the run is done and not pushed: {error}; `imagetok push {folder} {plan.repo_id}` "
            "tries again"
        ) from error
