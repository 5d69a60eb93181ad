"""The response surface: the logits of every sample as a smooth function of the coefficients, fitted to mixes scored.

Near a start the logits of a fused model are almost a quadratic function of its coefficients, the same few numbers for
all samples and classes. So some tens of mixes that were scored tell what thousands that were not would predict, sample
by sample: every metric follows from that. It is a Gaussian process with a polynomial kernel (Rasmussen and Williams,
"Gaussian Processes for Machine Learning", 2006, chapters 2 and 4) of which all outputs share the kernel: one small
linear solve for all samples and classes. Its labels are never seen: they come in where a metric is taken of what it
predicts.

Pure functions on arrays; no Optuna, no files.
"""
