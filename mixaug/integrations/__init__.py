"""Thin adapters to other training frameworks, each imported on use only.

| module                            | gives                                                           |
|-----------------------------------|-----------------------------------------------------------------|
| `mixaug.integrations.timm`        | `MixupFn`, `FastCollateMix`, `MixTask`: of its loop and script  |
| `mixaug.integrations.torchvision` | `MixTransform`, a transforms-v2 transform of a batch            |
| `mixaug.integrations.lightning`   | `MixBatchMixin`, which mixes on the device before training_step |
| `mixaug.integrations.huggingface` | `MixTrainerMixin`, which mixes inside `Trainer.compute_loss`    |

Importing `mixaug` imports none of them. They hand model-free policies over; a policy that needs a signal from
the model is refused with a pointer to `mixaug.MixStep`, which feeds every policy.
"""
