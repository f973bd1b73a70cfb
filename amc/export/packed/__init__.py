"""Networks in files as small as their information: symbols, entropy-coded, read back bit by bit."""
