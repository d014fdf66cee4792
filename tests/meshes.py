"""Every way to lay eight simulated devices out, but along eight heads, which no shrunk model has."""

# (data, fsdp, tensor)
OF_EIGHT = [(data, fsdp, 8 // (data * fsdp)) for data in (8, 4, 2, 1) for fsdp in (8, 4, 2, 1) if data * fsdp in (8, 4, 2)]
