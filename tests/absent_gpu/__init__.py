"""A GPU that is not there: torch's CPU build believes in one, and the code takes a GPU's way.

Tensors on it have shapes, dtypes and strides, and no numbers (`tensors`); kernels that torch.compile makes are compiled
for it by Triton, down to machine code, and not run (`kernels`). So everything that a GPU would refuse before it
computes is refused here, and of what it would run much can be counted: launches, bytes, registers, waits of the host.

`driver.load()` has to come before torch is first imported: processes that want this GPU are their own.
"""
