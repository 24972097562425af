"""Training: one loop for every method, from a laptop's CPU to many GPUs under torchrun."""

from truepair.train.loop import Result as Result
from truepair.train.loop import train as train
