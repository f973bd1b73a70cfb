"""Which tensors are integers, and what is converted to what: read by prices and by the export."""
