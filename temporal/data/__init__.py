"""What models and probes are fed with: clips, tokens, targets and features, in batches."""
