"""RecursiveMix beyond the contract: regions against torchvision, history, state, what it refuses."""

import copy

import pytest
import torch
from torch import nn

import mixaug
from helpers import index_images, seeded
from mixaug.losses import MixedCrossEntropy
from mixaug.ops.regions import pooled_regions
from mixaug.partners import Memory, PreviousBatch

B, K = 6, 5
IMAGES, LABELS = index_images(B, 3, 16, 16), torch.arange(B) % K


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.conv, self.fc = nn.Conv2d(3, 4, 4, stride=4), nn.Linear(4, K)

    def forward(self, images):
        return self.fc(self.conv(images).mean((2, 3)))


def step_of(**options):
    torch.manual_seed(0)
    model = Network()
    parts = mixaug.ModelSignals(model, features="conv", classifier="fc")
    return mixaug.MixStep(model, mixaug.create("recursivemix", **options), MixedCrossEntropy(), parts)


@pytest.mark.parametrize("size", [(16, 24), (20, 20), (8, 40)])
def test_regions_are_those_of_torchvision(size):
    roi_align = pytest.importorskip("torchvision").ops.roi_align
    features = torch.randn(40, 3, -(-size[0] // 4), size[1] // 4, generator=seeded(0))
    corners = torch.stack([torch.randint(0, side + 1, (40, 2), generator=seeded(1)) for side in size], 2)
    low, high = corners.amin(1), corners.amax(1)
    boxes = torch.cat([low, torch.maximum(high, low + 1)], 1)
    boxes[:, 2:] = torch.minimum(boxes[:, 2:], torch.tensor(size))
    boxes[:, :2] = torch.minimum(boxes[:, :2], boxes[:, 2:] - 1)
    order = boxes[:, [1, 0, 3, 2]].float()
    wanted = roi_align(
        features, [row[None] for row in order], 1, features.shape[3] / size[1], sampling_ratio=-1, aligned=True
    )
    torch.testing.assert_close(pooled_regions(features, boxes, size), wanted[:, :, 0, 0], atol=1e-5, rtol=1e-5)
    assert torch.equal(pooled_regions(features, torch.zeros(1, 4, dtype=torch.int64), size), torch.zeros(40, 3))


def test_images_hold_images_that_hold_images():
    policy = mixaug.create("recursivemix", alpha=0.9, omega=0.0)
    generator, depth = seeded(2), 0
    for step in range(6):
        mixed = policy(IMAGES + 10 * step, LABELS, generator=generator)
        for row in range(B):
            values, counts = mixed.inputs[row, 0].unique(return_counts=True)
            assert set(values.tolist()) <= {row + 10.0 * t for t in range(step + 1)}
            own = counts[values == row + 10 * step].sum() / 256
            torch.testing.assert_close(mixed.lam[row], own)
            depth = max(depth, len(values))
    assert depth >= 3


def test_the_region_is_to_be_what_the_model_said_before():
    step = step_of(omega=0.5)
    generator = seeded(3)
    step(IMAGES, LABELS, generator=generator)
    loss, terms = step(IMAGES, LABELS, generator=generator)
    assert float(terms["consistency"]) > 0
    before = copy.deepcopy(step.policy)
    loss.backward()
    assert step.policy.region_head.weight.grad.abs().sum() > 0
    shared = step_of(share_head=True)
    assert shared.policy.region_head is None
    generator = seeded(3)
    shared(IMAGES, LABELS, generator=generator)
    assert float(shared(IMAGES, LABELS, generator=generator)[1]["consistency"]) > 0
    # A draw that no pass followed has nothing to compare with.
    before(IMAGES, LABELS, signals=step.model, generator=generator)
    step.policy = before
    assert float(step(IMAGES, LABELS, generator=generator)[1]["consistency"]) == 0.0


def test_a_saved_step_goes_on_as_if_nothing_had_been():
    step, generator = step_of(), seeded(4)
    for _ in range(3):
        step(IMAGES, LABELS, generator=generator)
    state, draws = copy.deepcopy(step.state_dict()), generator.get_state()
    wanted, _ = step(IMAGES, LABELS, generator=generator)
    twin = step_of()
    twin.load_state_dict(state)
    again = seeded(0)
    again.set_state(draws)
    assert torch.equal(twin(IMAGES, LABELS, generator=again)[0], wanted)


@pytest.mark.parametrize(("options", "message"), [
    ({"alpha": 0.0}, "alpha"), ({"alpha": 1.5}, "alpha"), ({"omega": -1.0}, "omega"),
    ({"interpolation": "cubic"}, "interpolation"),
    ({"partners": None}, r"RecursiveMix\(omega=0.5\) compares with what the model said of the batch before"),
    ({"partners": Memory(3)}, "expects partners='previous', got Memory"),
    ({"pairing": "reversed"}, "PreviousBatch are not chosen by a pairing, so pairing=Reversed has no effect"),
])  # fmt: skip
def test_what_cannot_work_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        mixaug.create("recursivemix", **options)
    assert isinstance(mixaug.create("recursivemix", partners=PreviousBatch(4)).partners, PreviousBatch)
    assert mixaug.create("recursivemix", omega=0.0, partners=None).partners is None
