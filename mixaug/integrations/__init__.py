"""Thin adapters to other training frameworks, each imported on use only.

| module                            | gives                                                           |
|-----------------------------------|-----------------------------------------------------------------|
| `mixaug.integrations.timm`        | `MixupFn`, `FastCollateMix` and `MixTask` for its training loop |
| `mixaug.integrations.torchvision` | `MixTransform`, a transforms-v2 transform of a batch            |
| `mixaug.integrations.lightning`   | `MixBatchMixin`, which mixes on the device before training_step |
| `mixaug.integrations.huggingface` | `MixTrainerMixin`, which mixes inside `Trainer.compute_loss`    |

Importing `mixaug` imports none of them. What mixes a batch before the model sees it refuses a policy that looks at
the model; `MixTask`, `MixBatchMixin` with a `mix_step` and `MixTrainerMixin` train by a whole `mixaug.MixStep`,
which feeds every policy.
"""
