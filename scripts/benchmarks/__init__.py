"""The cases of `scripts/benchmark.py`, and how they are measured.

Nothing here imports imagetok or a peer at its top: each variant of a case runs in a process of its
own, which may take them from elsewhere or do without.
"""
