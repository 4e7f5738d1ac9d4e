"""Kernels that Inductor generates for a GPU, counted without one, stay within tools/speed/generated.csv."""

import pytest
import torch

import mixaug
from helpers import ours
from speed import generated

BOUNDS = generated.read_bounds()
#: These take a batch with metadata, or a network beside the model.
BESIDE = {"lisa", "selecmix", "selfmix"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Torchinductor does not support code generation for complex operators")
@pytest.mark.parametrize("policy", BOUNDS)
def test_a_compiled_policy_launches_no_more_kernels_than_its_bound(policy):
    kernels = generated.of_policy(policy)
    # Of the releases before 2.14 this one takes a kernel more.
    more = policy == "hmix" and tuple(map(int, torch.__version__.split(".")[:2])) < (2, 14)
    assert 2 <= len(kernels) <= BOUNDS[policy] + more, kernels
    # The permutation's random bits are the library's; of what is counted one kernel at least is generated.
    assert any(kernel.startswith("aten.randint") for kernel in kernels) == (policy != "none"), kernels
    assert any(kernel.startswith("triton_") for kernel in kernels), kernels


@pytest.mark.slow
def test_kernels_are_counted_where_other_libraries_have_torch_count_devices(monkeypatch):
    monkeypatch.setenv("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    assert len(generated.of_policy("mixup")) == BOUNDS["mixup"]


def test_every_policy_that_looks_at_no_model_has_a_bound():
    assert set(BOUNDS) == set(ours(mixaug.list_policies(needs=()))) - BESIDE


def test_calls_are_found_in_generated_code():
    code = "triton_poi_a = async_compile.triton('x')\n triton_poi_a.run(b)\n extern_kernels.mm(a)\n aten.randint.out(c)"
    assert generated.CALL.findall(code) == ["triton_poi_a.run", "extern_kernels.mm", "aten.randint.out"]
