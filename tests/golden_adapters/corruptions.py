"""corruptions_*: each corruption with recorded draws at its five severities."""

import torch

from golden_adapters import adapter
from mixaug.engine.evaluation import corruption_ops as ops

#: Levels by which a rounding may change a result, where the reference computes in other precision.
ROUNDED = {"defocus_blur": 1.0, "zoom_blur": 1.0, "brightness": 1.0, "saturate": 1.0}


def planes(array):
    """(..., H, W, 3) to (B, 3, H, W)."""
    pixels = torch.from_numpy(array)
    return (pixels[None] if pixels.ndim == 3 else pixels).movedim(-1, -3).contiguous()


def glass_shifts(arrays, rounds):
    """(rounds, 1, H, W, 2) as (rows, columns), of shifts that are recorded from the last pixel to the first."""
    recorded = torch.from_numpy(arrays["glass_shift_xy"][:rounds]).long().flip(1, 2, 3)
    return torch.nn.functional.pad(recorded, (0, 0, 2, 0, 2, 0))[:, None]


def replayed(arrays, image, name, level):
    def given(key):
        return arrays[key][level].tolist()

    if name in ("gaussian_noise", "speckle_noise"):
        return getattr(ops, name)(image, planes(arrays["normal"]), given(f"{name}_constant"))
    if name == "shot_noise":
        return ops.shot_noise(image, planes(arrays["poisson_counts"][level]), given("shot_noise_constant"))
    if name == "impulse_noise":
        draws = planes(arrays["impulse_uniform"]), planes(arrays["impulse_salt"])
        return ops.impulse_noise(image, *draws, given("impulse_noise_constant"))
    if name == "glass_blur":
        return ops.glass_blur(image, glass_shifts(arrays, int(arrays["glass_rounds"][level])), given("glass_sigma"))
    if name == "zoom_blur":
        return ops.zoom_blur(image, arrays["zoom_values"][: int(arrays["zoom_factors"][level])].tolist())
    if name == "fog":
        return ops.fog(image, torch.from_numpy(arrays["fog_map"][level])[None], given("fog_strength"))
    if name == "defocus_blur":
        return ops.defocus_blur(image, torch.from_numpy(arrays["defocus_kernel"][level]))
    if name == "saturate":
        return ops.saturate(image, *given("saturate_scale_shift"))
    constant = {"gaussian_blur": "gaussian_sigma", "contrast": "contrast_factor", "brightness": "brightness_added"}
    return getattr(ops, name)(image, given(constant.get(name, "pixelate_side")))


@adapter("corruptions")
def replay_corruptions(arrays, stem):
    image = planes(arrays["image"])
    found = []
    for name in (key for key in arrays if key in ops.__all__):
        for level, expected in enumerate(planes(arrays[name])):
            got = replayed(arrays, image, name, level)[0]
            found.append((f"{name}[{level}]", got.int(), expected.int(), ROUNDED.get(name, 0.0)))
            differing = (got != expected).double().mean()
            found.append((f"{name}[{level}] share of other pixels", differing, torch.zeros_like(differing), 0.05))
    return found
