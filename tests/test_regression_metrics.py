"""Metrics of regression against scikit-learn, torchmetrics and SciPy."""

import pytest
import torch
from scipy import stats

from helpers import seeded
from mixaug.regression_metrics import mae, mape, pearson, r2, rmse, worst_group

METRICS = [rmse, mae, mape, r2, pearson]
every_metric = pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.__name__)


def case(shape, seed=0, dtype=torch.float32):
    wanted = torch.randn(shape, generator=seeded(seed), dtype=torch.float64) * 3 + 1
    predicted = wanted + torch.randn(shape, generator=seeded(seed + 1), dtype=torch.float64)
    return predicted.to(dtype), wanted.to(dtype)


@pytest.mark.parametrize("shape", [(2,), (50,), (50, 1), (30, 4)], ids=str)
def test_against_scikit_learn(shape):
    sklearn = pytest.importorskip("sklearn.metrics")
    predicted, wanted = case(shape)
    arrays = wanted.double().numpy(), predicted.double().numpy()
    for got, expected in [
        (rmse(predicted, wanted), sklearn.mean_squared_error(*arrays) ** 0.5),
        (mae(predicted, wanted), sklearn.mean_absolute_error(*arrays)),
        (mape(predicted, wanted), 100 * sklearn.mean_absolute_percentage_error(*arrays)),
        (r2(predicted, wanted), sklearn.r2_score(*arrays)),
        (pearson(predicted, wanted), stats.pearsonr(arrays[0].ravel(), arrays[1].ravel()).statistic),
    ]:
        assert got.ndim == 0
        assert got.dtype == torch.float64
        assert float(got) == pytest.approx(float(expected), rel=1e-9)


def test_against_torchmetrics():
    functional = pytest.importorskip("torchmetrics.functional")
    predicted, wanted = case((60,), dtype=torch.float64)
    for got, expected in [
        (rmse(predicted, wanted), functional.mean_squared_error(predicted, wanted, squared=False)),
        (mae(predicted, wanted), functional.mean_absolute_error(predicted, wanted)),
        (mape(predicted, wanted), 100 * functional.mean_absolute_percentage_error(predicted, wanted)),
        (r2(predicted, wanted), functional.r2_score(predicted, wanted)),
        (pearson(predicted, wanted), functional.pearson_corrcoef(predicted, wanted)),
    ]:
        assert float(got) == pytest.approx(float(expected), rel=1e-6)


@every_metric
def test_vectors_and_columns_are_the_same(metric):
    predicted, wanted = case((20,))
    assert (
        metric(predicted, wanted) == metric(predicted[:, None], wanted) == metric(predicted[:, None], wanted[:, None])
    )


@every_metric
def test_float32_is_summed_in_float64(metric):
    # Labels near 1e4 with a spread of 1: squares in float32 would lose it.
    predicted, wanted = case((4000,))
    predicted, wanted = (predicted + 1e4).float(), (wanted + 1e4).float()
    assert float(metric(predicted, wanted)) == pytest.approx(
        float(metric(predicted.double(), wanted.double())), rel=1e-12
    )


def test_mape_leaves_out_labels_of_zero():
    predicted, wanted = torch.tensor([2.0, 5.0, -1.0, 1e-9]), torch.tensor([1.0, 0.0, -2.0, 0.0])
    assert float(mape(predicted, wanted)) == pytest.approx(100 * (1 + 0.5) / 2)
    assert mape(predicted, torch.zeros(4)).isnan()
    # Entry by entry, not row by row.
    assert float(mape(predicted.reshape(2, 2), wanted.reshape(2, 2))) == pytest.approx(75)


def test_perfect_and_mean_predictions():
    _, wanted = case((40, 2))
    assert [float(metric(wanted, wanted)) for metric in (rmse, mae, mape, r2)] == [0, 0, 0, 1]
    assert float(pearson(wanted, wanted)) == pytest.approx(1)
    assert float(pearson(-wanted, wanted)) == pytest.approx(-1)
    assert float(r2(wanted.mean(0).expand(40, 2), wanted)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("value", [0.0, 2.0, 0.1, 1 / 3])
@pytest.mark.parametrize("rows", [1, 7, 10])
def test_constant_labels_have_no_r2_and_no_correlation(value, rows):
    # The mean of equal numbers need not be that number.
    predicted, _ = case((rows, 1))
    wanted = torch.full((rows, 1), value, dtype=torch.float64)
    assert r2(predicted, wanted).isnan()
    assert pearson(predicted, wanted).isnan()
    assert pearson(wanted, predicted).isnan()
    assert rmse(predicted, wanted).isfinite()
    two = torch.cat([wanted, predicted.double()], 1)
    assert r2(two + 1, two).isnan()


def test_the_worst_group():
    predicted, wanted = torch.tensor([1.0, 2.0, 3.0, 9.0, 5.0]), torch.tensor([1.0, 3.0, 3.0, 5.0, 5.0])
    groups = torch.tensor([7, 7, 2, 2, -1])
    by_group = {7: [0, 1], 2: [2, 3], -1: [4]}
    errors = {group: float(mae(predicted[rows], wanted[rows])) for group, rows in by_group.items()}
    assert float(worst_group(mae, predicted, wanted, groups)) == max(errors.values()) == errors[2]
    assert float(worst_group(mae, predicted, wanted, groups, higher_is_better=True)) == min(errors.values())
    columns = case((30, 3))
    groups = torch.arange(30) % 4
    expected = min(float(r2(columns[0][groups == g], columns[1][groups == g])) for g in range(4))
    assert float(worst_group(r2, *columns, groups, higher_is_better=True)) == expected


@every_metric
def test_shapes_that_do_not_fit_are_named(metric):
    name = metric.__name__
    for predicted, wanted in [
        (torch.zeros(3), torch.zeros(4)),
        (torch.zeros(3, 2), torch.zeros(3)),
        (torch.zeros(2, 3), torch.zeros(3, 2)),
        (torch.zeros(0), torch.zeros(0)),
        (torch.zeros(3, 0), torch.zeros(3, 0)),
        (torch.tensor(1.0), torch.tensor(1.0)),
        (torch.zeros(3), torch.tensor(1.0)),
    ]:
        with pytest.raises(ValueError, match=f"{name} expects predictions and labels of the same rows"):
            metric(predicted, wanted)


def test_groups_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"worst_group expects groups \(3,\), got \(2,\)"):
        worst_group(mae, torch.zeros(3), torch.zeros(3), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"integer groups, got torch.float32"):
        worst_group(mae, torch.zeros(3), torch.zeros(3), torch.zeros(3))
    with pytest.raises(TypeError, match="predictions as a floating tensor, got list"):
        mae([1.0], torch.zeros(1))
    with pytest.raises(ValueError, match="the same rows and columns"):
        mae(torch.zeros(4, 2, 3), torch.zeros(4, 3, 2))
    with pytest.raises(ValueError, match="worst_group expects predictions and labels of the same rows"):
        worst_group(mae, torch.zeros(2), torch.zeros(3), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="worst_group expects predictions and labels"):
        worst_group(mae, torch.zeros(0), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
