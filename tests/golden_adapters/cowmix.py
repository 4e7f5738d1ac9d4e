"""cowmix_*: noise to the smooth image, the mask, mixed images, and the loss; cowmix_scipy_*: another border."""

import torch

from golden_adapters import adapter
from golden_adapters.recorded import mixed_as_recorded
from mixaug import functional as F


@adapter("cowmix")
def replay_cowmix(arrays, stem):
    a = {name: torch.from_numpy(values) for name, values in arrays.items()}
    scipy = "own_mask" in a
    border = "reflect" if scipy else "zero"
    # Recorded is the partner's share; the policy draws the logarithm of sigma.
    uniform = [1 - a["proportion"], a["sigma"].log()]
    bounds = (a["sigma"].min().item(), a["sigma"].max().item())
    smooth = F.cow_noise(a["noise"], a["sigma"], bounds[1], border)
    mixed = mixed_as_recorded(
        "cowmix",
        a["images"],
        a["partner"],
        recorded={"uniform": uniform, "normal": [a["noise"]]},
        border=border,
        sigma=bounds,
    )
    own = a["own_mask"] if scipy else 1 - a["partner_mask"]
    found = [
        ("smoothed", smooth.squeeze(1), a["smoothed"], 1e-6 if scipy else 1e-4),
        ("own_mask", mixed.mask, own, 0.0),
        ("mixed", mixed.inputs, a["mixed"], 0.0 if scipy else 1e-6),
        ("own_weight", mixed.lam, a["own_weight"], 1e-6),
    ]
    if scipy:
        return found
    student = a["student_logits"].clone().requires_grad_()
    lam = a["own_weight"].float()
    loss = F.cowmix_consistency(student, a["teacher_logits"], a["partner"], lam, float(a["threshold"]))
    loss.backward()
    return [
        *found,
        ("loss_mix", loss.detach(), a["loss_mix"], 1e-5),
        ("grad_student", student.grad, a["grad_student"], 1e-5),
    ]
