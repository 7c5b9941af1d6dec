"""A run: its steps, and what happens once in a while between them.

What a step does depends on the config, the step and the rows alone, and a checkpoint holds all that
steps change; so a run that was interrupted goes on as if nothing had happened.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import NoReturn

import torch
from accelerate import Accelerator
from torch import Tensor

from imagetok.data import Feed, ImageRows, TrainingBatch, TrainingData, check_error_share
from imagetok.errors import Stopped
from imagetok.evaluation import Evaluation, reconstruction_grid
from imagetok.launch import StopSignals, collectives
from imagetok.run_config import RunConfig
from imagetok.tokenizer import ImageTokenizer
from imagetok.training.checkpoint import list_checkpoints, read_checkpoint, tidy_checkpoints
from imagetok.training.describing import describe_training
from imagetok.training.folder import CHECKPOINTS, TOKENIZER, export_tokenizer
from imagetok.training.initialization import initialize_bottleneck
from imagetok.training.pushing import Pusher
from imagetok.training.reporting import Reporter
from imagetok.training.resume import Start
from imagetok.training.saver import CheckpointWriter
from imagetok.training.snapshot import restore_snapshot, take_snapshot
from imagetok.training.stepper import Stepper
from imagetok.training.totals import StepTotals

LOG_EVERY = 10
"""Steps between lines of `metrics.jsonl` and renewals of the progress bar's figures."""


class Run:
    """A run's parts: what its steps change, and what happens once in a while."""

    def __init__(
        self,
        config: RunConfig,
        accelerator: Accelerator,
        model: ImageTokenizer,
        data: TrainingData,
        folder: Path,
        start: Start,
        signals: StopSignals,
        reporter: Reporter,
        pusher: Pusher,
    ) -> None:
        self.config, self.settings, self.accelerator = config, config.train, accelerator
        self.data, self.folder = data, folder
        self.signals, self.reporter, self.pusher = signals, reporter, pusher
        self.done = self.saved = start.step
        self.reported, self.unreadable = True, 0
        self.position: Tensor | None = None
        if start.checkpoint is None and self.settings.init_from is None:
            initialize_bottleneck(model, data, self.settings)
        self.stepper = Stepper(self.settings, accelerator, model)
        if start.checkpoint is not None:
            self._restore(start.checkpoint)
            kept = folder / CHECKPOINTS, self.settings.keep_last
            collectives.from_main(lambda: tidy_checkpoints(*kept))
        self.writer = CheckpointWriter(folder / CHECKPOINTS, self.settings.keep_last, reporter.sync)

    def train_all(self) -> None:
        """All steps that are left."""
        settings = self.settings
        if not self.reported:
            self._report()
        with self._feed() as feed:
            clock = Clock(feed, self.done)
            while self.done < settings.steps:
                step = self.done
                clock.start()
                batches = next(feed)
                log = (step + 1) % LOG_EVERY == 0 or step + 1 == settings.steps
                totals = self.stepper.step(step, batches, log, self._counts(batches))
                self.done, self.position = step + 1, batches[-1].position
                self.reporter.write_losses(step, totals)
                self._note_unreadable(batches, totals)
                clock.stop()
                if log:
                    speed = clock.read(self.done, settings.batch_size)
                    figures = {**self.stepper.scheduled(step), **speed}
                    figures["data/unreadable_rows"] = self.unreadable
                    self.reporter.log(step, totals, figures)
                self._once_in_a_while(totals)

    def finish(self, evaluation_rows: ImageRows) -> Evaluation:
        """Export the tokenizer with its figures over the whole evaluation split."""
        tokenizer, target = self.stepper.evaluated, self.folder / TOKENIZER
        figures = self.reporter.validate("evaluation", tokenizer, self.done, None, self._poll)
        figures["training"] = describe_training(self.config, self.data, self.accelerator, tokenizer)

        def export() -> Evaluation:
            # The export says that the run is finished: all the rest is on disk before it.
            self.writer.wait()
            self.reporter.flush()
            self.reporter.sync()
            picture = reconstruction_grid(tokenizer, evaluation_rows)
            return export_tokenizer(tokenizer, target, figures, picture)

        return collectives.from_main(export)

    def describe_last_checkpoint(self) -> str:
        """Where a failed run can go on."""
        self.writer.wait()
        good = list_checkpoints(self.folder / CHECKPOINTS)
        return f"the last good checkpoint is '{good[-1]}'" if good else "there is no checkpoint yet"

    def close(self) -> None:
        """End the thread that writes."""
        self.writer.close()

    def _feed(self) -> Feed:
        ranks = self.accelerator.process_index, self.accelerator.num_processes
        left = self.settings.steps - self.done
        pin = self.accelerator.device.type == "cuda"
        return self.data.feed(self.done, left, *ranks, self.position, pin_memory=pin)

    def _counts(self, batches: list[TrainingBatch]) -> dict[str, Tensor]:
        """What the ranks add up with a step's losses, besides these."""
        unreadable = sum(len(batch.refused) for batch in batches)
        return {
            "signals": self.signals.flags(),
            "unreadable": torch.tensor([unreadable], dtype=torch.float64),
            "failed": torch.tensor([self.writer.has_failed], dtype=torch.float64),
        }

    # Once in a while

    def _once_in_a_while(self, totals: StepTotals) -> None:
        settings, done = self.settings, self.done
        last = done == settings.steps
        draws = last or _is_due(done, settings.samples_every)
        self.reported = not (draws or _is_due(done, settings.evaluate_every))
        if totals.counts["failed"].any():
            collectives.from_main(self.writer.wait)
        signum = self.signals.agreed(totals.counts["signals"])
        if signum is not None:
            self._stop(signum)
        if not self.reported:
            self._report()
        if last or _is_due(done, settings.checkpoint_every):
            self._save()
        if self.pusher.is_due(done):
            self.pusher.offer(self.stepper.evaluated, done)

    def _report(self) -> None:
        """Validate and draw; a run that is stopped meanwhile does it again when it is resumed."""
        settings, tokenizer, done = self.settings, self.stepper.evaluated, self.done
        last = done == settings.steps
        if _is_due(done, settings.evaluate_every) and not last:  # then the whole split is measured
            limit = settings.evaluation_images
            self.reporter.validate("validation", tokenizer, done, limit, self._poll)
        if _is_due(done, settings.samples_every) or last:
            self.reporter.draw_samples(tokenizer, done)
        self.reported = True

    def _note_unreadable(self, batches: list[TrainingBatch], totals: StepTotals) -> None:
        """Count and name the rows that could not be read; too many of them end the run."""
        count = int(totals.counts["unreadable"].item())
        if not count:
            return
        self.unreadable += count
        own = [message for batch in batches for message in batch.refused]
        messages = [message for part in collectives.gather_objects(own) for message in part]
        self.reporter.note_unreadable(self.done - 1, messages)
        seen = self.done * self.settings.batch_size
        check_error_share(self.unreadable, seen, self.config.data.max_error_rate, messages)

    def _poll(self) -> None:
        """Stop in the middle of an evaluation if a signal came on any rank."""
        signum = self.signals.agreed(collectives.all_reduce_sum(self.signals.flags()))
        if signum is not None:
            self._stop(signum)

    def _stop(self, signum: int) -> NoReturn:
        if self.saved != self.done:
            self._save()
        # No rank leaves before all is written: its launcher would end the others.
        collectives.from_main(self.writer.wait)
        raise Stopped(signum, self.done)

    def _save(self) -> None:
        position = self.position
        if position is not None:
            position = collectives.gather_equal(position)
        collectives.from_main(lambda: self._submit(position))
        self.saved = self.done

    def _submit(self, position: Tensor | None) -> None:
        scaler = self.accelerator.scaler
        self.reporter.flush()
        self.writer.submit(
            take_snapshot(
                self.stepper.tokenizer,
                self.stepper.optimizer,
                self.stepper.average,
                position,
                {
                    "step": self.done,
                    "config": self.config.to_dict(),
                    "data_fingerprint": self.data.fingerprint,
                    "scaler": None if scaler is None else scaler.state_dict(),
                    "skipped": self.stepper.skipped,
                    "skipped_in_a_row": self.stepper.skipped_in_a_row,
                    "unreadable": self.unreadable,
                    "reported": self.reported,
                },
            )
        )

    def _restore(self, checkpoint: Path) -> None:
        stepper, snapshot = self.stepper, read_checkpoint(checkpoint)
        restore_snapshot(snapshot, stepper.tokenizer, stepper.optimizer, stepper.average)
        state, self.position = snapshot.state, snapshot.position
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        stepper.skipped, stepper.skipped_in_a_row = state["skipped"], state["skipped_in_a_row"]
        self.unreadable, self.reported = state["unreadable"], state["reported"]


class Clock:
    """Speed of the steps, and the share of their time spent waiting for data."""

    def __init__(self, feed: Feed, done: int) -> None:
        self._feed, self._done = feed, done
        self._seconds = self._started = 0.0
        self._waited = feed.waited

    def start(self) -> None:
        """A step begins."""
        self._started = time.perf_counter()

    def stop(self) -> None:
        """A step ends; what comes before the next one does not count."""
        self._seconds += time.perf_counter() - self._started

    def read(self, done: int, batch_size: int) -> dict[str, float]:
        """Figures since the last reading."""
        seconds = max(self._seconds, 1e-9)
        figures = {
            "time/images_per_second": (done - self._done) * batch_size / seconds,
            "time/data_share": (self._feed.waited - self._waited) / seconds,
        }
        self._done, self._seconds, self._waited = done, 0.0, self._feed.waited
        return figures


def _is_due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0
