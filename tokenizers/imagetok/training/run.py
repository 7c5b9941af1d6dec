"""`train`: a run from its config to an exported tokenizer, begun or continued."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator
from tqdm.contrib.logging import logging_redirect_tqdm

from imagetok.data import open_evaluation, open_training, worded_error
from imagetok.errors import TrainingError
from imagetok.evaluation import Evaluation
from imagetok.hub import Pushed
from imagetok.launch import StopSignals, collectives, watch_launcher
from imagetok.run_config import RunConfig
from imagetok.training.folder import PATIENCE, TOKENIZER, FolderLock, make_folder, start_folder
from imagetok.training.loop import Run
from imagetok.training.model import build_model
from imagetok.training.plan import plan_run
from imagetok.training.pushing import Pusher, PushPlan, prepare_push, push_finished
from imagetok.training.reporting import Reporter
from imagetok.training.resume import Start, check_data, find_start
from imagetok.training.setup import build_accelerator
from imagetok.training.trackers import check_trackers


@dataclass(frozen=True)
class TrainResult:
    """What a run left.

    Attributes:
        output_dir: The run's folder.
        tokenizer_dir: The trained tokenizer in it.
        evaluation: Its figures on the evaluation split.
        was_finished: The run had been finished before, and nothing was done.
        pushed: Where it was pushed to, on the main process.
    """

    output_dir: Path
    tokenizer_dir: Path
    evaluation: Evaluation
    was_finished: bool = False
    pushed: Pushed | None = None


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
        push: Where to push the tokenizer to, at the end and meanwhile; a repository that may not
            be written is refused before the first step. A finished run is pushed again.
        progress: Show progress bars on the main process.

    Returns:
        Where everything is, and the final figures; the same on every rank, but for `pushed`.

    Raises:
        ConfigError: The config does not fit the machine, the folder holds a run and `resume` is
            not set, or the run that is there had another config.
        DataError: The data cannot be read as asked, or too many rows cannot be read.
        HubError: It cannot be pushed.
        MissingExtraError: A tracker is asked for and not installed.
        ModelFileError: The newest checkpoint is damaged.
        Stopped: SIGTERM, SIGINT or SIGUSR1 came; everything is saved.
        TrainingError: The loss or the gradients are not finite.
        UnwritableFileError: The disk is full or the folder cannot be written.
    """
    folder = Path(output_dir)
    plan_run(config)  # whatever cannot be built is refused before anything is read or written
    accelerator = build_accelerator(config.train)
    collectives.from_main(lambda: check_trackers(config.train.trackers))
    with closing(FolderLock(folder)) as lock:
        patience = PATIENCE if resume else 0.0
        collectives.from_main(lambda: lock.take(patience))
        start = collectives.from_main(lambda: find_start(folder, config, resume))
        if start.finished is not None:
            return _result(folder, start.finished, push, was_finished=True)
        collectives.from_main(lambda: prepare_push(push))

        def begin(fingerprint: str) -> None:
            make_folder(folder)
            if lock.take(patience):  # another run may have begun, and ended, since the first look
                find_start(folder, config, resume=False)
            start_folder(folder, config, fingerprint)

        figures = _train(config, folder, accelerator, start, begin, push, progress)
        return _result(folder, figures, push, was_finished=False)


def _result(
    folder: Path, figures: Evaluation, push: PushPlan | None, *, was_finished: bool
) -> TrainResult:
    """What a finished run left, once it is pushed."""
    target, pushed = folder / TOKENIZER, None
    # The others do not wait: a push may outlast what they wait for each other at most.
    if push is not None and collectives.rank() == 0:
        pushed = push_finished(target, push)
    return TrainResult(folder, target, figures, was_finished, pushed)


def _train(
    config: RunConfig,
    folder: Path,
    accelerator: Accelerator,
    start: Start,
    begin: Callable[[str], None],
    push: PushPlan | None,
    progress: bool,
) -> Evaluation:
    """Open the data, begin the folder, and train."""
    model = build_model(config, accelerator.device, resuming=start.checkpoint is not None)
    signals = StopSignals()
    with logging_redirect_tqdm(), watch_launcher(signals):
        # One process fills the cache of a dataset before the others read it.
        with accelerator.main_process_first():
            data = open_training(config, model.preprocessor)
            evaluation_rows = open_evaluation(config)
        check_data(start, data.fingerprint)
        collectives.from_main(lambda: begin(data.fingerprint))
        reporter = Reporter(config, accelerator, folder, evaluation_rows, start.step, progress)
        # Until here there is nothing to save: signals end the process as they end any other.
        with signals, closing(reporter):
            pusher = Pusher(push, config.train.steps)
            run = Run(config, accelerator, model, data, folder, start, signals, reporter, pusher)
            with pusher, closing(run):
                try:
                    run.train_all()
                except TrainingError as error:
                    last = collectives.from_main(run.describe_last_checkpoint)
                    raise TrainingError(f"{error}; {last}") from error
                except RuntimeError as error:
                    worded = worded_error(error)
                    if worded is error:
                        raise
                    raise worded from error
                return run.finish(evaluation_rows)
