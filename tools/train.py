"""Train one model: python tools/train.py policy=cutmix model=cifar_resnet18 data=cifar10 data.root=/path

The same command skips a finished run and continues an interrupted one. Several processes:
torchrun --nproc-per-node=2 tools/train.py ...; several runs: python tools/train.py --multirun seed=0,1,2 ...
Exit code: 0, 75 if another process works on the run, 1 for every other error.
"""

import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig


@hydra.main(version_base="1.3", config_path="../configs", config_name="train")
def main(_: DictConfig) -> float:
    """Run the composed config; a Hydra sweeper may optimise what is returned, the top-1 or the RMSE that counts.

    It is that of the validation set where there is one, else of the test set.
    """
    from mixaug.engine.config import compose
    from mixaug.engine.errors import RunHeld
    from mixaug.engine.lock import EXIT_HELD
    from mixaug.engine.tasks import TASKS
    from mixaug.engine.train import train

    # Composed once more, because a protocol's rules need to know what the command line has set.
    config = compose(list(HydraConfig.get().overrides.task))
    try:
        result = train(config)
    except RunHeld as error:
        print(error, file=sys.stderr)
        sys.exit(EXIT_HELD)
    return TASKS[result["task"]].aim(result, config.protocol.figure)


if __name__ == "__main__":
    main()
