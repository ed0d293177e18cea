"""What every room may rely on: job spec, shapes, run folder, events, launch command, errors.

Needs the standard library and pydantic only, so the web process and the trainer can share it.
"""
