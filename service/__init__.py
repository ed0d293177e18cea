"""The job service: accepts student-shape requests, queues distillation, serves progress and students over HTTP."""
