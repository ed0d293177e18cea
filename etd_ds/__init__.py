"""Extract then Distill: small task-agnostic BERT students from a teacher."""

__version__ = "0.1.0"
