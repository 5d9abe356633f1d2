"""Exit codes of the processes of ranks."""

PEER_GONE = 3  # exit code of a rank that leaves because another one has
