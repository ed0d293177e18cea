"""The database's history: a module a version, run in order when a server starts. A new one: versions/vNNNN_what.py."""
