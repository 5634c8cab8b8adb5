"""The codes of the last few training batches, kept for the monitors and for penalties on pairs."""
