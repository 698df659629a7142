"""The network, its checkpoints, and the one loop that embeds."""
