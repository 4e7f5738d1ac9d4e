"""puzzlemix_*: costs, energy, both solvers' minima, and, from the recorded mask, moves, mixed images and share."""

from unittest import mock

import torch

import mixaug
from golden_adapters import adapter
from golden_adapters.recorded import given, mixed_as_recorded
from mixaug import functional as F
from mixaug.ops import gridcut
from mixaug.policies import PuzzleMix
from mixaug.signals import ModelSignals

#: Samples for which our cut is not the recorded one, by file: with many blocks several cuts are nearly as good.
OTHER_CUT = {
    "puzzlemix_bn16_moves": 3,
    "puzzlemix_bn16_not": 1,
    "puzzlemix_bn8_4labels": 1,
    "puzzlemix_bn8_moves_tsize4": 2,
    "puzzlemix_bn8_tsize4": 1,
}


@adapter("puzzlemix")
def replay_puzzlemix(arrays, stem):
    if "conv_w" in arrays:
        return replay_saliency(arrays)
    images, partner = torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["perm"])
    saliency = torch.from_numpy(arrays["saliency"])
    n, labels = int(arrays["block_num"]), int(arrays["n_labels"])
    beta, gamma, eta = (float(arrays[name]) for name in ("beta", "gamma", "eta"))
    mean, std = (tuple(arrays[name].ravel().tolist()) for name in ("mean", "std"))
    lam = torch.tensor([float(arrays["alpha"])], dtype=torch.float64)
    costs = F.puzzlemix_costs(
        images, partner, saliency, block_num=n, beta=beta, gamma=gamma, neigh_size=int(arrays["neigh_size"]), std=std
    )
    names = ("unary_lost_if_keep1", "unary_lost_if_keep2", "pair_v", "pair_h")
    found = [(name, cost, torch.from_numpy(arrays[name]), 1e-5) for name, cost in zip(names, costs, strict=True)]

    energy = F.puzzlemix_energy(*costs, lam, n_labels=labels, beta=beta, eta=eta)
    recorded = [torch.from_numpy(arrays[name]).double() for name in ("cut_unary", "cut_edge_v", "cut_edge_h")]
    for name, ours, theirs in zip(("cut_unary", "cut_edge_v", "cut_edge_h"), energy, recorded, strict=True):
        # Theirs are cut to whole numbers, and float32 rounds numbers of their size.
        slack = 1 + 1e-5 * theirs.abs().max().item()
        found.append((name, ours * (1000 * n**2) - 0.5, theirs, 0.5 + slack))
    theirs = torch.from_numpy(arrays["cut_energy"])
    exact = gridcut.cut_energy(gridcut.exact_grid_cut(*recorded), *recorded)
    ours = gridcut.cut_energy(gridcut.grid_cut(*recorded), *recorded)
    as_recorded = gridcut.cut_energy(torch.from_numpy(arrays["cut_labels"]).long(), *recorded)
    zero = torch.zeros_like(theirs)
    found += [
        ("energy of the recorded labels", as_recorded / theirs, torch.ones_like(theirs), 1e-6),
        ("exact minimum above the recorded energy", (exact / theirs - 1).clamp(min=0), zero, 1e-6),
        ("our minimum above the exact one", (ours / exact - 1).clamp(min=0), zero, 0.01),
    ]

    blocks = torch.from_numpy(arrays["mask_blocks"])
    moves = None
    if bool(arrays["transport"]):
        both, seen = [], []
        for name, visible in (("1", arrays["t_mask1"][:, 0] > 0), ("2", arrays["t_mask1"][:, 0] < 1)):
            sal = torch.from_numpy(arrays[f"t_sal{name}"])
            pooled = F.pooled_saliency(saliency if name == "1" else saliency[partner], sal.shape[1])
            found.append((f"t_sal{name}", pooled, sal, 1e-6))
            seen.append(torch.from_numpy(visible))
            both.append(F.puzzlemix_moves(sal, seen[-1], t_eps=float(arrays["t_eps"])))
            source = torch.from_numpy(arrays[f"plan{name}"].argmax(1)).reshape(sal.shape)
            # Where the mask hides a place, nothing or anything may lie there.
            found.append((f"plan{name}", both[-1][seen[-1]], source[seen[-1]], 0.0))
        moves = both[0], both[1]
    noise = torch.from_numpy(arrays["noise"]) if "noise" in arrays else None
    shown = images if noise is None else F.perturbed_images(images, noise, mean=mean, std=std)
    mixed = F.puzzlemix_blend(shown, partner, blocks, moves)
    found.append(("mixed from the recorded mask", mixed, torch.from_numpy(arrays["mixed"]), 2e-6))
    options = {
        "block_nums": (n,),
        "n_labels": labels,
        "beta": beta,
        "gamma": gamma,
        "eta": eta,
        "neigh_size": int(arrays["neigh_size"]),
        "transport": bool(arrays["transport"]),
        "t_size": int(arrays["t_size"]) if int(arrays["t_size"]) > 0 else None,
        "t_eps": float(arrays["t_eps"]),
        "mean": mean,
        "std": std,
    }
    draws = {}
    if noise is not None:
        # Own images and partners are perturbed alike: both coins fall below the chance.
        options["adv_p"], draws = 1.0, {"host_uniform": [0.5, 0.5]}
    with mock.patch.object(PuzzleMix, "_perturbation", lambda policy, batch, draws: noise):
        whole = mixed_as_recorded(
            "puzzlemix",
            images,
            partner,
            None,
            mixaug.Signals(saliency=saliency),
            recorded=draws,
            ratio=given(lam),
            **options,
        )
    # Samples whose cut is the recorded one are compared from end to end. The others have another cut of nearly the same
    # energy, which is compared above; how many they are is stated for each file.
    cut = gridcut.grid_cut(*energy)
    same = (cut == torch.from_numpy(arrays["cut_labels"])).flatten(1).all(1)
    # Those are taken from our own cut on: what the policy makes of it, in single steps.
    other = 1 - cut.to(blocks.dtype) / (labels - 1)
    blocks = torch.where(same[:, None, None], blocks, other)
    of_all = f"{int(same.sum())} of {len(same)} samples"
    found += [
        (f"mixed, {of_all}", whole.inputs[same], torch.from_numpy(arrays["mixed"])[same], 2e-6),
        (f"ratio, {of_all}", whole.lam[same], torch.from_numpy(arrays["ratio"])[same], 1e-6),
        ("ratio of the other cuts", whole.lam[~same], blocks.mean((1, 2))[~same].to(whole.lam.dtype), 1e-6),
    ]
    if stem in OTHER_CUT:
        found.append(("samples with another cut", (~same).sum(), torch.tensor(OTHER_CUT[stem]), 0))
    return found


class SmallNet(torch.nn.Module):
    """A convolution, a rectifier, a pool to 2 x 2 and a linear layer, with the recorded weights."""

    def __init__(self, arrays):
        super().__init__()
        for name in ("conv_w", "conv_b", "fc_w", "fc_b"):
            setattr(self, name, torch.nn.Parameter(torch.from_numpy(arrays[name])))

    def forward(self, images):
        maps = torch.relu(torch.nn.functional.conv2d(images, self.conv_w, self.conv_b, padding=1))
        pooled = torch.nn.functional.adaptive_avg_pool2d(maps, 2).flatten(1)
        return torch.nn.functional.linear(pooled, self.fc_w, self.fc_b)


def replay_saliency(arrays):
    images, labels = torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"])
    signals = ModelSignals(SmallNet(arrays)).of(images, labels, frozenset({"saliency"}))
    saliency = mixaug.create("puzzlemix", clean_weight=1.0).saliency_of(mixaug.Batch(images, labels, signals))
    return [
        ("saliency", saliency, torch.from_numpy(arrays["saliency"]), 1e-6),
        ("loss", signals.clean_loss().detach(), torch.from_numpy(arrays["loss"]), 1e-6),
    ]
