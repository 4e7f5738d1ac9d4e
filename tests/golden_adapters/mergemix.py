"""mergemix_*: merged tokens, scores, masks, labels; mergemix_vlm_*: whole groups, and the loss that ranks answers."""

from unittest import mock

import torch

import mixaug
from golden_adapters import adapter
from golden_adapters.recorded import given, mixed_as_recorded
from mixaug import functional as F
from mixaug.functional import mergemix_shares as of_shares


def token_maps(a):
    """The map of every layer, and all of them one after the other."""
    maps = [
        F.token_matching(a[f"metric_{layer}"], int(count), class_token=True)
        for layer, count in enumerate(a["merge_counts"])
    ]
    joined = maps[0]
    for following in maps[1:]:
        joined = following.gather(1, joined)
    return maps, joined


@adapter("mergemix")
def replay_mergemix(arrays, stem):
    a = {name: torch.from_numpy(values) for name, values in arrays.items()}
    maps, joined = token_maps(a)
    if "token_map" in a:
        return vision_language(a, joined)
    side, left = int(a["side"]), a["attention"].shape[-1]
    tokens, sizes = F.merge_tokens(a["tokens_before"], joined, left)
    # What each merged token gives to the class token, which all of its members then have.
    scores = a["attention"].sum(1)[:, :, 0].gather(1, joined[:, 1:])
    lam = a["lam_draw"].reshape(1)
    own = F.mergemix_tokens(scores, lam)
    # Which members of a group stay is nobody's rule: their scores are.
    kept = [scores.masked_fill(~chosen.bool(), 0.0).sort(1).values for chosen in (own, a["own_tokens"])]
    merged = float(a["merge_counts"].sum() / side**2)
    spread = (a["normal_draw"] - a["merge_counts"].sum() / side**2) / a["own_weight"]

    def mixed(**options):
        # The maps were recorded after the merging, which the policy then leaves out; among members of a group the
        # recorded ones go first, by less than any two scores differ.
        signals = mixaug.Signals(attention=(scores * (1 + 1e-5 * a["own_tokens"])).unflatten(1, (side, side)))
        return mixed_as_recorded(
            mixaug.create("mergemix", merged=0.0, ratio=given(lam), per="batch", **options),
            a["images"],
            a["partner"],
            None,
            signals,
            recorded={"normal": [spread]} if options else {},
        )

    policy = mixed()
    with mock.patch("mixaug.policies.mergemix.mergemix_shares", lambda normal, own, _: of_shares(normal, own, merged)):
        scaled = mixed(scaled_labels=True).lam
    return [
        *((f"token_map_{layer}", found, a[f"token_map_{layer}"], 0.0) for layer, found in enumerate(maps)),
        ("source_map", joined, a["source_map"], 0.0),
        ("tokens_after", tokens, a["tokens_after"], 1e-5),
        ("token_sizes", sizes, a["token_sizes"], 0.0),
        ("token_score", scores, a["token_score"], 1e-5),
        ("kept_tokens", own.sum(1), a["kept_tokens"].expand(len(own)), 0.0),
        ("scores of own tokens", kept[0], kept[1], 1e-6),
        ("mixed", policy.inputs, a["mixed"], 0.0),
        ("own_weight", policy.lam, a["own_weight"], 1e-6),
        ("lam_scaled", scaled, a["lam_scaled"], 1e-5),
    ]


def vision_language(a, joined):
    side = round(a["own_tokens"].shape[1] ** 0.5)
    scores, lam = a["attention"].sum(1)[:, 0, 1:], a["lam"].reshape(1)
    own = F.mergemix_groups(scores, joined[:, 1:] - 1, lam)
    groups = F.mergemix_tokens(scores, lam)
    # The groups are found by the recorded rounds; what the policy makes of them follows.
    joined_groups = joined[:, 1:] - 1
    with (
        mock.patch("mixaug.policies.mergemix.merge_rounds", lambda *_: (joined_groups, scores.shape[1])),
        mock.patch("mixaug.policies.mergemix.merge_tokens", lambda values, *_: (scores[..., None], None)),
    ):
        policy = mixed_as_recorded(
            "mergemix",
            a["images"],
            a["partner"],
            None,
            mixaug.Signals(
                attention=scores.gather(1, joined_groups).unflatten(1, (side, side)),
                features=torch.zeros(len(scores), 1, side, side),
            ),
            recorded={},
            ratio=given(lam),
            count="groups",
            per="batch",
        )
    clean, answer = a["logits_clean"].clone().requires_grad_(), a["answer"]
    rank = F.mergemix_ranking(clean, a["logits_mixed"], answer, float(a["lam"]))
    tells = torch.nn.functional.cross_entropy(clean[:, :-1].flatten(0, 1), answer[:, 1:].flatten())
    total = (tells + rank) / 2
    total.backward()
    return [
        ("token_map", joined, a["token_map"], 0.0),
        ("kept_groups", groups.nonzero()[:, 1], a["kept_groups"].sort(1).values.flatten(), 0.0),
        ("own_tokens of the function", own, a["own_tokens"], 0.0),
        ("own_tokens", F.mask_at_tokens(policy.mask, (side, side)).flatten(1), a["own_tokens"], 0.0),
        ("own_share", policy.lam, a["own_share"], 1e-6),
        ("mixed", policy.inputs, a["mixed"], 0.0),
        ("logp_clean", F.answer_log_probability(a["logits_clean"], answer), a["logp_clean"], 1e-5),
        ("logp_mixed", F.answer_log_probability(a["logits_mixed"], answer), a["logp_mixed"], 1e-5),
        ("loss_rank", rank.detach(), a["loss_rank"], 1e-5),
        ("loss_answer", tells.detach(), a["loss_answer"], 1e-5),
        ("loss_total", total.detach(), a["loss_total"], 1e-5),
        ("grad_logits_clean", clean.grad, a["grad_logits_clean"], 1e-5),
    ]
