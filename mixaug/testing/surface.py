"""Promises of everything around the mixing: forms, sizes, randomness, replays, devices."""

from __future__ import annotations

import contextlib
import copy
import io
import pickle
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from mixaug import OneOf, Policy, Signals, Sometimes
from mixaug.batch import Batch
from mixaug.checks import IMAGE_DTYPES
from mixaug.plan import Plan
from mixaug.testing.subject import Subject, equal, numbers, signal_arguments

#: Sizes of images, down to single pixels, and up to where copies on a CPU go by slices.
SIZES = [(1, 1), (1, 9), (9, 1), (7, 5), (2, 2), (33, 8), (130, 140)]
#: Deviation allowed under autocast to what a policy's own network says: a few steps of bfloat16.
HALF = 0.05


def form(s: Subject) -> None:
    """Dtype, shape and memory layout of the images are kept, and the images stay as they are."""
    policy, labels = s.policy(), s.labels()
    for dtype in IMAGE_DTYPES:
        for layout in (torch.contiguous_format, torch.channels_last):
            if layout == torch.channels_last and len(s.size) != 2:
                continue
            images = s.pictures(dtype=dtype).contiguous(memory_format=layout)
            before = images.clone()
            mixed = s.mix(policy, images, labels)
            s.form(policy, mixed, images, labels, f" for {dtype} images, {layout}")
            s.require(torch.equal(images, before), "the caller's images changed", "images as they were")


def sizes(s: Subject) -> None:
    """Batches from one sample up, and images of every size that it does not refuse."""
    for per, policy in s.each_per():
        for count in (1, 2, 3, 7):
            images, labels = s.pictures(count), s.labels(count)
            mixed = s.mix(policy, images, labels, seed=2)
            s.form(policy, mixed, images, labels, f" for a batch of {count}, {per}")
            targets, total = mixed.targets(count).sum(1), mixed.weights.sum(1)
            s.require(torch.allclose(targets, total, atol=1e-5), f"targets of sum {numbers(targets)}", numbers(total))
            if count == 1:
                alone = torch.equal(mixed.inputs, images) and mixed.lam.tolist() == [1.0]
                s.require(alone, f"a single sample changed, or its label weighs {mixed.lam.tolist()}", "nothing mixed")
    policy = s.policy()
    volumes = [(6,), (6, 8), (6, 8, 10)]
    for size in [*SIZES, *volumes]:
        images, labels, generator = s.pictures(4, size), s.labels(4), s.seeded(3)
        state = generator.get_state()
        fits = policy.spatial is None or len(size) in policy.spatial
        try:
            mixed = s.mix(policy, images, labels, generator=generator)
        except ValueError as error:
            if not fits:
                s.require(torch.equal(generator.get_state(), state), f"size {size} refused after a draw", "no draw")
            s.require(bool(str(error)), f"size {size} refused without a word", "what is expected")
            continue
        s.require(fits, f"images of size {size} were mixed", f"an error, since spatial = {policy.spatial}")
        s.form(policy, mixed, images, labels, f" for images of size {size}")
        mask = mixed.mask
        right = mask is None or tuple(mask.shape) == (4, 1, *size)
        s.require(right, f"a mask {None if mask is None else tuple(mask.shape)}", f"{(4, 1, *size)}")


def label_forms(s: Subject) -> None:
    """Class ids, soft labels, numbers or none: labels are handed on as they come, and targets follow the weights."""
    policy, images = s.policy(), s.pictures(4)
    soft = torch.rand(4, 3, generator=torch.Generator().manual_seed(13)).to(s.device)
    ids = torch.tensor([0, 1, 2, 1], dtype=torch.int32, device=s.device)
    forms: tuple[Tensor | None, ...] = (None, ids, soft, soft[:, 0])
    for labels in forms:
        if labels is None and policy.needs_labels:
            _refused(s, policy, images, None, "no labels for a policy that needs_labels", "labels")
            continue
        try:
            mixed = s.mix(policy, images, labels, seed=14)
        except ValueError as error:
            # Numbers are of no class, by which a policy may pair.
            refusable = policy.needs_labels and labels is not None and labels.is_floating_point() and labels.ndim == 1
            s.require(refusable and "labels" in str(error), str(error), "no error")
            continue
        s.form(policy, mixed, images, labels, " for labels of another form")
        if labels is soft:
            wanted = (soft[mixed.sources] * mixed.weights[..., None]).sum(1)
            same = torch.allclose(mixed.targets(3), wanted, atol=1e-5)
            s.require(same, "targets that are not the weighted labels of the sources", "the sum of weight times label")


def containers(s: Subject) -> None:
    """A dict or tuple of tensors is mixed alike, and what is not named passes through."""
    policy, images, extra = s.policy(), s.pictures(4), s.pictures(4, channels=1)
    labels = s.labels(4)
    signals = s.signals(policy, images, labels)
    arguments = {} if signals is None else {"signals": signals}
    alone = policy(images, labels, generator=s.seeded(15), **arguments)
    batch = {"image": images, "depth": extra, "id": ["a", "b", "c", "d"]}
    mixed = policy(batch, labels, generator=s.seeded(15), keys=["image", "depth"], **arguments)
    pair = policy((images, extra), labels, generator=s.seeded(15), keys=[0], **arguments)
    for what, got, wanted in (
        ("images in a dict", mixed.inputs["image"], alone.inputs),
        ("a second entry of a dict", mixed.inputs["depth"], alone.apply(extra)),
        ("images in a tuple", pair.inputs[0], alone.inputs),
    ):
        s.require(torch.equal(got, wanted), f"{what} came out otherwise than alone", "the same mixing")
    s.require(mixed.inputs["id"] is batch["id"] and pair.inputs[1] is extra, "an entry not named changed", "as it was")


def refusals(s: Subject) -> None:
    """What cannot be mixed is refused with an error that says what came, before anything is drawn."""
    policy, images, labels = s.policy(), s.pictures(4), s.labels(4)
    _refused(s, policy, images[:0], labels[:0], "an empty batch", "empty")
    _refused(s, policy, images, labels[:3], "4 images with 3 labels", "3")
    _refused(s, policy, images, torch.ones(4, 3, dtype=torch.int64, device=s.device), "dense labels of int64", "int64")
    _refused(s, policy, images.long(), labels, "images of int64", "int64")
    _refused(s, policy, images.to(torch.complex64), labels, "complex images", "complex64")
    _refused(s, policy, images, labels, "inplace=True beside out=", "not both", inplace=True, out=images.clone())


def _refused(s: Subject, policy: Policy, images: Tensor, labels: Any, what: str, mention: str, **others: Any) -> None:
    generator = s.seeded(16)
    state = generator.get_state()
    signals = s.signals(policy, s.pictures(4), s.labels(4))
    arguments = {} if signals is None or not len(images) else {"signals": signals}
    try:
        policy(images, labels, generator=generator, **arguments, **others)
    except (ValueError, TypeError) as error:
        s.require(mention in str(error), f"{what} refused with {str(error)!r}", f"an error that mentions {mention!r}")
    else:
        raise s.broken(f"{what} went through", "a ValueError or TypeError")
    if "out" not in others:
        s.require(torch.equal(state, generator.get_state()), f"{what} refused after a draw", "an untouched generator")


def randomness(s: Subject) -> None:
    """The generator decides everything: the same seed gives the same bits, and no global state is read or changed."""
    for per, policy in s.each_per():
        images = s.pictures()
        before = _global_state(s.device)
        first = s.mix(policy, images, seed=5)
        s.require(
            before == _global_state(s.device), f"a call with a generator moved a global one, {per}", "it untouched"
        )
        torch.manual_seed(77)
        random.seed(77)
        np.random.seed(77)  # noqa: NPY002
        s.same(s.mix(policy, images, seed=5), first, f"the same generator under another global seed, {per}")
        if len(s.size) == 2:
            other = s.mix(policy, images.to(memory_format=torch.channels_last), seed=5)
            s.same(other, first, f"the same images in channels_last, {per}", 1e-6)
    results = []
    for _ in range(2):
        torch.manual_seed(6)
        results.append(s.mix(policy, images, seed=None))
    s.same(results[0], results[1], "without a generator, after the same torch.manual_seed")


def repeats(s: Subject) -> None:
    """The tenth call keeps what the first one promises: what was drawn before leaves nothing behind."""
    policy, images, labels = s.policy(), s.pictures(), s.labels()
    for call in range(1, 11):
        mixed = s.mix(policy, images, labels, seed=call)
        s.form(policy, mixed, images, labels, f" in call {call}")
        if call in (2, 3, 10):
            fresh = s.mix(s.policy(), images, labels, seed=call)
            s.same(mixed, fresh, f"call {call}, beside the first call of a new policy with the same generator")


def replays(s: Subject) -> None:
    """The plan replays: on the images, on further tensors, in place, and as label maps that stay label maps."""
    policy, images = s.policy(), s.pictures()
    mixed = s.mix(policy, images, seed=10)
    plan, before = s.plan(mixed), images.clone()
    for time in ("", " a second time"):
        again = plan.mix(images)
        s.require(torch.equal(again, mixed.inputs), f"plan.mix(images){time} is not mixed.inputs", "the same images")
        s.require(torch.equal(images, before), "plan.mix changed the images", "images as they were")
    drawn = policy.draw(images, s.labels(), generator=s.seeded(10), **signal_arguments(s, policy, images))
    applied = policy.apply(images, drawn)
    s.require(torch.equal(applied, mixed.inputs), "apply(draw(...)) is not what a call gives", "forward to be both")
    count, size = len(images), tuple(images.shape[2:])
    label_map = s.labels().reshape(-1, *(1,) * len(size)).expand(count, *size).contiguous()
    shares = mixed.apply(label_map, num_classes=count)
    s.require(tuple(shares.shape) == (count, count, *size), f"class shares {tuple(shares.shape)}", "(B, K, *size)")
    near = torch.allclose(shares.sum(1), torch.ones_like(shares[:, 0]), atol=1e-5)
    s.require(near, "class shares of a pixel that do not sum to one", "a share for every class")
    present = torch.zeros(count, count, device=s.device).scatter_(1, mixed.sources, 1.0)
    s.require(
        bool((shares.flatten(2).amax(2) <= present + 1e-5).all()), "a class that no source has", "the sources' own"
    )
    try:
        copied = mixed.apply(label_map)
    except TypeError as error:
        s.require("num_classes" in str(error), f"a label map refused with {error}", "a word of num_classes")
    else:
        rows = mixed.sources.reshape(*mixed.sources.shape, *(1,) * len(size))
        right = copied.dtype == label_map.dtype and bool((copied[:, None] == rows).any(1).all())
        s.require(right, "a label map with ids that no source has", "ids copied from the sources")
    if policy.writes_in_place:
        _in_place(s)


def _in_place(s: Subject) -> None:
    cases = [(per, policy, s.size, torch.float32) for per, policy in s.each_per()]
    cases += [("as it is", s.policy(), s.size, dtype) for dtype in (torch.uint8, torch.bfloat16)]
    if len(s.size) == 2 and s.make_signals is None:
        cases += [("as it is", s.policy(), SIZES[-1], dtype) for dtype in (torch.float32, torch.uint8)]
    for per, policy, size, dtype in cases:
        for layout in (torch.contiguous_format, torch.channels_last):
            if layout == torch.channels_last and len(size) != 2:
                continue
            images = s.pictures(5, size, dtype).contiguous(memory_format=layout)
            try:
                plan = policy.draw(images, s.labels(5), generator=s.seeded(9), **signal_arguments(s, policy, images))
            except ValueError:
                if size == s.size:
                    raise
                continue
            fresh, out, own = policy.apply(images, plan), torch.empty_like(images), images.clone()
            for what, got, written in (
                ("out=", policy.apply(images, plan, out=out), out),
                ("inplace=True", policy.apply(own, plan, inplace=True), own),
            ):
                where = f"{what}, {per}, {dtype} images of size {size}, {layout}"
                s.require(got is written, f"{where}: another tensor came back", "the tensor that was written to")
                s.require(torch.equal(got, fresh), f"{where}: other pixels than in a new tensor", "the same pixels")


def combinations(s: Subject) -> None:
    """OneOf and Sometimes around it give what it gives alone."""
    images, labels = s.pictures(), s.labels()
    wrappers: list[tuple[str, Callable[[Policy], Policy]]] = [
        ("OneOf([policy])", lambda policy: OneOf([policy])),
        ('OneOf([policy], per="sample")', lambda policy: OneOf([policy], per="sample")),
        ("Sometimes(policy, 1.0)", lambda policy: Sometimes(policy, 1.0)),
    ]
    for what, wrap in wrappers:
        policy = s.policy()
        states: list[Tensor] = []
        plain = policy.plan

        def plan(batch: Batch, generator: Generator | None, partner: Tensor | None = None) -> Plan:
            assert generator is not None  # handed on by the wrapper
            states.append(generator.get_state())  # noqa: B023
            return plain(batch, generator, partner)  # noqa: B023

        policy.plan = plan  # type: ignore[method-assign]
        inside = s.mix(wrap(policy), images, labels, seed=18)
        s.require(len(states) == 1, f"{what} asked it for {len(states)} plans", "one plan")
        # The choice is drawn first: alone, the chosen policy gets the generator in its state after the choice.
        generator = s.seeded(0)
        generator.set_state(states[0])
        alone = s.mix(s.policy(), images, labels, generator=generator)
        for name in ("inputs", "weights", "sources"):
            same = equal(getattr(inside, name), getattr(alone, name))
            s.require(
                same,
                f"{what} gives other {name} than the policy alone with the same generator",
                "the same: what mixes belongs into `sample` and its plan, which `forward` is not part of",
            )


def gradients(s: Subject) -> None:
    """Gradients flow through the pixels to every source."""
    images = s.pictures().requires_grad_()
    mixed = s.mix(s.policy(), images, seed=8)
    mixed.inputs.sum().backward()
    gradient = images.grad
    s.require(gradient is not None, "no gradient reaches the images", "one")
    assert gradient is not None
    s.require(bool(gradient.isfinite().all()), "a gradient that is not finite", "finite numbers")
    if not s.plan(mixed).is_mean:
        return
    # Each mixed pixel is a weighted mean, so that the gradients of all sources add up to the number of pixels.
    total = gradient.sum().item()
    near = abs(total - images.numel()) <= 1e-4 * images.numel()
    s.require(near, f"gradients of sum {total:g}", f"{images.numel()}: weights of sum one in every pixel")


def autocast(s: Subject) -> None:
    """Under autocast the plan, the weights and the pixels are what they are without."""
    for per, policy in s.each_per():
        # Networks of the policy run in the caller's precision, and what they say is rounded.
        tolerance = HALF if any(True for _ in policy.parameters()) or _reads_model(s, policy) else 0.0
        images = s.pictures()
        plain = s.mix(policy, images, seed=19)
        for dtype in (torch.bfloat16, torch.float16):
            with torch.autocast(s.device.type, dtype):
                mixed = s.mix(policy, images, seed=19)
                replayed = mixed.apply(images)
            s.form(policy, mixed, images, mixed.labels, f" under autocast to {dtype}, {per}")
            s.same(mixed, plain, f"under autocast to {dtype}, {per}", tolerance)
            s.require(torch.equal(replayed, mixed.inputs), f"a replay under autocast to {dtype} is another", "the same")


def module(s: Subject) -> None:
    """Batches travel between processes and devices, and the policy is a module like others."""
    policy, images = s.policy(), s.pictures(4)
    mixed = s.mix(policy, images, seed=12)
    again = pickle.loads(pickle.dumps(mixed)).to(s.device)
    s.same(again, mixed, "a batch that was pickled")
    s.require(torch.equal(again.apply(images), mixed.inputs), "a plan that was pickled replays otherwise", "the same")
    s.same(s.mix(copy.deepcopy(policy), images, seed=12), mixed, "a copy of the policy")
    walked: list[nn.Module] = []
    nn.Sequential(policy).apply(walked.append)
    s.require(policy in walked, "nn.Module.apply(function) does not reach it", "a walk through all modules")
    buffer = io.BytesIO()
    torch.save(policy.state_dict(), buffer)
    buffer.seek(0)
    policy.load_state_dict(torch.load(buffer, weights_only=True))


def device(s: Subject) -> None:
    """No value is read back from the device, and no work is done sample by sample."""
    if s.make_signals is not None:
        # Signals that the caller makes hold real tensors.
        return
    counts: dict[int, int] = {}
    with pretended_cuda():
        fake = Subject(s.make, {}, None, s.make_model, torch.device("cuda"), s.size, pretended=True)
        # A pairing may be a search from one sample to the next: the operators are counted with a plain one.
        policy = fake.offers(pairing="shift") or fake.policy()
        for count in (24, 36):
            images, labels = _pretended_batch(count, s.size, torch.float32)
            fake.signals(policy, images, labels)
            with _Operators() as operators:
                fake.mix(policy, images, labels, seed=None)
            counts[count] = operators.count
        others = [other for _, other in fake.each_per() if other.per != policy.per]
        for other in others or [policy]:
            mixed = fake.mix(other, *_pretended_batch(24, s.size, torch.uint8), seed=None)
            for what, tensor in (("inputs", mixed.inputs), ("weights", mixed.weights), ("sources", mixed.sources)):
                where = tensor.device.type
                s.require(where == "cuda", f"{what} on {where} for images on a GPU", "the images' device")
            mixed.targets(10)
    if s.device.type == "cuda":
        _waits_for_nothing(s)
    few, many = counts.values()
    s.require(
        few == many,
        f"{few} operators for 24 samples and {many} for 36: a Python loop over samples",
        "a number of operators that does not grow with the batch",
    )


def _waits_for_nothing(s: Subject) -> None:
    images, labels = s.pictures(), s.labels()
    for _, policy in s.each_per():
        signals, generator = signal_arguments(s, policy, images), s.seeded(17)
        policy(images, labels, generator=generator, **signals)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            policy(images, labels, generator=generator, **signals)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def _pretended_batch(count: int, size: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    images = torch.empty((count, 3, *size), dtype=dtype, device="cuda")
    return images, torch.empty(count, dtype=torch.int64, device="cuda")


def compiled(s: Subject) -> None:
    """torch.compile traces one graph, which draws what eager code draws."""
    policy = s.offers(per="sample") or s.policy()
    if policy.needs:
        return
    torch.compiler.reset()
    traced = torch.compile(policy, fullgraph=True, backend="aot_eager")
    images, labels = s.pictures(), s.labels()
    results = []
    for run in (traced, policy):
        torch.manual_seed(5)
        results.append(run(images, labels))
    torch.compiler.reset()
    for name in ("sources", "weights", "inputs"):
        got, wanted = (getattr(mixed, name).double() for mixed in results)
        near = got.shape == wanted.shape and bool((got - wanted).abs().max() <= 1e-6)
        s.require(near, f"compiled code gives other {name} than eager code with the same seed", "the same")


class _Operators(TorchDispatchMode):
    """Counts the operators that are run."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def pretended_cuda() -> Iterator[None]:
    """Tensors that say they lie on a GPU and have no values: reading one raises."""
    # A policy that copies a model must not copy the mode of its tensors.
    changed = {FakeTensorMode: lambda mode, memo: mode, FakeTensor: _copied_without_value}
    before = {kind: kind.__dict__["__deepcopy__"] for kind in changed if "__deepcopy__" in kind.__dict__}
    for kind, copied in changed.items():
        kind.__deepcopy__ = copied  # type: ignore[attr-defined]
    try:
        with FakeTensorMode(), torch.device("cuda"):
            yield
    finally:
        for kind in changed:
            if kind in before:
                kind.__deepcopy__ = before[kind]  # type: ignore[attr-defined]
            else:
                del kind.__deepcopy__  # type: ignore[attr-defined]


def _copied_without_value(tensor: FakeTensor, memo: dict[int, Any]) -> Tensor:
    # A number written in Python, a batch norm's count say, is kept by value, on the GPU where there is one: torch would
    # copy that, and find that it lies elsewhere than the pretended tensor.
    tensor.constant = None
    return Tensor.__deepcopy__(tensor, memo)


def _reads_model(s: Subject, policy: Policy) -> bool:
    """Whether the signals of the policy are taken from a model, which runs as the caller says."""
    found = s.signals(policy, s.pictures(), s.labels())
    return found is not None and not isinstance(found, Signals) and bool(policy.needs - {"hidden"})


def _global_state(device: torch.device) -> tuple[bytes, ...]:
    """Of all generators that a policy might touch by mistake."""
    states = [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]
    state = b"".join(state.numpy().tobytes() for state in states)
    return state, repr(random.getstate()).encode(), pickle.dumps(np.random.get_state())  # noqa: NPY002
