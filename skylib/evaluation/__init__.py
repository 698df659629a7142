"""What embeddings are worth: probes, baselines, heads and the label study."""
