"""`mixaug.testing.check_policy`: what it lets pass, and what it rejects with which words."""

from __future__ import annotations

import copy
import functools

import pytest
import torch

import mixaug
import wrong_policies as wrong
from mixaug.testing import PROMISES, ContractError, check_policy
from mixaug.testing.surface import pretended_cuda

#: Policy, the promise that it breaks, and what the message has to say.
REJECTED = [
    (wrong.InvertedLabels, "labels", "the labels are the wrong way round"),
    (wrong.InvertedAreas, "labels", "the labels are the wrong way round"),
    (wrong.InvertedAreas, "pixels", "area() says"),
    (wrong.OneMaskForAll, "per", 'per="sample": all samples of a batch got the same mask'),
    (wrong.AlwaysHalf, "options", "alpha=0.2 and alpha=8.0 give the same batches"),
    (wrong.DeadLabeling, "labels", "labeling="),
    (wrong.Stateful, "repeats", "carries None for a plan"),
    (wrong.Remembers, "repeats", "call 2, beside the first call of a new policy"),
    (wrong.OwnForward, "combinations", "OneOf([policy]) gives other inputs than the policy alone"),
    (wrong.WritesToItsInput, "form", "the caller's images changed"),
    (wrong.WritesToItsInput, "replays", "plan.mix"),
    (wrong.FloatsForHalf, "form", "torch.float32"),
    (wrong.OtherMask, "pixels", "own_mask() is not what is shown"),
    (wrong.DrawnArea, "pixels", "area() says"),
    (wrong.OtherSources, "pixels", "a sample that is not among the sources"),
    (wrong.UnderAutocast, "autocast", "under autocast to torch.bfloat16"),
    (wrong.GlobalRandom, "randomness", "moved a global one"),
    (wrong.PythonRandom, "randomness", "moved a global one"),
    (wrong.AlwaysPerSample, "per", 'per="batch": lam is'),
    (wrong.AlwaysPerSample, "options", "per='sample' and per='batch' give the same batches"),
    (wrong.DriftingDtype, "repeats", "dtype of the weights in call 3: torch.float64"),
    (wrong.InvertedRatio, "options", "ratio=0.9 shows"),
    (wrong.OwnPartners, "options", "pairing='shift' and pairing='reversed' give the same batches"),
    (wrong.ReadsBack, "device", "DataDependentOutputException"),
    (wrong.LoopsOverSamples, "device", "a Python loop over samples"),
    (wrong.OtherwiseCompiled, "compiled", "compiled code gives other inputs"),
    (wrong.TooMuchLabel, "form", "sums"),
    (wrong.Unpicklable, "module", "pickle"),
]


def test_an_honest_policy_passes():
    check_policy(wrong.Honest, compiled=True)


def test_a_function_or_a_name_makes_the_policy_too():
    check_policy(functools.partial(wrong.Honest, alpha=0.5), promises=["pixels", "labels"])
    check_policy(lambda **options: wrong.Honest(**options), promises=["options"])
    check_policy("cutmix", promises=["pixels", "options"])


@pytest.mark.parametrize(("policy", "promise", "words"), REJECTED, ids=lambda case: getattr(case, "__name__", None))
def test_a_wrong_policy_is_rejected_in_words(policy, promise, words):
    with pytest.raises(ContractError) as caught:
        check_policy(policy, promises=[promise])
    message = str(caught.value)
    assert promise in message
    assert words in message, message
    assert policy.__name__ in message
    assert "expected: " in message


@pytest.mark.parametrize(
    "policy",
    [
        wrong.InvertedLabels,
        wrong.OneMaskForAll,
        wrong.AlwaysHalf,
        wrong.DeadLabeling,
        wrong.Stateful,
        wrong.OwnForward,
    ],
)
def test_without_a_word_all_promises_are_checked(policy):
    with pytest.raises(ContractError):
        check_policy(policy)


def test_an_option_of_its_own_has_to_do_something():
    with pytest.raises(ContractError, match="the default and period=8 give the same batches"):
        check_policy(wrong.DeadPeriod, promises=["options"], options={"period": 8})
    check_policy("patchmix", promises=["options"], options={"patch_size": 8})


def test_an_error_of_the_policy_itself_is_told():
    class Broken(wrong.Honest):
        def sample(self, batch, partner, draws):
            raise RuntimeError("no good")

    with pytest.raises(ContractError, match="RuntimeError: no good") as caught:
        check_policy(Broken)
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_what_it_is_given_is_checked():
    with pytest.raises(ValueError, match=r"no promise 'pixel'; it has \['form'"):
        check_policy("cutmix", promises=["pixel"])
    with pytest.raises(TypeError, match=r"makes a mixaug\.Policy, got dict"):
        check_policy(dict)


def test_labelings_may_weigh_otherwise():
    class Both(mixaug.labeling.Area):
        """The label of everything that shows at all."""

        normalised = False

        def __call__(self, plan, batch):
            area = plan.area().expand(len(batch))
            return (mixaug.labeling.Area()(plan, batch) > 0).float() * (0.5 + area / 2)[:, None]

    check_policy(functools.partial(wrong.Honest, labeling=Both()), promises=["form", "sizes"])
    Both.normalised = True
    with pytest.raises(ContractError, match="sums"):
        check_policy(functools.partial(wrong.Honest, labeling=Both()), promises=["form"])


def test_every_promise_says_what_it_promises():
    assert all((check.__doc__ or "").strip() for check in PROMISES.values())


def test_a_pretended_tensor_with_a_value_is_copied_without_it():
    value = torch.ones(())
    with pretended_cuda():
        # What torch keeps of a number that was written in Python, on a GPU where there is one.
        number = torch.empty(())
        number.constant = value
        copied = copy.deepcopy(number)
    assert copied.device.type == "cuda"
    assert copied.constant is None
