"""Kernels that Inductor generates for a GPU, counted without one."""

import pytest

from speed import generated

#: Kernels of a call on 128x3x32x32, generated ones and the permutation's, which is the library's.
MOST = {"mixup": 6, "cutmix": 7, "gridmix": 7}


@pytest.mark.slow
@pytest.mark.parametrize("policy", MOST)
def test_a_compiled_policy_launches_few_kernels(policy):
    kernels = generated.of_policy(policy)
    assert 2 <= len(kernels) <= MOST[policy], kernels
    assert kernels[0].startswith("aten.randint")
    assert all(kernel.endswith(".run") for kernel in kernels[1:]), kernels


def test_calls_are_found_in_generated_code():
    code = "triton_poi_a = async_compile.triton('x')\n triton_poi_a.run(b)\n extern_kernels.mm(a)\n aten.randint.out(c)"
    assert generated.CALL.findall(code) == ["triton_poi_a.run", "extern_kernels.mm", "aten.randint.out"]
