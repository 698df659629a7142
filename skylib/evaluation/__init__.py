"""How good embeddings are: probes, baselines, heads and the label study."""
