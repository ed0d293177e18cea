"""The only room that knows DeepSpeed: configs, ranks, the engine itself, and checkpoints of its state."""
