"""The model card of an extracted student."""

from __future__ import annotations

import json

from etd_ds import flops
from etd_ds.contract import rundir, spec

_HOW = {
    "impt": "the most important neurons [ETD-Impt]",
    "rand": "neurons drawn at random [ETD-Rand]",
    "none": "nothing: all weights are random [Rand-Init]",
}


def text(job: spec.JobSpec, plan: rundir.Plan, teacher: str) -> str:
    """README.md of a student: what it was cut from, how, its size and cost."""
    name = "all-MiniLM-L6-v2 (embedded)" if job.teacher == "embedded" else teacher
    forward = flops.forward(plan.student, job.seq_length, mode="exact")
    ratio = flops.forward(plan.teacher, job.seq_length, mode="exact") / forward
    layers = ", ".join(map(str, plan.teacher_layers)) or "none"
    return f"""---
library_name: transformers
tags: [bert, distillation, extract-then-distill]
---
# {plan.student.layers}L-{plan.student.hidden} BERT student

An initial student for distillation, cut from a teacher by Extract then Distill.

| | |
|---|---|
| teacher | {name}, {plan.teacher} |
| teacher weights, sha256 | `{plan.teacher_sha256}` |
| kept from the teacher | {_HOW[job.mode]} |
| teacher layers (1-based) | {layers} |
| student | {plan.student} |
| parameters | {plan.student_parameters:,} (teacher {plan.teacher_parameters:,}, {plan.compression:.2f} × smaller) |
| forward pass at {job.seq_length} tokens | {forward / 1e9:.2f} GFLOPs ({ratio:.2f} × fewer than the teacher) |

`extraction.json` holds every kept index. The request, whole:

```json
{json.dumps(job.public().model_dump(mode="json", exclude_defaults=True), indent=2)}
```

Load it with `transformers.AutoModel.from_pretrained(folder)`.
"""
