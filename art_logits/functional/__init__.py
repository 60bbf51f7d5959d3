"""Pure functions: statistics of logits and of class-wise outcomes, rank correlations, groups of classes."""
