"""`MixCollate`: mix while a batch is put together, in the workers of any ``DataLoader``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate, get_worker_info

from mixaug.batch import MixedBatch
from mixaug.checks import check_probability, check_whole
from mixaug.loading.samples import Layout, explained_samples, may_overwrite
from mixaug.policy import Policy
from mixaug.streams import process_rank, stream_key

__all__ = ["MixCollate"]


class MixCollate:
    """A ``collate_fn`` that mixes: ``DataLoader(data, batch_size=128, collate_fn=MixCollate(policy, 100))``.

    Randomness. Without ``seed`` each batch draws from torch's default generator of the process it is made
    in, which ``DataLoader`` seeds anew for each worker and epoch; the rank of the process is folded in, so
    that ranks that called ``torch.manual_seed`` with one seed still mix differently. The result then
    depends on the number of workers. With ``seed`` a batch is mixed by (seed, rank, epoch, number of the
    batch) alone: the same for any number of workers, and repeatable after a resume. Call :meth:`set_epoch`
    before each epoch then; workers see it, persistent ones too. (Forgotten, epochs are told apart by the
    base seed that ``DataLoader`` draws for its workers, so none repeats, but the result depends on torch's
    global seed too.)

    Args:
        policy: a model-free policy.
        num_classes: K. Given, a batch is ``(images, dense targets (B, K))`` in the container of the batch, as
            torchvision's and timm's users expect. Else it is a :class:`mixaug.MixedBatch`, smaller to send
            and what mixaug's losses take.
        label_smoothing: in [0, 1], for the dense targets, applied to each source before mixing.
        collate: puts the samples together. With ``DataLoader(batch_size=None)``, where the data set yields
            whole batches, use ``torch.utils.data.default_convert``.
        image_key, label_key: where samples are mappings (Hugging Face: ``"pixel_values"``, ``"labels"``) or
            tuples other than (image, label, ...).
        keys: further entries that belong to the images and are mixed like them, such as a second view.
        extent_keys: entries that say how far padded inputs reach, lengths or masks of valid positions: they become the
            largest of each sample's sources, see :meth:`mixaug.MixedBatch.extent`.
        layout: where the channels of the images are, such as ``"NHWC"``, see :meth:`mixaug.Policy.forward`.
        seed: makes each batch a function of (seed, rank, epoch, number of the batch).

    Raises:
        ValueError: smoothing without ``num_classes`` or out of range, K < 1, a policy that needs the model or keeps
            earlier samples, an entry named for two purposes; when called, images of different sizes, entries that are
            not there, an accelerate loader that would have to cut a ``MixedBatch``.
        TypeError: something other than a policy; when called, PIL images, nested inputs, labels that are no numbers.
    """

    def __init__(
        self,
        policy: Policy,
        num_classes: int | None = None,
        label_smoothing: float = 0.0,
        collate: Callable[[list[Any]], Any] = default_collate,
        *,
        image_key: Hashable | None = None,
        label_key: Hashable | None = None,
        keys: Sequence[Hashable] = (),
        extent_keys: Sequence[Hashable] = (),
        layout: str | None = None,
        seed: int | None = None,
    ) -> None:
        check_free_policy("MixCollate", policy)
        keeping = [part for part in policy.modules() if getattr(part, "keeps_state", False)]
        if keeping:
            raise ValueError(
                "MixCollate works in the processes of a loader, which each have a copy of the policy that nobody "
                f"saves, but {type(keeping[0]).__name__} keeps earlier samples: mix in DeviceLoader or MixStep"
            )
        if num_classes is not None:
            num_classes = check_whole("MixCollate", "num_classes", num_classes)
        label_smoothing = check_probability("MixCollate", "label_smoothing", label_smoothing)
        if label_smoothing and num_classes is None:
            raise ValueError(
                "MixCollate smooths dense targets only: pass num_classes, or give label_smoothing to the loss"
            )
        self.policy = policy
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        self.collate = collate
        self.layout = Layout("MixCollate", image_key, label_key, keys, extent_keys, layout)  # type: ignore[arg-type]
        self.layout.check_policy(policy)
        self.seed = seed
        self._rank: int | None = None
        # Epoch, first batch and number of set_epoch calls lie in shared memory, so that persistent workers,
        # which hold copies of this object, see what the main process sets.
        self._epoch = torch.zeros(3, dtype=torch.int64).share_memory_()
        self._progress = torch.full((1,), -1.0, dtype=torch.float64).share_memory_()
        self._calls = 0
        self._made = 0

    def set_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """Start the streams of an epoch; before iterating over the loader, also with persistent workers.

        Args:
            epoch: its number.
            first_batch: number of the first batch that the loader will yield, when resumed in mid-epoch.
        """
        self._epoch.copy_(torch.tensor([epoch, first_batch, int(self._epoch[2]) + 1]))

    def set_progress(self, fraction: float) -> None:
        """Tell the policy, in every worker, how much of training is done, in [0, 1].

        Workers run ahead of training by up to ``prefetch_factor`` batches each, and so does this.
        """
        self.policy.set_progress(fraction)
        self._progress.fill_(fraction)

    def __call__(self, samples: list[Any]) -> Any:
        """Collate and mix one batch."""
        self._refuse_dealing()
        generator = self._generator()
        if self._progress[0] >= 0:
            self.policy.set_progress(float(self._progress[0]))
        batch = self._collated(samples)
        # default_collate has just stacked copies, which nobody else holds.
        inplace = self.collate is default_collate and may_overwrite(self.policy, self.layout.images(batch))
        mixed: MixedBatch = self.layout.mix(self.policy, batch, generator=generator, inplace=inplace)
        if self.num_classes is None:
            return mixed
        if isinstance(batch, Tensor) or mixed.labels is None:
            raise ValueError("MixCollate(num_classes=...) makes dense targets, but the samples have no labels")
        if mixed.importance is not None:
            raise ValueError(
                "MixCollate(num_classes=...) cannot hand on the importance of samples that "
                f"{type(self.policy).__name__} gives: leave num_classes out and use a loss of mixaug.losses"
            )
        return self.layout.with_targets(batch, mixed, mixed.targets(self.num_classes, self.label_smoothing))

    def _collated(self, samples: list[Any]) -> Any:
        if self.collate is not default_collate:
            return self.collate(samples)
        try:
            return default_collate(samples)
        except (TypeError, RuntimeError) as error:
            # torch's own message names neither the samples nor what to do.
            are_samples = isinstance(samples, tuple) and all(isinstance(one, (tuple, list, Mapping)) for one in samples)
            if not isinstance(samples, list) and not are_samples:
                raise TypeError(
                    "MixCollate is the collate_fn of a DataLoader, which hands it the list of the samples of a batch, "
                    f"got {type(samples).__name__}: a batch that is put together mixes by policy(images, labels), "
                    "and a single sample has no partner"
                ) from error
            explained = explained_samples("MixCollate", samples)
            if explained is None:
                raise
            raise explained from error

    def _generator(self) -> torch.Generator:
        rank = process_rank() if self._rank is None else self._rank
        if self.seed is None:
            base = int(torch.empty((), dtype=torch.int64).random_())
            return torch.Generator().manual_seed(stream_key("collate", base, rank))
        epoch, first, calls = self._epoch.tolist()
        if calls != self._calls:
            self._calls, self._made = calls, 0
        worker = get_worker_info()
        # DataLoader deals batches to its workers in turn, so the number of a batch follows from its worker.
        number = self._made if worker is None else self._made * worker.num_workers + worker.id
        self._made += 1
        if calls and worker is not None:
            # Surer than counting: lasting workers may still be making batches of a pass that was broken off.
            number = _number_in_worker(number)
        if calls:
            key = stream_key("collate", self.seed, rank, epoch, first + number)
        else:
            base = 0 if worker is None else worker.seed - worker.id
            key = stream_key("collate", self.seed, rank, "no epoch", base, number)
        return torch.Generator().manual_seed(key)

    def _refuse_dealing(self) -> None:
        """Raise where accelerate would cut the batch into parts, which it can do to tensors alone."""
        if self.num_classes is None and _accelerate_deals():
            raise ValueError(
                "MixCollate without num_classes makes a MixedBatch, but accelerate deals out batches that one process "
                "reads (dispatch_batches=True, its default for an IterableDataset) and can cut tensors only: pass "
                "accelerate.DataLoaderConfiguration(dispatch_batches=False), give num_classes for dense targets, or "
                "mix in the loop"
            )

    def __getstate__(self) -> dict[str, Any]:
        # A spawned worker does not see who asks for its batches: what cannot work is refused before it starts.
        self._refuse_dealing()
        # A spawned worker knows nothing of torch.distributed: it gets the rank of its parent.
        return {**self.__dict__, "_rank": process_rank() if self._rank is None else self._rank}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # A copy made by copy.deepcopy or pickle has ordinary memory: its own workers must be able to see it
        # too.
        self._epoch.share_memory_()
        self._progress.share_memory_()

    def __repr__(self) -> str:
        return f"MixCollate({self.policy!r}, num_classes={self.num_classes}, seed={self.seed})"


def _number_in_worker(otherwise: int) -> int:
    """Number of the batch, in its pass over the loader, that this worker process is making.

    torch tells a worker's functions no number, but its loop has it.

    Args:
        otherwise: the answer for a torch whose loop looks different.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code.co_name == "_worker_loop":
            number = frame.f_locals.get("idx")
            return number if isinstance(number, int) else otherwise
    return otherwise


def _accelerate_deals() -> bool:
    """Whether accelerate's loader that reads in one process and deals out the batches is at work on this stack.

    It tells a collate function nothing and only looks at what that has made; a forked worker has its parent's frames.
    """
    dispatcher = getattr(sys.modules.get("accelerate.data_loader"), "DataLoaderDispatcher", None)
    if dispatcher is None:
        return False
    deals = dispatcher.__iter__.__code__
    frame: Any = sys._getframe(1)
    while frame is not None and frame.f_code is not deals:
        frame = frame.f_back
    return frame is not None


def check_free_policy(what: str, policy: Any) -> None:
    """Raise unless ``policy`` is a Policy that can work without the model."""
    if not isinstance(policy, Policy):
        raise TypeError(f"{what} expects a policy, got {type(policy).__name__}; make one with mixaug.create(name)")
    if policy.needs:
        raise ValueError(
            f"{what} cannot run {type(policy).__name__}: it needs {', '.join(sorted(policy.needs))} of the model; "
            "train through mixaug.MixStep, in Lightning as mix_step of MixBatchMixin, in timm in MixTask, with the "
            "Hugging Face Trainer through MixTrainerMixin"
        )
