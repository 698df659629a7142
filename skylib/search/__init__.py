"""Look-alikes, anomalies and maps."""
