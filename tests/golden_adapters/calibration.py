"""calibration_*: every measure of recorded logits, and the temperature that fits them."""

import torch

from golden_adapters import adapter
from mixaug.engine.evaluation import calibration as measures


@adapter("calibration")
def replay_calibration(arrays, stem):
    logits, labels = torch.from_numpy(arrays["logits"]), torch.from_numpy(arrays["labels"])
    probabilities = logits.double().softmax(1)
    # The reference leaves classes behind the last label out.
    seen = probabilities[:, : int(labels.max()) + 1]
    temperature = measures.fit_temperature(logits, labels)
    rms = measures.rms_calibration_error(probabilities, labels, int(arrays["rms_bin"]), reference=True)
    found = {
        "ece_15": measures.expected_calibration_error(probabilities, labels),
        "ece_10": measures.expected_calibration_error(probabilities, labels, 10),
        "adaptive_ece_15": measures.expected_calibration_error(probabilities, labels, 15, "mass", reference=True),
        "classwise_ece_15": measures.classwise_calibration_error(seen, labels),
        "mce_15": measures.maximum_calibration_error(probabilities, labels),
        "average_ce_15": measures.average_calibration_error(probabilities, labels),
        "brier_sum": measures.brier_score(probabilities, labels),
        "rms_calibration_100": rms,
        "aurra": measures.aurra(probabilities, labels),
        "nll": measures.negative_log_likelihood(logits, labels),
        "nll_at_temperature": measures.negative_log_likelihood(logits / float(arrays["temperature"]), labels),
        "temperature_optimum": torch.tensor(temperature, dtype=torch.float64),
    }
    return [(what, got, torch.tensor(float(arrays[what]), dtype=torch.float64), 1e-6) for what, got in found.items()]
