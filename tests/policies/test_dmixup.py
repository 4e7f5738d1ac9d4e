"""d-Mixup beyond the contract: against its formula, and the distribution of its shares."""

import pytest
import torch
from scipy import stats

import mixaug
from helpers import seeded
from mixaug.draws import Draws
from mixaug.functional import dmixup

TWO = torch.ones(2, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.uint8])
def test_against_the_formula(dtype):
    images = (torch.rand(5, 3, 4, 6, generator=seeded(0)) * 200).to(dtype)
    sources = torch.stack([torch.arange(5), *torch.randint(0, 5, (2, 5), generator=seeded(1))], 1)
    shares = torch.rand(5, 3, generator=seeded(2), dtype=torch.float64)
    shares = shares / shares.sum(1, keepdim=True)
    mixed, weights = dmixup(images, sources, shares)
    for row in range(5):
        wanted = sum(shares[row, m] * images[sources[row, m]].double() for m in range(3))
        wanted = wanted.round() if dtype == torch.uint8 else wanted
        tolerance = {torch.bfloat16: 0.6, torch.uint8: 0.6, torch.float32: 1e-4, torch.float64: 1e-10}[dtype]
        torch.testing.assert_close(mixed[row].double(), wanted.double(), atol=tolerance, rtol=0)
    assert mixed.dtype == dtype
    torch.testing.assert_close(weights, shares.float())


@pytest.mark.parametrize("alpha", [0.3, 1.0, 4.0])
def test_shares_are_those_of_a_dirichlet(alpha):
    shares = Draws(4000, torch.device("cpu"), seeded(3)).dirichlet(alpha, 3)
    torch.testing.assert_close(shares.sum(1), torch.ones(4000, dtype=shares.dtype))
    for column in range(3):
        assert stats.kstest(shares[:, column].numpy(), stats.beta(alpha, 2 * alpha).cdf).pvalue > 1e-4


def test_labels_follow_all_points():
    images, labels = torch.eye(6), torch.arange(6)
    mixed = mixaug.create("dmixup", points=4, per="sample")(images, labels, generator=seeded(4))
    torch.testing.assert_close(mixed.inputs, mixed.targets(6))
    assert mixed.sources.shape == (6, 4)
    assert mixed.sources[:, 0].tolist() == list(range(6))


@pytest.mark.parametrize(("call", "message"), [
    (lambda: mixaug.create("dmixup", points=1), "points"),
    (lambda: mixaug.create("dmixup", per="pair"), "per expects 'sample' or 'batch'"),
    (lambda: mixaug.create("dmixup", alpha=0), "alpha"),
    (lambda: dmixup(TWO, torch.tensor([[0], [2]]), torch.ones(1, 1)), r"sources in \[0, 2\), got values from 0 to 2"),
    (lambda: dmixup(TWO, torch.zeros(2, 2, dtype=torch.int64), torch.ones(1, 1)), r"shares \(2, 2\) or \(1, 2\)"),
    (lambda: dmixup(TWO, torch.zeros(2, 2), torch.ones(1, 2)), "sources"),
])  # fmt: skip
def test_what_cannot_work_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
