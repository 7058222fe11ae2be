"""Analysis of model checkpoints: readers, survey, report."""
