"""Pure functions: statistics of logits (:mod:`.logits`) and of class-wise outcomes (:mod:`.classwise`)."""
