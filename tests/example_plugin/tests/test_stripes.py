"""Stripes keep what every policy promises: `pip install .`, then `pytest`."""

from mixaug.testing import check_policy


def test_stripes_keep_the_contract():
    check_policy("stripes", options={"period": 8})
