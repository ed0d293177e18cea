"""The distillation step and the loop around it."""
