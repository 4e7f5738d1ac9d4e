"""Policies and steps under `torch.compile`: batches of changing size, the draws of eager code, exact labels."""

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend

import mixaug
from helpers import index_images, ours, seeded
from mixaug.draws import Draws
from mixaug.policies.comixup import _dirichlet
from mixaug.testing.surface import pretended_cuda

MODEL_FREE = ours(mixaug.list_policies(needs=()))
#: Every policy with its own draws for each sample (with per="batch", eager code on a CPU draws by DeiT's chosen policy
#: alone, compiled code by both), and the other ways to draw where they take other paths.
#: These take a batch with metadata, or a network beside the model.
BESIDE = ("lisa", "selecmix", "selfmix")
CASES = [(name, "sample") for name in MODEL_FREE if name not in BESIDE]
CASES += [(name, per) for name in ("mixup", "cutmix", "maskmix") for per in ("batch", "pair")]
#: These are left to the slow suite. What they draw and mix with is drawn and mixed by another one that is always
#: compiled: patches and other masks by MaskMix, a box by CutMix in a step, chosen policies
#: by DeiT, a share for each by Mixup where sizes change, one for all where everything is dynamic. Or it is a search of
#: its own, whose reading back of a value, the usual reason why a graph breaks, tests/test_launches.py finds as well:
#: nearest rows, FMix's spectrum, SaliencyMix's maps, CutMix's boxes.
OF_A_KIND_SEEN = {
    *(("cowmix", "sample"), ("gmix", "sample"), ("dmixup", "sample"), ("saliencymix", "sample")),
    *(("gridmix", "sample"), ("smoothmix", "sample"), ("patchmix", "sample"), ("hmix", "sample")),
    *(("local_mixup", "sample"), ("regmix", "sample"), ("selective_mixup", "sample"), ("rsb", "sample")),
    *(("cutmix", "batch"), ("maskmix", "batch"), ("cutmix", "pair"), ("maskmix", "pair")),
    *(
        ("resizemix", "sample"),
        ("knn_mixup", "sample"),
        ("mixup", "sample"),
        ("mixup", "batch"),
        ("fmix", "sample"),
        ("cutmix", "sample"),
    ),
}


@pytest.fixture(autouse=True)
def _nothing_compiled_before():
    # All policies share one `forward`, of which the compiler keeps a few versions.
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def make(name, per):
    known = mixaug.describe(name).defaults
    return mixaug.create(name, **({"per": per} if "per" in known else {}))


def batch_of(count, size=(12, 18)):
    generator = torch.Generator().manual_seed(count)
    return torch.rand(count, 3, *size, generator=generator), torch.arange(count) % 3


def called(policy, images, labels):
    torch.manual_seed(5)
    return policy(images, labels)


def labels_say_what_is_shown(mixed, count, atol):
    """Image i is i everywhere: the mean of a mixed image is the weighted mean of its sources' numbers."""
    shown = mixed.inputs.double().flatten(1).mean(1)
    told = (mixed.weights.double() * mixed.sources).sum(1)
    torch.testing.assert_close(shown, told, rtol=0, atol=atol * count)


@pytest.mark.parametrize(
    ("name", "per"),
    [pytest.param(*case, marks=pytest.mark.slow if case in OF_A_KIND_SEEN else ()) for case in CASES],
)
def test_one_graph_serves_all_batch_sizes(name, per):
    policy = make(name, per)
    counter = CompileCounterWithBackend("eager")
    traced = torch.compile(policy, fullgraph=True, backend=counter)
    for count in (8, 7):
        images, labels = batch_of(count)
        # What the second size of a run does by itself.
        torch._dynamo.mark_dynamic(images, 0)
        torch._dynamo.mark_dynamic(labels, 0)
        mixed = called(traced, images, labels)
        torch.testing.assert_close(mixed.inputs, mixed.plan.mix(images), rtol=0, atol=1e-6)
        eager = called(policy, images, labels)
        assert torch.equal(mixed.sources, eager.sources)
        torch.testing.assert_close(mixed.weights, eager.weights, rtol=0, atol=1e-6)
        torch.testing.assert_close(mixed.inputs, eager.inputs, rtol=0, atol=1e-6)
    assert counter.frame_count == 1


@pytest.mark.parametrize(
    "name", ["mixup", *(pytest.param(name, marks=pytest.mark.slow) for name in ("cutmix", "knn_mixup"))]
)
def test_sizes_change_without_a_word_to_the_compiler(name):
    policy = make(name, "sample")
    # How often is compiled is Dynamo's matter, for which its eager backend is the quick one.
    counter = CompileCounterWithBackend("eager")
    traced = torch.compile(policy, fullgraph=True, backend=counter)
    # One graph for the first size, one for any, one for a batch in which nobody can be mixed.
    for count, graphs in [(8, 1), (6, 2), (7, 2), (1, 3), (8, 3), (1, 3)]:
        images, labels = batch_of(count)
        mixed, eager = called(traced, images, labels), called(policy, images, labels)
        torch.testing.assert_close(mixed.inputs, eager.inputs, rtol=0, atol=1e-6)
        torch.testing.assert_close(mixed.weights, eager.weights, rtol=0, atol=1e-6)
        assert counter.frame_count == graphs, f"after a batch of {count}"


# A batch of one is compiled anew, which one of them is to show in the fast suite.
@pytest.mark.parametrize(
    ("name", "alone"),
    [("mixup", True), *(pytest.param("fmix", alone, marks=pytest.mark.slow) for alone in (True, False))],
)
def test_dynamic_everything(name, alone):
    # Numbers of the policy, such as FMix's decay, are symbols then too.
    policy = make(name, "batch")
    traced = torch.compile(policy, fullgraph=True, backend="eager", dynamic=True)
    for count, size in [(6, (12, 18)), (5, (12, 18)), (4, (16, 9)), *([(1, (16, 9))] if alone else [])]:
        images, labels = batch_of(count, size)
        mixed, eager = called(traced, images, labels), called(policy, images, labels)
        torch.testing.assert_close(mixed.inputs, eager.inputs, rtol=0, atol=1e-6)
        torch.testing.assert_close(mixed.weights, eager.weights, rtol=0, atol=1e-6)


# By itself the compiler meets the second size with a second graph; told that sizes change, it makes one.
# That a step is one graph is shown by tests/test_policy.py, gradients of a compiled model by tests/test_step.py.
@pytest.mark.slow
@pytest.mark.parametrize("told", [True, False])
def test_a_step_has_the_gradients_of_eager_code(told):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 18, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))
    objective = mixaug.losses.MixedCrossEntropy(label_smoothing=0.1)
    step = mixaug.MixStep(model, mixaug.create("cutmix"), objective)
    counter = CompileCounterWithBackend("aot_eager")
    traced = torch.compile(step, fullgraph=True, backend=counter)
    for count in (8, 6):
        images, labels = batch_of(count)
        if told:
            torch._dynamo.mark_dynamic(images, 0)
            torch._dynamo.mark_dynamic(labels, 0)
        found = []
        for run in (step, traced):
            model.zero_grad()
            loss, logs = called(run, images, labels)
            loss.backward()
            found.append([loss.detach(), logs["accuracy"], *(p.grad.clone() for p in model.parameters())])
        torch.testing.assert_close(found[1], found[0])
        assert found[0][2].abs().sum() > 0
    assert counter.frame_count == (1 if told else 2)


@pytest.mark.slow
@pytest.mark.parametrize("names", [("mixup", "dmixup"), ("mixup", "patchmix")])
def test_several_policies_in_one_process(names):
    # Two policies whose batch sizes change stay within the default limit; more need versions of their own.
    traced = [torch.compile(mixaug.create(name), fullgraph=True, backend="eager") for name in names]
    for count in (8, 6, 7, 1, 8):
        for policy in traced:
            assert len(policy(*batch_of(count))) == count


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "per", "atol"), [("mixup", "sample", 1e-6), ("cutmix", "sample", 1e-6), ("fmix", "batch", 1 / 216)]
)
def test_labels_are_exact_in_generated_code(name, per, atol):
    # Its random numbers are its own, so nothing can be compared with eager code. FMix is off by one pixel at most.
    traced = torch.compile(make(name, per), fullgraph=True, backend="inductor")
    weights = []
    for count in (6, 5, 6, 5, 6, 5):
        images = index_images(count, 3, 12, 18)
        mixed = traced(images, torch.arange(count) % 3)
        labels_say_what_is_shown(mixed, count, atol + 1e-6)
        assert mixed.sources[:, 1].sort().values.tolist() == list(range(count))
        torch.testing.assert_close(mixed.weights.sum(1), torch.ones(count))
        weights.append(mixed.lam)
    assert torch.cat(weights).unique().numel() > 3, "every call draws anew"


SIZES = ((8, 8), (16, 16), (24, 24), (32, 32), (8, 10), (12, 20), (20, 16))


# One box in pixels, a box that is resized, and boxes of many cells. The first size, any square one, any other: square
# ones are left to the slow suite.
@pytest.mark.parametrize(
    ("name", "sizes", "graphs"),
    [
        ("cutmix", SIZES[4:], 2),
        *(pytest.param(name, SIZES, 3, marks=pytest.mark.slow) for name in ("cutmix", "resizemix", "gridmix")),
    ],
)
def test_image_sizes_share_graphs(name, sizes, graphs):
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(mixaug.create(name), backend=counter, fullgraph=True)
    for size in sizes:
        compiled(torch.rand(4, 3, *size))
    assert counter.frame_count <= graphs


def test_a_compiled_policy_in_a_step_draws_from_the_given_generator():
    images, labels = torch.rand(6, 3, 8, 8, generator=seeded(0)), torch.arange(6)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 6))
    results = []
    for compiled in (False, True):
        torch.compiler.reset()
        policy, generator = mixaug.create("cutmix"), seeded(5)
        if compiled:
            policy.compile(backend="aot_eager", fullgraph=True)
        step = mixaug.MixStep(model, policy, mixaug.losses.MixedCrossEntropy())
        torch.manual_seed(1)
        drawn = [step(images, labels, generator=generator)[0] for _ in range(3)]
        results.append((torch.stack(drawn), generator.get_state(), torch.get_rng_state()))
    torch.compiler.reset()
    for eager, traced in zip(*results, strict=True):
        assert torch.equal(eager, traced)
    assert len(results[0][0].unique()) == 3


def gamma_variates(like):
    """Shares of every kind that is made of Gamma variates; the first two are drawn by the same call."""
    draws = Draws(like.shape[0], like.device)
    twice = [draws.beta(0.2, 0.2) for _ in range(2)]
    shares = [draws.beta(2.0, 0.7), draws.dirichlet(0.3, 3), draws.dirichlet(1.5, 3)]
    return [*twice, *shares, _dirichlet(1.0, like > 0.5, draws)]


def test_gamma_variates_of_a_graph_are_those_of_eager_code():
    traced = torch.compile(gamma_variates, fullgraph=True, backend="aot_eager")
    results = []
    for run in (gamma_variates, traced):
        torch.manual_seed(3)
        # The last numbers say where the stream stands afterwards.
        results.append([*run(torch.ones(6, 4)), torch.rand(2)])
    for eager, compiled in zip(*results, strict=True):
        assert torch.equal(eager, compiled)
    # Two calls that are the same are two draws in a graph as well.
    assert not torch.equal(*results[1][:2])


@pytest.mark.slow
def test_gamma_variates_of_generated_code_are_those_of_eager_code():
    with torch._inductor.config.patch(fallback_random=True):
        traced = torch.compile(gamma_variates, fullgraph=True, dynamic=True)
        for rows in (6, 5):
            results = []
            for run in (gamma_variates, traced):
                torch.manual_seed(rows)
                results.append([*run(torch.ones(rows, 4)), torch.rand(2)])
            for eager, compiled in zip(*results, strict=True):
                torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-7)
            assert not torch.equal(*results[1][:2])


def test_gamma_variates_have_a_shape_where_there_is_no_device():
    with pretended_cuda():
        found = gamma_variates(torch.empty(7, 4))
    assert [tuple(values.shape) for values in found] == [(7,), (7,), (7,), (7, 3), (7, 3), (7, 4)]
    assert {values.device.type for values in found} == {"cuda"}
