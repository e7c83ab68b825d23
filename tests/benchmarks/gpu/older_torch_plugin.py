"""A pytest plugin: the tests of kernels where torch is older than Megaphone asks for."""

from tests.benchmarks.gpu import older_torch
from train.engines.cuda_on_cpu import emulate_cuda

emulate_cuda()
older_torch.mend()
