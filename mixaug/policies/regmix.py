"""RegMix (arXiv:2106.03374, first posted as MixRL): mixup within a learned number of nearest neighbours.

    partner of i uniform among its k_i nearest others,   k_i from a network pi(k | x_i, y_i),   k = 0: no mixing

Interpolating examples that are far apart hurts regression, so each example gets its own limit, learned to give the
best model on validation data. There is no official code, and the paper's networks, candidate limits and schedule are
not established: what is here follows its idea, with our own choices, and is RegMix-style. These choices are:

- Euclidean distance of the inputs as they come, which want scaling; neighbours exclude the example itself, ties in
  order of rows;
- candidates 0, 1, 2, 4, 8, 16, 32 (those below the number of rows); 0 trains on the example as it is;
- pi is a perceptron with one hidden layer on standardised inputs and labels, learned by REINFORCE: for a batch the
  limits are drawn, the model takes one step on the mixed batch, and the reward of all draws is how far the validation
  loss then lies below its moving average, as a share of that average. A small entropy bonus keeps pi from settling
  early;
- afterwards every example takes its most probable limit, and a fresh model is trained with :class:`RegMix`.

The same k for all (``k=8``) is k-nearest-neighbour mixup; the largest possible k is mixup without the self.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from mixaug.checks import check_callable, check_choice, check_per, check_positive, check_whole
from mixaug.draws import Draws
from mixaug.ops.blend import blend
from mixaug.options import check_read, is_chosen
from mixaug.pairing.nearest import Limits, Nearest, limited_choice, nearest_rows
from mixaug.pairing.points import By
from mixaug.policies.mixup import Mixup
from mixaug.preparation import Preparation
from mixaug.ratio import Beta, check_alpha_acts
from mixaug.registry import register
from mixaug.shared_options import SharedOptions
from mixaug.streams import default_generator

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from mixaug.shared_options import TakesLabeling, TakesPartners, TakesPer, TakesRatio

    class Offered(TakesRatio, TakesLabeling, TakesPer, TakesPartners, total=False):
        """The shared options without those that ``not_offered`` names."""


__all__ = ["RegMix"]

CHOICES = (0, 1, 2, 4, 8, 16, 32)


class LimitNetwork(nn.Module):
    """pi(limit | input, label): a distribution over a short list of neighbour limits for every example.

    Called with (inputs, labels) it gives the most probable limits, (B,) int64, as :class:`RegMix` wants them.

    Args:
        inputs: (N, ...) training inputs, for their number of columns, mean and scale.
        labels: (N,) or (N, D) float training labels, for the same.
        choices: rising limits, the first 0.
        hidden: width of the hidden layer.
        generator: of the initial weights, on the inputs' device.

    Raises:
        ValueError: choices that do not rise from 0, or class ids as labels.
    """

    def __init__(
        self,
        inputs: Tensor,
        labels: Tensor,
        choices: Sequence[int] = CHOICES,
        hidden: int = 64,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        if len(choices) < 2 or choices[0] != 0 or any(a >= b for a, b in itertools.pairwise(choices)):
            raise ValueError(
                f"LimitNetwork expects limits that rise from 0, such as (0, 1, 2, 4), got {tuple(choices)}"
            )
        if not labels.is_floating_point():
            raise ValueError(f"LimitNetwork expects float labels, got {labels.dtype}")
        features = _joined(inputs, labels)
        self.choices: Tensor
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("choices", torch.tensor(list(choices), device=features.device))
        self.register_buffer("mean", features.mean(0))
        self.register_buffer("scale", _scale(features))
        self.layers = nn.Sequential(
            _linear(features.shape[1], hidden, features.device, generator),
            nn.LeakyReLU(0.1),
            _linear(hidden, len(choices), features.device, generator),
        )

    def logits(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """(B, number of choices) unnormalised log-probabilities."""
        scores: Tensor = self.layers((_joined(inputs, labels) - self.mean) / self.scale)
        return scores

    @torch.no_grad()
    def forward(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """(B,) int64 most probable limits; the smaller one of equals."""
        return self.choices[self.logits(inputs, labels).argmax(1)]


def policy_gradient_loss(log_probabilities: Tensor, reward: Tensor | float, entropy: Tensor | float = 0.0) -> Tensor:
    """Loss whose gradient is REINFORCE's estimate: ``-(reward * sum log pi(a_i) + entropy)``.

    Args:
        log_probabilities: (B,) of the choices that were drawn, with gradient.
        reward: one number for all, or (B,); no gradient passes through it.
        entropy: bonus to be maximised along with the reward.
    """
    reward = reward.detach() if isinstance(reward, Tensor) else reward
    return -(reward * log_probabilities).sum() - entropy


def learn_limits(
    model: nn.Module,
    train: tuple[Tensor, Tensor],
    validation: tuple[Tensor, Tensor],
    *,
    choices: Sequence[int] = CHOICES,
    alpha: float = 2.0,
    steps: int = 2000,
    batch_size: int = 16,
    learning_rate: float = 1e-2,
    limit_rate: float = 1e-2,
    entropy_bonus: float = 1e-3,
    momentum: float = 0.9,
    by: By = "inputs",
    loss: Callable[[Tensor, Tensor], Tensor] = F.mse_loss,
    generator: Generator | None = None,
) -> LimitNetwork:
    """Learn a limit for every example by policy gradient against a validation set, which is never mixed.

    ``model`` is trained along and should be thrown away afterwards. Costs a validation pass per step. Test results
    need a third set: the validation set has been used.

    Args:
        model: maps (B, ...) inputs to predictions shaped like the labels.
        train: inputs (N, ...) and float labels (N,) or (N, D).
        validation: inputs and labels.
        choices: candidate limits, rising from 0; those above N - 1 are dropped.
        alpha: lam ~ Beta(alpha, alpha), one per batch.
        steps: policy updates, each after one step of the model.
        batch_size: examples per step, drawn without replacement.
        learning_rate: of the model, Adam.
        limit_rate: of the limit network, Adam.
        entropy_bonus: weight of the mean entropy of pi.
        momentum: of the moving average of the validation loss, which starts at its first value.
        by: what neighbours are near in, ``"inputs"`` or ``"labels"``.
        loss: of (predictions, labels), a mean.
        generator: of all draws, on the inputs' device.

    Returns:
        The limit network, for ``RegMix(limits=network)``.

    Raises:
        ValueError: sets of unequal length or too small, NaN values, steps < 1, predictions of another shape than
            the labels.
    """
    inputs, labels = train
    for name, (x, y) in {"train": train, "validation": validation}.items():
        if len(x) != len(y) or len(x) < 2:
            raise ValueError(f"learn_limits expects {name} as equally many inputs and labels, at least 2, "
                             f"got {len(x)} and {len(y)}")  # fmt: skip
        if not bool(y.isfinite().all()):
            raise ValueError(f"learn_limits: the {name} labels hold NaN or infinity")
    if train[0].shape[1:] != validation[0].shape[1:] or train[1].shape[1:] != validation[1].shape[1:]:
        raise ValueError(
            f"learn_limits expects validation like train, got inputs {tuple(validation[0].shape)} and labels "
            f"{tuple(validation[1].shape)} for {tuple(train[0].shape)} and {tuple(train[1].shape)}"
        )
    check_choice("learn_limits", "by", by, get_args(By))
    if not all(isinstance(choice, int) and not isinstance(choice, bool) for choice in choices):
        raise TypeError(f"learn_limits expects choices as integers, got {tuple(choices)}")
    if steps < 1 or not 1 <= batch_size <= len(inputs):
        raise ValueError(
            f"learn_limits expects steps >= 1 and batch_size in [1, {len(inputs)}], got {steps}, {batch_size}"
        )
    if not 0 <= momentum < 1:
        raise ValueError(f"learn_limits expects momentum in [0, 1), got {momentum!r}")
    kept = [choice for choice in choices if choice < len(inputs)]
    if len(kept) < 2:
        raise ValueError(
            f"learn_limits expects at least two choices below the number of rows, {len(inputs)}, got {tuple(choices)}"
        )
    network = LimitNetwork(inputs, labels, kept, generator=generator)
    neighbours = nearest_rows(inputs if by == "inputs" else labels, kept[-1])
    ratio = Beta(check_positive("learn_limits", "alpha", alpha))
    model_steps = torch.optim.Adam(model.parameters(), learning_rate)
    limit_steps = torch.optim.Adam(network.parameters(), limit_rate)
    expected: Tensor | None = None
    order = torch.empty(0, dtype=torch.int64, device=inputs.device)
    for step in range(steps):
        if len(order) < batch_size:
            order = torch.rand(len(inputs), generator=generator, device=inputs.device).argsort()
        rows, order = order[:batch_size], order[batch_size:]
        # What is learned here is the same on every rank, unlike what is mixed by it.
        draws = Draws(batch_size, inputs.device, generator or default_generator(inputs.device), "batch")
        log_pi = network.logits(inputs[rows], labels[rows]).log_softmax(1)
        chosen = torch.multinomial(log_pi.detach().exp(), 1, generator=generator)
        partner = limited_choice(neighbours[rows], network.choices[chosen[:, 0]], draws.uniform(per="sample"))
        partner = torch.where(partner < 0, rows, partner)
        pair = torch.arange(batch_size, device=inputs.device) + batch_size
        both = torch.cat([pair, pair - batch_size])
        lam = ratio(draws).float()
        mixed = [blend(values[torch.cat([rows, partner])], both, lam)[:batch_size] for values in (inputs, labels)]
        model.train()
        model_steps.zero_grad(set_to_none=True)
        predicted = model(mixed[0])
        if predicted.shape != mixed[1].shape:
            # A loss would broadcast (B, 1) against (B,) to (B, B).
            raise ValueError(
                f"learn_limits expects predictions shaped like the labels, {tuple(mixed[1].shape)}, got "
                f"{tuple(predicted.shape)}"
            )
        loss(predicted, mixed[1]).backward()
        model_steps.step()
        model.eval()
        with torch.no_grad():
            reached = loss(model(validation[0]), validation[1])
        # The loss is looked at only now and then: each look waits for the device.
        if (step % 50 == 49 or step == steps - 1) and not bool(reached.isfinite()):
            raise ValueError(
                f"learn_limits: the validation loss became {float(reached)}; lower learning_rate={learning_rate}"
            )
        # The reward is a share, so that the entropy bonus means the same in any unit of the labels.
        reward = torch.zeros_like(reached) if expected is None else (expected - reached) / expected.clamp(min=1e-30)
        # A loss that is not finite stops the learning above; until it is looked at, it must not reach the network.
        reward = reward.nan_to_num(0.0, 0.0, 0.0)
        expected = reached if expected is None else momentum * expected + (1 - momentum) * reached
        entropy = -(log_pi.exp() * log_pi).sum(1).mean() * entropy_bonus
        limit_steps.zero_grad(set_to_none=True)
        policy_gradient_loss(log_pi.gather(1, chosen)[:, 0], reward, entropy).backward()
        limit_steps.step()
    return network.requires_grad_(False)


@register(
    "regmix",
    paper="Data Mixing Augmentation for Regression (RegMix; first posted as MixRL), 2021",
    arxiv="2106.03374",
    family="regression",
)
class RegMix(Mixup):
    """Blend every sample with one of its own number of nearest neighbours.

    Args:
        alpha: lam ~ Beta(alpha, alpha).
        k: number of neighbours, the same for all, where there are no ``limits``.
        limits: function of (inputs, labels) to (B,) int64 limits, 0 for no mixing, such as the network that
            :func:`learn_limits` returns; it moves with the policy if it is a module. ``"learned"`` calls
            :func:`learn_limits` when the policy is prepared, which the training engine does before the first step.
        k_max: the largest limit; None takes the largest choice of a :class:`LimitNetwork`.
        by: distance of flattened ``"inputs"``, which want scaling, or of ``"labels"``.
        learning_steps: of ``"learned"``.
        ratio, labeling: see :class:`mixaug.Policy`.
        per: how often lam is drawn: ``"batch"`` or ``"sample"``.

    Raises:
        ValueError: an option out of range; limits that are a plain function without ``k_max``; when drawing,
            ``"learned"`` limits before the policy was prepared.
    """

    shared_defaults: ClassVar[SharedOptions] = {"per": "batch"}
    # Learned limits are learned with it.
    alpha_acts_always = True
    not_offered = ("pairing", "sources")

    def __init__(
        self,
        alpha: float = 2.0,
        k: int = 8,
        limits: Limits | Literal["learned"] | None = None,
        k_max: int | None = None,
        by: By = "inputs",
        learning_steps: int = 2000,
        **shared: Unpack[Offered],
    ) -> None:
        if isinstance(limits, str) and limits != "learned":
            raise ValueError(f'RegMix expects limits as a function, "learned" or None, got {limits!r}')
        if limits is not None and not isinstance(limits, str):
            check_callable("RegMix", "limits", limits, ["inputs", "labels"], "function of limits")
        check_per("RegMix", shared.get("per", "batch"), mutual=False)
        k = check_whole("RegMix", "k", k)
        k_max = None if k_max is None else check_whole("RegMix", "k_max", k_max)
        check_choice("RegMix", "by", by, get_args(By))
        learning_steps = check_whole(
            "RegMix", "learning_steps", learning_steps, most=10**6, reason="this learning takes a few thousand"
        )
        learns = limits == "learned"
        if k_max is None:
            k_max = CHOICES[-1] if learns else int(limits.choices[-1]) if isinstance(limits, LimitNetwork) else None
        if limits is None:
            pairing = Nearest(k, by=by)
        else:
            pairing = Nearest(self._learned if isinstance(limits, str) else limits, by=by, k_max=k_max)
        if limits is None:
            check_read(self, "without limits takes k partners", k_max=k_max)
        else:
            check_read(self, "with limits takes as many partners as they say", k=k)
        if not learns:
            check_read(self, "learns no limits", learning_steps=learning_steps)
            if is_chosen(self, "alpha", alpha):
                check_alpha_acts("RegMix", alpha, shared.get("ratio", "beta"))
        super().__init__(alpha, pairing=pairing, **shared)
        self.k, self.k_max, self.by = k, k_max, by
        self.learns, self.learning_steps = learns, learning_steps
        # As a submodule, a network moves and is saved with the policy.
        self.limits = None if learns else limits

    def on_prepare(self, preparation: Preparation) -> None:
        if not self.learns:
            return
        train = preparation.split("train")
        # Fewer rows than the largest limit have no so distant neighbours.
        most = min(int(self.k_max or 1), len(train[0]) - 1)
        self.limits = learn_limits(
            preparation.new_model(),
            train,
            preparation.split("valid"),
            choices=[choice for choice in CHOICES if choice <= most],
            alpha=float(self.alpha),
            steps=self.learning_steps,
            batch_size=min(preparation.batch_size, len(train[0])),
            learning_rate=preparation.learning_rate,
            loss=preparation.loss,
            by=self.by,
            generator=preparation.generator,
        )

    def _learned(self, inputs: Tensor, labels: Tensor) -> Tensor:
        if self.limits is None or isinstance(self.limits, str):
            raise ValueError(
                'RegMix(limits="learned") has not seen the training data yet: train through the engine, call '
                "policy.prepare(...), or pass limits=learn_limits(...)"
            )
        return self.limits(inputs, labels)


def _linear(columns: int, width: int, device: torch.device, generator: Generator | None) -> nn.Linear:
    """``nn.Linear`` as torch initialises it, drawn from a generator."""
    layer = nn.utils.skip_init(nn.Linear, columns, width, device=device)
    if not isinstance(layer, nn.Linear):
        raise TypeError(f"expected nn.Linear, got {type(layer).__name__}")
    bound = 1 / math.sqrt(columns)
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound, generator=generator)
        layer.bias.uniform_(-bound, bound, generator=generator)
    return layer


def _joined(inputs: Tensor, labels: Tensor) -> Tensor:
    return torch.cat([inputs.flatten(1).float(), labels.reshape(len(labels), -1).float()], 1)


def _scale(columns: Tensor) -> Tensor:
    """Standard deviation of every column, 1 for constant ones."""
    deviation = columns.std(0, correction=0)
    return torch.where(deviation > 0, deviation, torch.ones_like(deviation))
