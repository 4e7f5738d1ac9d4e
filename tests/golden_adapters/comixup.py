"""comixup_*: distances, costs, objectives; images and targets from the recorded mask; a labelling that is not worse."""

import torch

from golden_adapters import adapter
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
    mixed, weights = F.comixup(given["images"], torch.arange(count).expand(count, count), shares)
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
        ("mixed", mixed, given["mixed"], 1e-6),
        ("target", weights @ given["onehot"], given["target"], 1e-6),
        ("obj_final of ours above the reference's", above, torch.zeros(()), 0.01 * expected.abs().item()),
    ]
