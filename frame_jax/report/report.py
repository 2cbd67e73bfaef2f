"""Writes the report of a run: RUN/report/index.html, its PNGs and verdict.json.

Everything is read from files, so the report of a run copied from elsewhere is made the same way.
"""

from typing import Any

from frame_jax.config.run import RunConfig
from frame_jax.errors import UserError
from frame_jax.evaluation.results import read_results
from frame_jax.parallel import processes
from frame_jax.report import chapters, study_chapters, training_curves
from frame_jax.report.chapters import ReportData
from frame_jax.report.page import PAGE, Piece, write_page
from frame_jax.report.paired_differences import training_row_differences
from frame_jax.report.study import read_study
from frame_jax.report.study_results import FILE, Study
from frame_jax.run.directory import RunDirectory, write_dataclass
from frame_jax.run.partition_record import read_partition_record


def write_report(config: RunConfig, directory: RunDirectory) -> dict[str, Any]:
    """Writes the report; called on every process, does its work on the first.

    Returns:
        The page's path relative to the run directory, and the figures' names.

    Raises:
        UserError: if no arm has been trained.
    """
    if not processes.is_first():
        return {}
    study = read_study(config, directory)
    pieces = report_contents(config, directory, study)
    write_dataclass(directory.report / FILE, study)
    names = write_page(f"FRAME report: {directory.root.name}", pieces, directory.report)
    return {"page": f"{directory.report.name}/{PAGE}", "figures": names}


def read_report_data(config: RunConfig, directory: RunDirectory, study: Study) -> ReportData:
    """Reads the arms of a run under its first seed and their results.

    Raises:
        UserError: if no arm has been trained.
    """
    trials = {trial.arm: trial.name for trial in config.trials if trial.seed == config.all_seeds[0]}
    runs = [
        training_curves.read_training_run(directory.pretrain(name), arm)
        for arm, name in trials.items()
    ]
    arms = [run for run in runs if run is not None]
    if not arms:
        raise UserError(f"{directory.root / 'pretrain'}: nothing has been trained to report on")
    every = read_results(directory)
    return ReportData(
        arms,
        curves=[point for arm in arms for point in training_curves.thinned_curve(arm)],
        results={a.name: every[trials[a.name]] for a in arms if trials[a.name] in every},
        shaded=max(arms, key=lambda arm: (len(arm.stages) > 1, arm.name == "frame")),
        study=study,
        training_rows=training_row_differences(config, directory),
    )


def report_contents(config: RunConfig, directory: RunDirectory, study: Study) -> list[Piece]:
    """Makes the whole report, in order."""
    data = read_report_data(config, directory, study)
    partition = read_partition_record(directory)
    return [
        *study_chapters.verdicts_chapter(data),
        *chapters.training_loss_chapter(data),
        *chapters.held_out_loss_chapter(data),
        *study_chapters.forgetting_chapter(data),
        *chapters.tasks_chapter(data),
        *study_chapters.cost_chapter(data),
        *chapters.mixtures_chapter(data, list(partition.quadrants)),
        *chapters.quadrants_chapter(directory, partition),
        *chapters.speed_chapter(data, directory),
        *chapters.settings_chapter(config),
    ]
