"""What is timed of mixing and its loss; training steps and loaders have modules of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import mixaug
from mixaug.batch import MixedBatch
from mixaug.losses import mixed_cross_entropy
from mixaug.pairing.base import PoolPairing
from mixaug.policy import Policy
from speed.libraries import Mixer, dense_targets, other_libraries
from speed.setting import Setting
from speed.timing import Ratio, interleaved

PLAIN = "mixaug"
LARGE_SIDE = 128


@dataclass(frozen=True)
class Job:
    """One policy with its options, under the name that the tables use.

    ``one_graph`` keeps every branch of a learned mixer until one backward pass, as the released code does. A whole
    training step takes the objective that ``objective`` makes, None the cross-entropy; one that wants a teacher gets a
    frozen copy of the model.
    """

    label: str
    policy: str
    options: dict[str, Any] = field(default_factory=dict)
    one_graph: bool = False
    objective: Callable[[], nn.Module] | None = None


JOBS = (
    Job("mixup", "mixup"),
    Job("cutmix", "cutmix"),
    Job("fmix", "fmix"),
    Job("fmix 16 frequencies", "fmix", {"frequencies": 16}),
    Job("gridmix", "gridmix"),
    Job("smoothmix", "smoothmix"),
    Job("resizemix", "resizemix"),
    Job("resizemix bilinear", "resizemix", {"interpolation": "bilinear"}),
    Job("saliencymix", "saliencymix"),
    Job("patchmix", "patchmix"),
    Job("maskmix", "maskmix"),
)


@dataclass(frozen=True)
class Row:
    """One line of a table: a library doing a job, against the floor of the same run.

    ``fresh_lerp`` is the ratio to a ``lerp`` that allocates its result too, ``memory`` the ratio of peaks to the
    reference. ``goal_section`` and ``where`` choose the goals of goals.csv that judge the row; an empty section none.
    """

    section: str
    setting: str
    job: str
    per: str
    output: str
    library: str
    milliseconds: float
    floor: Ratio
    against_best_peer: Ratio | None = None
    best_peer: str = ""
    note: str = ""
    fresh_lerp: Ratio | None = None
    memory: float | None = None
    goal_section: str = ""
    where: str = ""


def mixing(setting: Setting, jobs: Sequence[Job], pers: Sequence[str], *, compiled: bool, rounds: int) -> Iterator[Row]:
    """Mixing alone, labels in each library's own form; ours fresh, into ``out=``, in place and compiled."""
    images, other, labels = material(setting)
    for job in jobs:
        for per in pers:
            policy = mixaug.create(job.policy, per=per, **job.options)
            # A policy in place and most other libraries overwrite their input: each gets a batch of its own.
            cases: dict[str, Callable[[], object]] = {
                "floor": _floor(images, other),
                f"{PLAIN}/fresh": partial(policy, images, labels),
                f"{PLAIN}/out": partial(policy, images, labels, out=torch.empty_like(images)),
                f"{PLAIN}/inplace": partial(policy, images.clone(), labels, inplace=True),
            }
            if images.is_floating_point():
                cases["lerp/fresh"] = partial(torch.lerp, images, other, 0.3)
            if compiled:
                # All policies share one `forward`, of which the compiler keeps a few versions only.
                torch.compiler.reset()
                cases[f"{PLAIN}/compiled"] = partial(torch.compile(policy), images, labels)
            if not job.options:
                for name, mixer in other_libraries(job.policy, per, setting):
                    cases[f"{name}/own"] = partial(mixer, images.clone(), labels)
            is_judged = setting.dtype == "float32" and setting.layout == "contiguous"
            yield from _rows(
                "mixing", setting, job.label, per, cases, rounds, goal_section="mixing" if is_judged else ""
            )


def labels_and_loss(
    setting: Setting, jobs: Sequence[Job], pers: Sequence[str], *, compiled: bool, rounds: int
) -> Iterator[Row]:
    """Mixing, targets and cross-entropy: our index form against the dense targets of the others."""
    images, other, labels = material(setting)
    logits = torch.randn(setting.shape[0], setting.num_classes, device=setting.device)

    def ours(policy: Policy) -> Tensor:
        mixed: MixedBatch = policy(images, labels)
        return mixed_cross_entropy(logits, labels, mixed.sources, mixed.weights)

    def theirs(mixer: Mixer, own: Tensor) -> Tensor:
        return F.cross_entropy(logits, dense_targets(mixer(own, labels)))

    for job in jobs:
        for per in pers:
            policy = mixaug.create(job.policy, per=per, **job.options)
            cases: dict[str, Callable[[], object]] = {
                "floor": _floor(images, other),
                f"{PLAIN}/fresh": partial(ours, policy),
            }
            if compiled:
                cases[f"{PLAIN}/compiled"] = partial(torch.compile(ours), policy)
            for name, mixer in other_libraries(job.policy, per, setting):
                if name != "kornia":  # kornia returns pairs of labels and leaves the targets to the user
                    cases[f"{name}/own"] = partial(theirs, mixer, images.clone())
            yield from _rows("mixing, labels and loss", setting, job.label, per, cases, rounds)


def index_loss(batch: int, classes: int, device: str, rounds: int) -> Iterator[Row]:
    """Labels and loss alone: our index form and dense targets, as multiples of ``log_softmax``."""
    logits = torch.randn(batch, classes, device=device)
    labels = torch.randint(classes, (batch,), device=device)
    mixed = mixaug.create("mixup")(torch.zeros(batch, 1, device=device), labels)

    def ours(smoothing: float) -> Tensor:
        return mixed_cross_entropy(logits, labels, mixed.sources, mixed.weights, label_smoothing=smoothing)

    def dense(smoothing: float) -> Tensor:
        return F.cross_entropy(logits, mixed.targets(classes), label_smoothing=smoothing)

    cases: dict[str, Callable[[], object]] = {"floor": lambda: F.log_softmax(logits, dim=1)}
    for smoothing in (0.0, 0.1):
        suffix = f", smoothing {smoothing:g}" if smoothing else ""
        cases[f"{PLAIN}/index form{suffix}"] = partial(ours, smoothing)
        cases[f"dense/targets and cross_entropy{suffix}"] = partial(dense, smoothing)
    timings = interleaved(cases, rounds=rounds, device=torch.device(device))
    for name, timing in timings.items():
        library, _, output = name.partition("/")
        yield Row(
            section="loss as a multiple of log_softmax",
            setting=f"B={batch} K={classes}",
            job="cross-entropy of two sources",
            per="sample",
            output=output,
            library=library,
            milliseconds=timing.median * 1e3,
            floor=Ratio.of(timing, timings["floor"]),
            goal_section="loss",
            where="large" if batch >= 1024 and classes >= 1000 else "small",
        )


def pairing(count: int, columns: int, device: str, rounds: int, batch: int = 1024) -> Iterator[Row]:
    """Drawing C-Mixup's partners over a training set, as a multiple of drawing uniform ones.

    Args:
        count: rows of the training set.
        columns: label columns.
        device, rounds: as elsewhere.
        batch: samples that each draw one partner.
    """
    from mixaug.batch import Batch
    from mixaug.draws import Draws
    from mixaug.pairing import LabelKernel, Permutation

    labels = torch.randn(count, columns, device=device)
    anchors = labels[torch.randint(count, (batch,), device=device)]
    inputs = torch.zeros(batch, 1, device=device)
    uniform, kernel = Permutation().fit(labels), LabelKernel().fit(labels)

    def draw(fitted: PoolPairing) -> Tensor:
        return fitted.draw(Batch(inputs, anchors, None), Draws(batch, torch.device(device)))

    cases: dict[str, Callable[[], object]] = {
        "floor": partial(draw, uniform),
        f"{PLAIN}/label kernel": partial(draw, kernel),
    }
    held = sum(value.nbytes for value in vars(kernel.sampler).values() if isinstance(value, Tensor))
    timings = interleaved(cases, rounds=rounds, device=torch.device(device))
    for name, timing in timings.items():
        library, _, output = name.partition("/")
        yield Row(
            section=f"partners of {batch} samples, as a multiple of uniform ones",
            setting=f"N={count:,} D={columns}",
            job="uniform" if name == "floor" else output,
            per="sample",
            output="rows",
            library=library,
            milliseconds=timing.median * 1e3,
            floor=Ratio.of(timing, timings["floor"]),
            note="" if name == "floor" else f"{held / 2**20:.3g} MiB held; N x N: {count**2 * 8 / 2**20:,.0f} MiB",
        )


# Cost of the authors' step as a multiple of plain mixup of the same batch (saliency pass not included), by image side
# and transport, for 2, 4, 8 and 16 blocks a side.
PUZZLEMIX_AUTHORS = {
    (32, False): (23.0, 27.0, 31.0, 71.0),
    (32, True): (259.0, 264.0, 256.0, 3009.0),
    (224, False): (2.9, 2.3, 2.4, 2.4),
    (224, True): (9.4, 15.0, 50.0, 249.0),
}


def puzzlemix(shape: tuple[int, int, int, int], device: str, rounds: int) -> Iterator[Row]:
    """PuzzleMix from a given saliency, as a multiple of mixup into kept memory; the note has the authors' multiple.

    The authors' plain mixup allocates its result and two temporaries, dear where images are large, and was timed on
    another machine: their multiple is not to be divided by ours.

    Args:
        shape: shape of the images; the authors were measured at (100, 3, 32, 32), whose cells move by 4 pixels, and
            (64, 3, 224, 224).
        device, rounds: as elsewhere.
    """
    from mixaug.signals import Signals

    generator = torch.Generator().manual_seed(0)
    images = F.avg_pool2d(torch.rand(shape, generator=generator), 5, 1, 2).to(device)
    # Each image has one salient place, as networks see it.
    places = torch.linspace(-1, 1, shape[2])
    centre = torch.rand(2, shape[0], 1, generator=generator) * 2 - 1
    near = torch.exp(-8 * (places - centre).square())
    saliency = (near[0][:, :, None] * near[1][:, None] + 0.1) * images.mean(1).cpu() ** 3
    signals = Signals(saliency=saliency.to(device))
    plain, kept = mixaug.create("mixup", per="batch"), torch.empty_like(images)
    cases: dict[str, Callable[[], object]] = {"floor": partial(plain, images, out=kept)}
    authors: dict[str, float | None] = {"floor": None}
    for transport in (False, True):
        for place, count in enumerate((2, 4, 8, 16)):
            name = f"{PLAIN}/n = {count}, transport {'on' if transport else 'off'}"
            options = {"block_nums": (count,), "transport": transport, "t_size": 4 if shape[2] == 32 else None}
            policy = mixaug.create("puzzlemix", mean=0, std=1, **options)
            cases[name] = partial(policy, images, signals=signals)
            known = PUZZLEMIX_AUTHORS.get((shape[2], transport))
            authors[name] = None if known is None else known[place]
    timings = interleaved(cases, rounds=rounds, device=torch.device(device))
    for name, timing in timings.items():
        library, _, output = name.partition("/")
        theirs = authors[name]
        yield Row(
            section="PuzzleMix without the saliency pass, as a multiple of mixup into kept memory",
            setting="x".join(map(str, shape)),
            job="plain mixup" if name == "floor" else output,
            per="batch",
            output="fresh",
            library=library,
            milliseconds=timing.median * 1e3,
            floor=Ratio.of(timing, timings["floor"]),
            note="" if theirs is None else f"authors: {theirs:g} times their plain mixup",
        )


def cut_energies(device: str, count: int = 100) -> Iterator[Row]:
    """How far PuzzleMix's cuts lie above the exact minimum, on random images and saliency; time beside scipy's."""
    from mixaug.functional import puzzlemix_costs, puzzlemix_energy
    from mixaug.ops.gridcut import cut_energy, exact_grid_cut, grid_cut

    generator = torch.Generator().manual_seed(0)
    for labels in (2, 3, 4):
        for side in (2, 4, 8, 16):
            images = F.avg_pool2d(torch.rand(count, 3, 32, 32, generator=generator) ** 3, 5, 1, 2) * 2
            saliency = F.avg_pool2d(torch.rand(count, 32, 32, generator=generator) ** 3, 5, 1, 2)
            partner, lam = torch.randperm(count, generator=generator), torch.rand(count, generator=generator)
            costs = puzzlemix_costs(images, partner, saliency, block_num=side, std=1.0)
            problem = [cost.to(device) for cost in puzzlemix_energy(*costs, lam, n_labels=labels)]
            solvers: dict[str, Callable[[], object]] = {
                "floor": partial(exact_grid_cut, *problem),
                f"{PLAIN}/host": partial(grid_cut, *problem, read=True),
                f"{PLAIN}/device": partial(grid_cut, *problem, read=False),
            }
            timings = interleaved(solvers, rounds=1, round_seconds=0, device=torch.device(device))
            wide = [cost.double().cpu() for cost in problem]
            least = cut_energy(exact_grid_cut(*wide), *wide)
            for name, timing in timings.items():
                found = solvers[name]()
                assert isinstance(found, Tensor)
                gap = 100 * (cut_energy(found.cpu(), *wide) / least - 1)
                library, _, output = name.partition("/")
                yield Row(
                    section=f"energy of {count} cuts above the exact minimum; time against scipy's maximum flow",
                    setting="3x32x32",
                    job=f"L = {labels}, n = {side}",
                    per="sample",
                    output=output or "scipy",
                    library=library,
                    milliseconds=timing.median * 1e3,
                    floor=Ratio.of(timing, timings["floor"]),
                    note=f"gap mean {gap.mean().clamp(min=0):.3f} %, largest {gap.max().clamp(min=0):.2f} %",
                )


def material(setting: Setting) -> tuple[Tensor, Tensor, Tensor]:
    """Two batches of images and one of class ids."""
    labels = torch.randint(setting.num_classes, (setting.shape[0],), generator=torch.Generator().manual_seed(2))
    return setting.images(0), setting.images(1), labels.to(setting.device)


def _floor(images: Tensor, other: Tensor) -> Callable[[], object]:
    kept = torch.empty_like(images)
    if images.dtype == torch.uint8:
        return lambda: kept.copy_(images)
    return lambda: torch.lerp(images, other, 0.3, out=kept)


def _rows(
    section: str,
    setting: Setting,
    job: str,
    per: str,
    cases: dict[str, Callable[[], object]],
    rounds: int,
    goal_section: str = "",
) -> Iterator[Row]:
    timings = interleaved(cases, rounds=rounds, device=torch.device(setting.device))
    floor, lerp = timings["floor"], timings.get("lerp/fresh")
    no_peers = ("floor", "lerp", PLAIN)
    peers = {name: timing for name, timing in timings.items() if name.partition("/")[0] not in no_peers}
    best = min(peers, key=lambda name: peers[name].median, default=None)
    for name, timing in timings.items():
        library, _, output = name.partition("/")
        is_ours = library == PLAIN
        allocates = is_ours and output in ("fresh", "compiled")
        against_lerp = Ratio.of(timing, lerp) if allocates and lerp is not None else None
        yield Row(
            section=section,
            setting=setting.name,
            job=job,
            per=per,
            output=output or "kept",
            library=library,
            milliseconds=timing.median * 1e3,
            floor=Ratio.of(timing, floor),
            against_best_peer=Ratio.of(timing, peers[best]) if is_ours and best is not None else None,
            best_peer=best.partition("/")[0] if best is not None and is_ours else "",
            note="" if against_lerp is None else f"{against_lerp.median:.2f} fresh lerps",
            fresh_lerp=against_lerp,
            goal_section=goal_section,
            where="large" if setting.shape[-1] >= LARGE_SIDE else "small",
        )
