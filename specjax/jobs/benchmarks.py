"""Benchmarks of the lab that take no part in `experiments.benchmark`."""

from specjax.lab.bench.device.job import benchmark_device
from specjax.lab.bench.load import benchmark_load
from specjax.lab.bench.peer.job import benchmark_peer
from specjax.lab.bench.training_cost import benchmark_training

__all__ = ["benchmark_device", "benchmark_load", "benchmark_peer", "benchmark_training"]
