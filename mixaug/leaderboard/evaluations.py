"""What the suite found of the runs of a board, with paired differences, corrected for how many there are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from mixaug.engine.evaluation.suite import FamilyResult, read_results
from mixaug.engine.reading import DamagedFile
from mixaug.leaderboard.aggregate import Board, Row
from mixaug.leaderboard.statistics import PairedDifference, difference_p_value, holm, paired_difference

__all__ = ["MEASURES", "Cell", "Evaluation", "Measure", "evaluation_of"]


@dataclass(frozen=True)
class Measure:
    """A column.

    Attributes:
        family, key: where the number is.
        title: what it is called.
        digits: behind the point.
        higher_is_better: None where neither is, so that it is not compared.
        is_share: whether it is a share of the test images in percent, which moves in steps.
    """

    family: str
    key: str
    title: str
    digits: int
    higher_is_better: bool | None
    is_share: bool = False


MEASURES = (
    Measure("calibration", "ece", "ECE", 4, False),
    Measure("calibration", "ece_mass", "ECE, equal mass", 4, False),
    Measure("calibration", "ece_classwise", "ECE, classwise", 4, False),
    Measure("calibration", "brier", "Brier", 4, False),
    Measure("calibration", "nll", "NLL", 4, False),
    Measure("temperature", "temperature", "temperature", 3, None),
    Measure("temperature", "ece", "ECE, scaled", 4, False),
    Measure("temperature", "brier", "Brier, scaled", 4, False),
    Measure("temperature", "nll", "NLL, scaled", 4, False),
    Measure("outliers", "msp_auroc", "AUROC, MSP", 4, True),
    Measure("outliers", "energy_auroc", "AUROC, energy", 4, True),
    Measure("outliers", "mahalanobis_auroc", "AUROC, Mahalanobis", 4, True),
    Measure("outliers", "knn_auroc", "AUROC, k-NN", 4, True),
    Measure("outliers", "msp_fpr95", "FPR95, MSP", 4, False),
    Measure("attack", "fgsm", "FGSM top-1 (%)", 2, True, is_share=True),
    Measure("attack", "pgd", "PGD top-1 (%)", 2, True, is_share=True),
    Measure("attack", "check_pgd_strong", "longer PGD, few images (%)", 2, True),
    Measure("occlusion", "mean_area", "mean colour, area (%)", 2, True),
    Measure("occlusion", "foreign_area", "foreign patches, area (%)", 2, True),
    Measure("occlusion", "selectivity", "selectivity (points)", 2, True),
    Measure("occlusion", "shuffled_4x4", "shuffled 4x4 (%)", 2, None),
    Measure("corruption", "mean_error", "mean error (%)", 2, False),
    Measure("corruption", "severity_5", "severity 5 (%)", 2, False),
    Measure("geometry", "nc1", "NC1", 3, None),
    Measure("geometry", "nc2_angle_means", "NC2 angles", 3, None),
    Measure("geometry", "nc3", "NC3", 3, None),
    Measure("geometry", "nc4", "NC4", 4, None),
    Measure("geometry", "alignment", "alignment", 3, None),
    Measure("geometry", "uniformity", "uniformity", 3, None),
    Measure("geometry", "intrusion_mixup", "intrusion, mixup (%)", 2, False),
    Measure("geometry", "intrusion_cutmix", "intrusion, cutmix (%)", 2, False),
    Measure("activation", "half_share", "activation on the own half (%)", 2, True),
    Measure("activation", "half_pointing", "peak on the own half (%)", 2, True),
    Measure("activation", "object_share", "activation on the object (%)", 2, True),
    Measure("activation", "object_pointing", "peak on the object (%)", 2, True),
    Measure("activation", "object_area", "area of the object (%)", 2, None),
)
"""The columns, family by family. What is better is said where the literature agrees on it."""


@dataclass(frozen=True)
class Cell:
    """One measure of one policy.

    Attributes:
        values: by seed.
        difference: to the baseline over common seeds; None for it, and for what is not compared.
        p_value: adjusted after Holm for all comparisons of its board, 1 where the spread says nothing; None without
            two common seeds.
    """

    values: Mapping[int, float]
    difference: PairedDifference | None = None
    p_value: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """What was found of a board's runs.

    Attributes:
        board: the board.
        results: by row's label and seed, families by name.
        cells: by row's label and measure, for measures that any run has.
        comparisons: how many tests the p values are adjusted for.
        problems: runs that are left out of a family, and why.
    """

    board: Board
    results: Mapping[str, Mapping[int, Mapping[str, FamilyResult]]]
    cells: Mapping[str, Mapping[Measure, Cell]]
    comparisons: int
    problems: tuple[str, ...] = field(default=())

    @property
    def measures(self) -> list[Measure]:
        """Those that any run has, in order."""
        return [measure for measure in MEASURES if any(measure in cells for cells in self.cells.values())]

    @property
    def rows(self) -> list[Row]:
        """The board's rows that were evaluated, in its order."""
        return [row for row in self.board.rows if self.cells.get(row.label)]


def evaluation_of(board: Board, confidence: float) -> Evaluation | None:
    """The results in the run folders of a board; None where there are none.

    Runs that were evaluated with other settings than the first of their family, another seed or other images, cannot be
    compared with it and are left out of that family.
    """
    problems: list[str] = []
    results: dict[str, dict[int, dict[str, FamilyResult]]] = {}
    settings: dict[str, str] = {}
    # The baseline comes first: its settings are those that the others are held to.
    for row in sorted(board.rows, key=lambda row: row is not board.baseline):
        by_seed = results.setdefault(row.label, {})
        for run in row.runs:
            try:
                found = read_results(run.folder)
            except FileNotFoundError:
                continue
            except DamagedFile as error:
                problems.append(f"{run.name}: {error}")
                continue
            for name, result in list(found.items()):
                if settings.setdefault(name, result.settings) != result.settings:
                    problems.append(f"{run.name}: {name} was evaluated with other settings: {_told(result.settings)}")
                    del found[name]
            if found:
                by_seed[int(run.result["seed"])] = found
    if not any(results.values()):
        return None
    cells = {label: _cells(by_seed) for label, by_seed in results.items()}
    steps = {measure: _step(measure, results) for measure in MEASURES}
    compared, count = _compared(board, cells, steps, confidence)
    return Evaluation(board, results, compared, count, tuple(problems))


def _cells(by_seed: Mapping[int, Mapping[str, FamilyResult]]) -> dict[Measure, Cell]:
    cells = {}
    for measure in MEASURES:
        values = {
            seed: found[measure.family].numbers[measure.key]
            for seed, found in by_seed.items()
            if measure.family in found and measure.key in found[measure.family].numbers
        }
        if values:
            cells[measure] = Cell(values)
    return cells


def _step(measure: Measure, results: Mapping[str, Mapping[int, Mapping[str, FamilyResult]]]) -> float:
    """The smallest change that the measure can show; 0 for one without steps, and where the files do not say it."""
    found = [families.get(measure.family) for by_seed in results.values() for families in by_seed.values()]
    samples = min((result.samples for result in found if result is not None), default=0)
    return 100 / samples if measure.is_share and samples > 0 else 0.0


def _compared(
    board: Board, cells: Mapping[str, Mapping[Measure, Cell]], steps: Mapping[Measure, float], confidence: float
) -> tuple[dict[str, dict[Measure, Cell]], int]:
    baseline = {} if board.baseline is None else cells[board.baseline.label]
    made: dict[str, dict[Measure, Cell]] = {label: dict(own) for label, own in cells.items()}
    tests: list[tuple[str, Measure, float]] = []
    for row in board.rows:
        for measure, cell in made[row.label].items():
            if row is board.baseline or measure not in baseline or measure.higher_is_better is None:
                continue
            theirs = baseline[measure].values
            difference = paired_difference(
                cell.values, theirs, confidence, higher_is_better=measure.higher_is_better, step=steps[measure]
            )
            made[row.label][measure] = Cell(cell.values, difference)
            if difference is not None and difference.n > 1:
                tests.append((row.label, measure, difference_p_value(difference, cell.values, theirs)))
    for (label, measure, _), adjusted in zip(tests, holm([p for *_, p in tests]), strict=True):
        cell = made[label][measure]
        made[label][measure] = Cell(cell.values, cell.difference, adjusted)
    return made, len(tests)


def _told(settings: str) -> str:
    return ", ".join(f"{key}={value}" for key, value in json.loads(settings).items() if value is not None)
