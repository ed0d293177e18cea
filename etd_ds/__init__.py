"""Extract then Distill: small task-agnostic BERT students from a teacher."""

import os

__version__ = "0.1.0"

# Waiting OpenMP threads sleep instead of spinning. Processes here share cores (a trainer's ranks, the extraction
# worker), and spinning threads then keep each other from working: extraction beside a running trainer took four
# times as long. OpenMP reads this when torch is first imported, so it stands here; whoever sets it is obeyed.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
