"""`check_policy`: whether a policy keeps what every policy promises. For packages of one's own; needs no pytest.

    from mixaug.testing import check_policy

    def test_halfmix():
        check_policy(HalfMix)

What a policy shows is read off images that name their sample: plane i of such a batch is one in sample i and zero in
all others, so that a mixed pixel is the list of the samples that it shows and of their shares.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mixaug import Policy
from mixaug.testing import meaning, surface
from mixaug.testing.subject import ContractError, Subject

__all__ = ["PROMISES", "ContractError", "check_policy"]

#: The promises of a policy, by name: the first line of each function says what is promised; a broken promise raises
#: :class:`ContractError`.
PROMISES: dict[str, Callable[[Subject], None]] = {
    "form": surface.form,
    "sizes": surface.sizes,
    "label forms": surface.label_forms,
    "containers": surface.containers,
    "refusals": surface.refusals,
    "randomness": surface.randomness,
    "pixels": meaning.pixels,
    "labels": meaning.labels,
    "per": meaning.per,
    "options": meaning.options,
    "repeats": surface.repeats,
    "replays": surface.replays,
    "combinations": surface.combinations,
    "gradients": surface.gradients,
    "autocast": surface.autocast,
    "module": surface.module,
    "device": surface.device,
    "compiled": surface.compiled,
}


def check_policy(
    make: str | Callable[..., Policy],
    *,
    promises: Iterable[str] | None = None,
    options: Mapping[str, Any] | None = None,
    signals: Callable[[Tensor, Tensor | None], Any] | None = None,
    model: Callable[[], nn.Module] | None = None,
    device: torch.device | str = "cpu",
    size: Sequence[int] = (32, 48),
    compiled: bool = False,
) -> None:
    """Raise unless a policy keeps its promises, :data:`PROMISES`: mixed pixels, labels, draws, options, devices.

    A policy that ``needs`` signals of a model gets made-up ones; one that mixes inside a model gets a small one; one
    that has to see its model first (``on_attach``) is attached to that. One whose partners come from elsewhere is given
    those of the batch, where pixels tell whose they are; one that pairs by metadata or by a network beside the
    model, a random permutation. How a method
    labels is asked of its labeling: one with an attribute ``normalised = False`` may give a sample's labels a sum other
    than one.

    Args:
        make: the policy's class, its name in the registry, or any function that makes a new policy each time and takes
            options by name, such as ``functools.partial(HalfMix, left=1.0)``.
        promises: names of those to check; None checks all.
        options: options of the policy's own and for each a value that must change something, ``{"left": 1.0}``.
            Of those that :class:`mixaug.Policy` has, each that is offered must do so anyway.
        signals: function of (images, labels) that gives what the policy's argument ``signals`` takes, in place of the
            made-up ones.
        model: function that makes a model of images (B, 3, *size), in place of the small one.
        device: of the images; where it is a GPU, nothing may wait for it.
        size: of the images of most checks; a policy may refuse others, but not this one.
        compiled: also compare with the code of ``torch.compile``, which takes seconds. For policies without ``needs``.

    Raises:
        ContractError: a promise is broken.
        ValueError: a promise of another name.

    Example:
        >>> check_policy("cutmix", promises=["pixels", "labels"])
    """
    names = list(PROMISES) if promises is None else list(promises)
    unknown = [name for name in names if name not in PROMISES]
    if unknown:
        raise ValueError(f"check_policy has no promise {unknown[0]!r}; it has {list(PROMISES)}")
    if promises is None and not compiled:
        names.remove("compiled")
    subject = Subject(make, dict(options or {}), signals, model, torch.device(device), tuple(size))
    for name in names:
        subject.promise, subject.says = name, (inspect.getdoc(PROMISES[name]) or "").split("\n")[0]
        try:
            PROMISES[name](subject)
        except ContractError:
            raise
        except Exception as error:
            raise subject.broken(f"{type(error).__name__}: {error}", "no error") from error
