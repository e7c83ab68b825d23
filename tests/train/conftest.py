"""Megatron-Core's modules load only after CUDA names are mapped."""

from train.engines.cuda_on_cpu import emulate_cuda

emulate_cuda()
