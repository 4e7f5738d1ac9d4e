"""What other tools call the settings of a run."""

from __future__ import annotations

__all__ = ["ELSEWHERE"]

#: What other tools call something, and what there is here: of settings that stand in no section, and of a section that
#: the answer names.
ELSEWHERE = {
    "resume": "the same command goes on with an interrupted run",
    **dict.fromkeys(("learning_rate", "base_lr"), "it is optimizer.lr"),
    **dict.fromkeys(("wd", "decay"), "it is optimizer.weight_decay"),
    **dict.fromkeys(("scheduler", "lr_scheduler", "lr_schedule", "sched"), "it is schedule=... and its settings"),
    **dict.fromkeys(("loss", "criterion"), "it is objective=... and its settings"),
    **dict.fromkeys(("arch", "backbone", "network", "net"), "it is model=..., of timm model=timm model.name=..."),
    **dict.fromkeys(("aug", "mix", "augmentation", "method"), "it is policy=..."),
    **dict.fromkeys(
        ("p", "prob", "probability", "mix_prob", "mixup_prob", "cutmix_prob"),
        "a share of the batches is no policy.<setting> but a file of your own, policy/<name>.yaml with _target_: "
        "mixaug.Sometimes, policy: and probability:, in a folder that --config-dir names (docs/benchmark.md)",
    ),
    **dict.fromkeys(("gpu", "gpus", "cuda"), "it is device=cuda:0"),
    **dict.fromkeys(("amp", "fp16", "bf16", "half", "dtype"), "it is precision=bfloat16 or precision=float16"),
    **dict.fromkeys(("output", "output_dir", "outdir", "save_dir", "logdir", "log_dir"), "it is root=..."),
    **dict.fromkeys(("checkpoint", "ckpt", "pretrained", "weights", "finetune"), "it is init_from=runs/<run>"),
}
