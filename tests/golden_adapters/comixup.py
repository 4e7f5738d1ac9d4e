"""comixup_*: distances, costs, objectives; images and targets from the recorded mask; a labelling that is not worse."""

from unittest import mock

import torch

import mixaug
from golden_adapters import adapter
from golden_adapters.recorded import mixed_as_recorded
from mixaug import functional as F


@adapter("comixup")
def replay_comixup(arrays, stem):
    given = {name: torch.from_numpy(array) for name, array in arrays.items() if array.ndim}
    beta, gamma, threshold = (float(arrays[name]) for name in ("beta", "gamma", "thres"))
    count = len(given["images"])
    compatibility = F.comixup_compatibility(given["A_dist"], float(arrays["omega"]))
    cost = F.comixup_costs(given["saliency"], int(arrays["block_num"]))
    prior = F.comixup_prior(cost, given["dirichlet"], float(arrays["eta"]))

    def objectives(shares):
        both = [F.comixup_objective(prior, shares, beta, gamma, limit) for limit in (None, threshold)]
        return torch.stack(both, -1)

    shares = given["mask"].permute(0, 3, 1, 2)
    start = torch.nn.functional.one_hot(given["init_labels"], count).permute(0, 3, 1, 2).float()
    mixed, handed = by_policy(arrays, given, shares)
    # One start says little, since no solver is exact over all outputs: the recorded one and its relabellings.
    starts = torch.stack([(given["init_labels"] + turn) % count for turn in range(count)])
    found = F.comixup_shares(
        prior.expand(count, *prior.shape),
        compatibility.expand(count, count, count),
        starts,
        beta=beta,
        gamma=gamma,
        threshold=threshold,
        iterations=int(arrays["niter"]),
        soft_penalty=bool(arrays["soft_threshold"]),
    )
    reached, expected = objectives(found)[:, 1].min(), given["obj_final"][1]
    rounding = max(1e-4, 1e-6 * given["obj_init"].abs().max().item())
    above = (reached - expected).clamp(min=0)
    return [
        ("A_dist", F.comixup_distance(given["saliency"]), given["A_dist"], 0.0),
        ("A", compatibility, given["A"], 1e-7),
        ("cost", cost, given["cost"], 1e-6),
        ("cost_with_prior", prior, given["cost_with_prior"], 1e-6),
        ("obj_init", objectives(start), given["obj_init"], rounding),
        ("obj_final of the recorded mask", objectives(shares), given["obj_final"], rounding),
        ("cost_with_prior of the policy", handed["cost"], given["cost_with_prior"], 1e-6),
        ("A of the policy", handed["compatibility"], given["A"], 1e-7),
        ("start of the policy", handed["start"], given["init_labels"], 0.0),
        ("mixed", mixed.inputs, given["mixed"], 1e-6),
        ("target", mixed.targets(given["onehot"].shape[1]), given["target"], 1e-6),
        ("obj_final of ours above the reference's", above, torch.zeros(()), 0.01 * expected.abs().item()),
    ]


def by_policy(arrays, given, shares):
    """What the policy makes of the recorded labelling, and what it hands to its solver."""
    count, handed = len(given["images"]), {}

    def solved(cost, compatibility, start, **options):
        handed.update(cost=cost[0], compatibility=compatibility[0], start=start[0])
        return shares[None]

    # The prior was recorded as shares of a Dirichlet distribution, the start as labels.
    start = (given["init_labels"] + 0.5) / count
    with (
        mock.patch("mixaug.policies.comixup.comixup_shares", solved),
        mock.patch("mixaug.policies.comixup._dirichlet", lambda *_: given["dirichlet"][None]),
    ):
        mixed = mixed_as_recorded(
            "comixup",
            given["images"],
            torch.arange(count),
            given["labels"],
            mixaug.Signals(saliency=given["saliency"]),
            recorded={"uniform": [start]},
            block_num=int(arrays["block_num"]),
            beta=float(arrays["beta"]),
            gamma=float(arrays["gamma"]),
            threshold=float(arrays["thres"]),
            eta=float(arrays["eta"]),
            omega=float(arrays["omega"]),
            iterations=int(arrays["niter"]),
            soft_penalty=bool(arrays["soft_threshold"]),
            clean_weight=0.0,
        )
    return mixed, handed
