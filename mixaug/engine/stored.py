"""Scores of a stored checkpoint."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from mixaug.engine import checkpoint
from mixaug.engine.batches import Batches
from mixaug.engine.build import build_model, load_data
from mixaug.engine.distributed import start
from mixaug.engine.errors import CheckpointError
from mixaug.engine.targets import open_config
from mixaug.engine.tasks import task_of


def evaluate_checkpoint(
    path: Path | str, weights: str = "auto", device: str = "auto", allow_targets: Collection[str] = ()
) -> dict[str, float | None]:
    """Score a checkpoint on the test set of the run that wrote it.

    The folder may come from anybody: its config builds what a run of mixaug is made of and nothing else.

    Args:
        path: a checkpoint file, or a run folder (its ``last.pt`` is taken).
        weights: "model", "ema", or "auto": the averaged weights where the run kept them.
        device: "auto", "cpu", "cuda".
        allow_targets: full names that the config may call beside those of mixaug, as ``"my_package.MyModel"``.

    Returns:
        Numbers by name: ``top1``, ``top5``, ``nll``, ``ece`` of a classifier (see `Scores`); ``rmse``, ``mae``,
        ``mape``, ``r2`` and, for data with groups, ``worst_rmse`` in regression; ``samples``.

    Raises:
        FileNotFoundError: no checkpoint or no ``config.yaml`` beside it.
        CheckpointError: the file is damaged, does not fit the config, or has no averaged weights though they were asked
            for.
        ConfigError: the config would run code that is not mixaug's own, or cannot work.
        DamagedFile: the config cannot be read.
    """

    if weights not in ("auto", "model", "ema"):
        raise ValueError(f"weights must be auto, model or ema, got {weights!r}")
    path = Path(path)
    if path.is_dir():
        path = path / checkpoint.LAST
    config = open_config(path.parent, allow_targets)
    state = checkpoint.load(path)
    if weights == "auto":
        weights = "model" if state.get("ema") is None else "ema"
    if state.get(weights) is None:
        raise CheckpointError(f"checkpoint {path} has no averaged weights: the run kept none (ema.decay is null)")
    world = start(device)
    data = load_data(config)
    model = build_model(config, data)
    try:
        model.load_state_dict(state[weights])
    except (RuntimeError, TypeError, AttributeError) as error:
        raise CheckpointError(f"checkpoint {path} does not fit the model of its config: {error}") from error
    model.to(world.device)
    return task_of(data).score(model, Batches(config, data, world), "test", config.precision)
