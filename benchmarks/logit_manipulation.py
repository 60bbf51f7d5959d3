"""Which part of a robust teacher's logits makes a student robust that never sees a perturbed image?

    python benchmarks/logit_manipulation.py --data-dir DATA --out benchmarks/results

Students of one architecture are distilled on clean images (``kd``) from an adversarially trained teacher,
whose logits are manipulated first, one part at a time, by ``art_logits.transforms``; each with several seeds.
Controls: a standard teacher, label smoothing at the teacher's mean confidence, training on the labels, and
adversarial training for as many passes. All columns but the logits are per cent of the test images; ± is the
95 % t interval over the seeds; the baseline is the teacher as it is, subtracted seed by seed (a seed fixes
the initial weights and the order of the batches). ``worst`` is the robust accuracy of the worst class under
all attacks together.
"""

from __future__ import annotations

from student_cells import main

if __name__ == "__main__":
    main(__doc__ or "", "logit_manipulation", "teacher as it is")
