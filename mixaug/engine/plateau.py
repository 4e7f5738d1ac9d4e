"""The state of a schedule of the learning rate, with what timm leaves out of that of a plateau."""

from __future__ import annotations

from typing import Any

from torch.optim.lr_scheduler import ReduceLROnPlateau

__all__ = ["load_schedule_state", "schedule_state"]

#: What a plateau has seen and counted so far.
COUNTED = ("best", "num_bad_epochs", "cooldown_counter")


def schedule_state(schedule: Any) -> Any:
    """All that a schedule needs to go on exactly, as it says itself; of a plateau with what it has counted."""
    state, watched = schedule.state_dict(), _plateau(schedule)
    if watched is None:
        return state
    counted = {name: getattr(watched, name) for name in COUNTED}
    # The rates are those without the noise that is on them now.
    return {**state, "counted": counted, "restore_lr": schedule.restore_lr}


def load_schedule_state(schedule: Any, state: Any) -> None:
    """Go on from a state; one of an earlier version has none of the counts, and these begin anew."""
    schedule.load_state_dict(state)
    watched = _plateau(schedule)
    if watched is not None and "counted" in state:
        for name in COUNTED:
            setattr(watched, name, state["counted"][name])
        schedule.restore_lr = state["restore_lr"]


def _plateau(schedule: Any) -> ReduceLROnPlateau | None:
    watched = getattr(schedule, "lr_scheduler", None)
    return watched if isinstance(watched, ReduceLROnPlateau) else None
