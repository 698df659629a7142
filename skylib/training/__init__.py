"""Pretraining: the loop, its optimiser, its log, and several processes."""
