"""`train`: a run from its config to an exported tokenizer, begun or continued.

From top to bottom: the setup (`train`, `_open_run`), the steps (`Run.train_all`; what one of them
does stands in `imagetok.training.step`), what happens once in a while between two steps, and the
end. What a step does depends on the config, the step and the rows alone, and a checkpoint holds all
that steps change; so a run that was interrupted goes on as if nothing had happened.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm.contrib.logging import logging_redirect_tqdm

from imagetok.data import (
    Feed,
    TrainingBatch,
    TrainingData,
    check_error_share,
    name_evaluation_split,
    open_evaluation,
    open_training,
)
from imagetok.errors import Stopped, TrainingError
from imagetok.evaluation import Evaluation
from imagetok.hub import Pushed, prepare_repository
from imagetok.launch import StopSignals, check_main_guard, collectives, watch_launcher
from imagetok.run_config import RunConfig
from imagetok.training.accelerator import build_accelerator
from imagetok.training.checkpoint import (
    CheckpointWriter,
    read_checkpoint,
    restore_snapshot,
    take_snapshot,
)
from imagetok.training.initial_model import build_model, build_objectives, initialize_bottleneck
from imagetok.training.plan import plan_run
from imagetok.training.provenance import describe_training
from imagetok.training.pusher import Pusher, PushPlan, push_finished
from imagetok.training.reporter import Clock, Reporter
from imagetok.training.run_folder import PATIENCE, ResumePoint, RunFolder
from imagetok.training.step import Stepper, StepTotals
from imagetok.training.trackers import check_trackers

LOG_EVERY = 10
"""Steps between lines of `metrics.jsonl` and renewals of the progress bar's figures."""


@dataclass(frozen=True)
class TrainResult:
    """What a run left.

    Attributes:
        output_dir: The run's folder.
        tokenizer_dir: The trained tokenizer in it.
        evaluation: The tokenizer's figures on the evaluation split.
        was_finished: Whether the run had been finished before, so that nothing was done.
        pushed: Where it was pushed to, on the main process.
    """

    output_dir: Path
    tokenizer_dir: Path
    evaluation: Evaluation
    was_finished: bool = False
    pushed: Pushed | None = None


# Setup


def train(
    config: RunConfig,
    output_dir: str | Path,
    *,
    resume: bool = False,
    push: PushPlan | None = None,
    progress: bool = True,
) -> TrainResult:
    """Train a tokenizer.

    Args:
        config: The run.
        output_dir: Folder to write, on a file system that all ranks share.
        resume: Continue after the newest checkpoint in the folder; without one start anew, and
            leave a finished run as it is.
        push: Where to push the tokenizer to, at the end and during training; a repository that may
            not be written is refused before the first step. A finished run is pushed again.
        progress: Show progress bars on the main process.

    Returns:
        Where everything is, and the final figures; the same on every rank, except for `pushed`.

    Raises:
        ConfigError: The config does not fit the machine, the folder holds a run and `resume` is
            not set, or the run that is there had another config.
        DataError: The data cannot be read as asked, or too many rows cannot be read.
        HubError: The tokenizer cannot be pushed.
        MissingExtraError: A tracker is asked for that is not installed.
        ModelFileError: The newest checkpoint is damaged.
        Stopped: SIGTERM, SIGINT or SIGUSR1 came; everything is saved.
        TrainingError: The loss or the gradients are not finite.
        UnwritableFileError: The disk is full or the folder cannot be written.
    """
    plan_run(config)  # whatever cannot be built is refused before anything is read or written
    if config.data.num_workers:
        check_main_guard()
    accelerator = build_accelerator(config.train)
    with closing(RunFolder(Path(output_dir), PATIENCE if resume else 0.0)) as folder:

        def look() -> tuple[RunConfig, ResumePoint]:
            """Find out where to start, and refuse what would fail at the end."""
            named = name_evaluation_split(config)
            check_trackers(config.train.trackers)
            folder.take()
            start = folder.find_resume_point(named, resume)
            if start.finished is None and push is not None:
                prepare_repository(push.repo_id, private=push.private)
            return start.config or named, start

        config, start = collectives.from_main(look)
        figures = start.finished
        if figures is None:
            with _open_run(config, accelerator, folder, start, push, progress) as run:
                run.train_all()
                figures = run.finish()
        pushed = None
        # The other ranks do not wait: a push may outlast what they wait for each other at most.
        if push is not None and collectives.rank() == 0:
            pushed = push_finished(folder.tokenizer, push)
        was_finished = start.finished is not None
        return TrainResult(folder.path, folder.tokenizer, figures, was_finished, pushed)


@contextmanager
def _open_run(
    config: RunConfig,
    accelerator: Accelerator,
    folder: RunFolder,
    start: ResumePoint,
    push: PushPlan | None,
    progress: bool,
) -> Iterator[Run]:
    """Build the model, open the data, begin the folder, restore the checkpoint to resume from."""
    settings, signals = config.train, StopSignals()
    model = build_model(config, accelerator.device, resuming=start.checkpoint is not None)
    with ExitStack() as stack:
        stack.enter_context(logging_redirect_tqdm())
        stack.enter_context(watch_launcher(signals))
        # One process fills the cache of a dataset before the others read it.
        with accelerator.main_process_first():
            data = open_training(config, model.preprocessor)
            rows = open_evaluation(config)
        start.check_data(data.fingerprint)
        collectives.from_main(lambda: folder.begin(config, data.fingerprint))
        reporter = Reporter(config, folder.path, rows, start.step, progress)
        # Until here there is nothing to save: signals end the process as they end any other.
        stack.enter_context(signals)
        stack.enter_context(closing(reporter))
        if start.checkpoint is None and settings.init_from is None:
            initialize_bottleneck(model, data, settings, progress)
        objectives = build_objectives(config, accelerator.device)
        stepper = Stepper(settings, accelerator, model, objectives)
        writer = CheckpointWriter(folder.checkpoints, settings.keep_last, reporter.sync)
        pusher = stack.enter_context(Pusher(push, settings.steps))
        stack.enter_context(closing(writer))
        run = Run(config, accelerator, folder, data, stepper, writer, reporter, pusher, signals)
        if start.checkpoint is not None:
            run.restore(start.checkpoint)
            collectives.from_main(writer.tidy)
        try:
            yield run
        except TrainingError as error:
            raise TrainingError(
                f"{error}; {collectives.from_main(writer.describe_last)}"
            ) from error


@dataclass
class Run:
    """A run from its first step to its end.

    Attributes:
        done: Number of steps done.
        saved: Number of steps done at the last checkpoint.
        reported: Whether what was due after the last step has been validated and drawn.
        unreadable: Rows that could not be read so far, over all ranks.
        position: Where this rank reads a streamed dataset next; None for other data.
    """

    config: RunConfig
    accelerator: Accelerator
    folder: RunFolder
    data: TrainingData
    stepper: Stepper
    writer: CheckpointWriter
    reporter: Reporter
    pusher: Pusher
    signals: StopSignals
    done: int = 0
    saved: int = 0
    reported: bool = True
    unreadable: int = 0
    position: Tensor | None = None

    def restore(self, checkpoint: Path) -> None:
        """Go on from a checkpoint."""
        snapshot = read_checkpoint(checkpoint)
        restore_snapshot(snapshot, self.stepper.parts)
        self.stepper.restore_state(snapshot.state)
        self.done = self.saved = snapshot.step
        self.position = snapshot.position
        self.unreadable, self.reported = snapshot.state["unreadable"], snapshot.state["reported"]

    # The steps

    def train_all(self) -> None:
        """Take all steps that are left."""
        settings = self.config.train
        if not self.reported:
            self._report()
        with self._feed() as feed:
            clock = Clock(feed, self.done)
            while self.done < settings.steps:
                clock.start()
                logs = (self.done + 1) % LOG_EVERY == 0 or self.done + 1 == settings.steps
                totals = self._step(next(feed), logs)
                clock.stop()
                if logs:
                    speed = clock.read(self.done, settings.batch_size)
                    figures = {**self.stepper.scheduled(self.done - 1), **speed}
                    figures["data/unreadable_rows"] = self.unreadable
                    self.reporter.log(self.done - 1, totals, figures)
                self._once_in_a_while(totals)

    def _feed(self) -> Feed:
        ranks = self.accelerator.process_index, self.accelerator.num_processes
        left = self.config.train.steps - self.done
        pin = self.accelerator.device.type == "cuda"
        return self.data.feed(self.done, left, *ranks, self.position, pin_memory=pin)

    def _step(self, batches: list[TrainingBatch], measure: bool) -> StepTotals:
        """Take one step; record its losses and the rows that could not be read."""
        refused = [message for batch in batches for message in batch.refused]
        ignored = sum(batch.profiles_ignored for batch in batches)
        counts = {  # summed over the ranks together with the step's losses
            "signals": self.signals.flags(),
            "unreadable": torch.tensor([len(refused)], dtype=torch.float64),
            "profiles": torch.tensor([ignored], dtype=torch.float64),
            "failed": torch.tensor([self.writer.has_failed], dtype=torch.float64),
        }
        totals = self.stepper.step(self.done, batches, measure, counts)
        self.done, self.position = self.done + 1, batches[-1].position
        self.reporter.write_losses(self.done - 1, totals)
        if count := int(totals.counts["profiles"].item()):
            self.reporter.note_ignored_profiles(self.done - 1, count)
        if count := int(totals.counts["unreadable"].item()):
            self.unreadable += count
            messages = [each for part in collectives.gather_objects(refused) for each in part]
            self.reporter.note_unreadable(self.done - 1, messages)
            seen = self.done * self.config.train.batch_size
            check_error_share(self.unreadable, seen, self.config.data.max_error_rate, messages)
        return totals

    # Once in a while

    def _once_in_a_while(self, totals: StepTotals) -> None:
        """Between two steps: stop, validate, draw, save and push, each where it is due."""
        settings = self.config.train
        self.reported = not (self._draws or self._is_due(settings.evaluate_every))
        if totals.counts["failed"].any():
            collectives.from_main(self.writer.wait)
        self._stop_if_asked(totals.counts["signals"])
        if not self.reported:
            self._report()
        if self._is_last or self._is_due(settings.checkpoint_every):
            self._save()
        self.pusher.offer(self.stepper.evaluated, self.done)

    def _is_due(self, every: int) -> bool:
        return every > 0 and self.done % every == 0

    @property
    def _is_last(self) -> bool:
        return self.done == self.config.train.steps

    @property
    def _draws(self) -> bool:
        return self._is_last or self._is_due(self.config.train.samples_every)

    def _report(self) -> None:
        """Validate and draw; a run that is stopped meanwhile does it again when it is resumed."""
        settings, tokenizer = self.config.train, self.stepper.evaluated
        # After the last step `finish` measures on the whole split.
        if self._is_due(settings.evaluate_every) and not self._is_last:
            limit = settings.evaluation_images
            self.reporter.validate("validation", tokenizer, self.done, limit, self._poll)
        if self._draws:
            self.reporter.draw_samples(tokenizer, self.done)
        self.reported = True

    def _poll(self) -> None:
        """Stop in the middle of an evaluation if a signal came on any rank."""
        self._stop_if_asked(collectives.all_reduce_sum(self.signals.flags()))

    def _stop_if_asked(self, flags: Tensor) -> None:
        """Save and stop if the sum of the ranks' flags says that a signal came."""
        signum = self.signals.agreed(flags)
        if signum is None:
            return
        if self.saved != self.done:
            self._save()
        # No rank leaves before all is written: its launcher would end the others.
        collectives.from_main(self.writer.wait)
        raise Stopped(signum, self.done)

    def _save(self) -> None:
        """Copy the state, and have it written while the training goes on."""
        position = self.position
        if position is not None:
            position = collectives.gather_equal(position)
        collectives.from_main(lambda: self._submit(position))
        self.saved = self.done

    def _submit(self, position: Tensor | None) -> None:
        state = {
            "step": self.done,
            "config": self.config.to_dict(),
            "data_fingerprint": self.data.fingerprint,
            "unreadable": self.unreadable,
            "reported": self.reported,
            **self.stepper.state(),
        }
        self.reporter.flush()
        self.writer.submit(take_snapshot(self.stepper.parts, position, state))

    # The end

    def finish(self) -> Evaluation:
        """Export the tokenizer with its figures over the whole evaluation split."""
        tokenizer = self.stepper.evaluated
        figures = self.reporter.validate("evaluation", tokenizer, self.done, None, self._poll)
        ranks, device = self.accelerator.num_processes, self.accelerator.device
        figures["training"] = describe_training(self.config, self.data, ranks, device, tokenizer)

        def export() -> Evaluation:
            # The export says that the run is finished: all the rest is on disk before it.
            self.writer.wait()
            self.reporter.flush()
            self.reporter.sync()
            return self.folder.export(tokenizer, figures, self.reporter.draw(tokenizer))

        return collectives.from_main(export)
