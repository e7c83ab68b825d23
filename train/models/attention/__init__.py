"""Core attention of the trunk on packed rows: positions, kernels, and keys shared over context-parallel ranks."""
