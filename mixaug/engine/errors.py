"""What can go wrong in a run, by name."""

__all__ = [
    "EXIT_HELD",
    "EXIT_WRONG",
    "FAULTS",
    "CheckpointError",
    "ConfigError",
    "LoadingError",
    "ProcessLost",
    "RunFolderError",
    "RunHeld",
    "TrainingDiverged",
]


#: Exit code of a command whose run folder another process holds: "try again later" (EX_TEMPFAIL of sysexits.h).
EXIT_HELD = 75

#: Exit code of a command that cannot work as asked, and has begun nothing.
EXIT_WRONG = 2


class ConfigError(ValueError):
    """A value in the configuration cannot work; raised before anything is created."""


class RunFolderError(OSError):
    """The run folder cannot be created or written; earlier checkpoints are left as they were."""


class RunHeld(RunFolderError):
    """Another process works on the run folder; nothing in it was touched."""


class CheckpointError(RuntimeError):
    """No checkpoint in the folder can be read, or it belongs to another configuration."""


class LoadingError(RuntimeError):
    """A sample cannot be read, or a process that reads samples has ended."""


class ProcessLost(RuntimeError):
    """Another process of a distributed run has ended, or cannot be reached."""


class TrainingDiverged(RuntimeError):
    """The loss became infinite or not a number.

    Attributes:
        step: the first step with such a loss, counted from 1.
    """

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


#: What a command tells in one line, without a trace: the line, the data, the folder or the machine is at fault.
FAULTS = (
    ConfigError,
    OSError,
    CheckpointError,
    LoadingError,
    ProcessLost,
    TrainingDiverged,
    MemoryError,
)
