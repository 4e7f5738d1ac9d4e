"""The contract that every registered policy keeps. A new policy is tested here by being registered.

What it says is `mixaug.testing`; that it rejects what breaks it, tests/test_testing.py. Compiled code is compared with
eager code in tests/test_compile.py.
"""

import functools

import pytest
import torch
from torch import nn

import mixaug
from helpers import ours
from mixaug.testing import PROMISES, ContractError, check_policy

POLICIES = ours()
#: Options with which a policy works on made-up features, or quickly.
WITH = {
    "adautomix": {"channels": 8},
    "automix": {"channels": 8},
    "samix": {"channels": 8},
    # Its operators grow with the part and the sweeps, and pretending each takes a millisecond.
    "comixup": {"part_size": 4, "iterations": 1},
    "puzzlemix": {"block_nums": (2, 4)},
    # Every step is a forward and a backward pass of the model.
    "supermix": {"max_iter": 4, "mask_size": 8, "sparsity": 0.1},
    # The box is of whole patches, 16 pixels without a model that says otherwise.
    "tlalign": {"patch_size": 4},
}
#: Other rules than the default one, and the promises that they could break.
VARIANTS = [
    ("adautomix", {"channels": 8, "n_images": 2}),
    ("attentivemix", {"k": None}),
    ("cowmix", {"share": None, "border": "reflect"}),
    ("cutmix", {"minmax": (0.2, 0.8)}),
    ("cutmix", {"sources": 4}),
    ("fmix", {"frequencies": 16}),
    ("fmix", {"max_soft": 0.3}),
    ("fmix", {"spectrum": "reference"}),
    ("fmix", {"sources": 3}),
    ("guidedmix", {"saliency": "spectral"}),
    ("maskmix", {"patch_size": 7}),
    ("mergemix", {"count": "groups"}),
    ("mixup", {"sources": 3}),
    ("puzzlemix", {"transport": False, "n_labels": 2, "block_nums": 4}),
    ("resizemix", {"rule": "beta"}),
    ("resizemix", {"rule": "area", "interpolation": "bilinear"}),
    ("supermix", {"sources": 3, "max_iter": 4}),
    ("tokenmix", {"mode": "random"}),
]


class Pixels(nn.Module):
    """A model of ten classes, each as likely as one pixel is bright, so that a mask decides on them."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(50.0))

    def forward(self, images):
        shown = nn.functional.adaptive_avg_pool2d(images[:, :1, ::4, ::4], (2, 5))
        return self.scale * shown.flatten(1)


def thin():
    """The contract's own small model with a quarter of its channels: no promise is about their number."""
    return mixaug.models.create("cifar_resnet8", num_classes=10, channels=(4, 8, 16), stem_width=4)


#: A twelfth keep the contract's own model and its images, in the slow suite all do. Another model for policies that do
#: nothing with one that tells no two images apart.
MODELS = {name: None if at % 12 == 7 else thin for at, name in enumerate(POLICIES)} | {"supermix": Pixels}
SIZES = {name: (32, 48) if at % 12 == 7 else (16, 24) for at, name in enumerate(POLICIES)}
#: Policies that run a backward pass, which tensors that only pretend to lie on a GPU cannot.
BACKWARD = {"supermix"}
#: Half of a contract's time goes into tensors that pretend to lie on a GPU. test_launches.py runs every policy on such
#: tensors, where a value that is read back raises and a loop over samples passes the bound: here a few of them do.
PRETENDED = set(POLICIES[2::12]) - BACKWARD
MEANING = ["form", "pixels", "labels", "per", "options", "repeats", "autocast"]


def maker(name, **options):
    known = {**WITH.get(name, {}), **options}
    return functools.partial(mixaug.create, name, **known)


@pytest.mark.parametrize("name", POLICIES)
def test_contract(name, device):
    skipped = {"compiled", *(["device"] if device.type != "cuda" and name not in PRETENDED else [])}
    promises = [promise for promise in PROMISES if promise not in skipped]
    try:
        check_policy(maker(name), promises=promises, device=device, model=MODELS[name], size=SIZES[name])
    except ContractError as first:
        # All that is broken is told; the traceback is that of the first.
        broken = []
        for promise in promises:
            try:
                check_policy(maker(name), promises=[promise], device=device, model=MODELS[name], size=SIZES[name])
            except ContractError as error:
                broken.append(error)
        raise ContractError("\n".join(map(str, broken or [first]))) from first


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in POLICIES if SIZES[name] != (32, 48)])
def test_contract_of_larger_images(name, device):
    promises = [promise for promise in PROMISES if promise not in ("compiled", "device")]
    check_policy(maker(name), promises=promises, device=device, model=MODELS[name], size=(32, 48))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in POLICIES if name not in PRETENDED | BACKWARD])
def test_nothing_waits_for_a_gpu_that_is_pretended(name):
    check_policy(maker(name), promises=["device"], model=MODELS[name])


#: A rule that no test of launches draws by is one that might wait for a device; the others are in the slow suite.
@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param(name, options, marks=() if "minmax" in options else pytest.mark.slow, id=f"{name} {number}")
        for number, (name, options) in enumerate(VARIANTS)
        if name not in BACKWARD
    ],
)
def test_no_other_rule_waits_for_a_gpu_that_is_pretended(name, options):
    check_policy(maker(name, **options), promises=["device"], model=MODELS[name])


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=lambda case: case if isinstance(case, str) else "")
def test_other_rules_mean_the_same(name, options, device):
    check_policy(maker(name, **options), promises=MEANING, device=device, model=MODELS[name])


@pytest.mark.parametrize("name", POLICIES)
def test_errors_name_what_came_and_what_was_expected(name, device):
    policy = maker(name)()
    images = torch.rand(4, 3, 12, 18, device=device)
    for arguments, kind, words in (
        ((images[:0],), ValueError, "empty batch"),
        ((images, torch.arange(3, device=device)), ValueError, "4 images but 3 labels"),
        ((images, torch.ones(4, 3, dtype=torch.int64, device=device)), TypeError, "one_hot"),
        ((images.long(),), TypeError, "dtype"),
    ):
        with pytest.raises(kind, match=words):
            policy(*arguments)
    for member in getattr(policy, "policies", [policy]):
        if member.spatial is not None:
            with pytest.raises(ValueError, match=r"expects images \(B, C, "):
                member(images.flatten(1))


@pytest.mark.parametrize("name", POLICIES)
def test_what_is_registered_can_be_described_and_made(name):
    info = mixaug.describe(name)
    assert info.paper
    assert info.summary
    assert mixaug.create(name, **info.defaults)


@pytest.mark.gpu
@pytest.mark.parametrize("name", POLICIES)
def test_no_synchronisation_on_a_gpu(name):
    check_policy(maker(name), promises=["device"], device="cuda", model=MODELS[name])
