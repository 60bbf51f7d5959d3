"""Robust distillation and adversarial training at equal passes, with the same student.

    python benchmarks/robust_distillation.py --data-dir DATA --out benchmarks/results

Every student has the same number of forward and backward passes per training sample, those of the inner
maximisation and one for each image that the loss sees; passes of the teacher are not counted. Published
temperatures and weights, one learning rate for all but ``ard``, whose loss at temperature 30 is larger. All
columns but the logits are per cent of the test images; ± is the 95 % t interval over the seeds, the baseline
is PGD-AT, subtracted seed by seed. ``worst`` is the robust accuracy of the worst class under all attacks
together.
"""

from __future__ import annotations

from student_cells import main

if __name__ == "__main__":
    main(__doc__ or "", "robust_distillation", "PGD-AT")
