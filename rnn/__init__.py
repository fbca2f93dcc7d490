"""Recurrent networks on the CPU: training and inference on kernels written in Halide.

    layer = rnn.RNN(input_size=1, hidden_size=16, output_size=1, seed=0)
    run = layer.forward(x)                          # x: float32 (T, N, I), time-major
    value, d_output = rnn.MSE()(run.output, target)
    gradients = layer.bptt(run, d_output)           # .weights, .x, .h0

`rnn.fit` trains, `rnn.save` and `rnn.load` keep layers in files, `rnn.backend` chooses what runs them.
"""

from . import backend
from ._threads import get_num_threads, set_num_threads, threads
from .checkpoint import Checkpoint, CheckpointError, load, save
from .layers import RNN, Gradients, Run
from .losses import MSE, SoftmaxCrossEntropy
from .optim import SGD, Adam, clip_norm
from .training import History, Progress, TrainingDiverged, evaluate, fit

__all__ = [
    "MSE",
    "RNN",
    "SGD",
    "Adam",
    "Checkpoint",
    "CheckpointError",
    "Gradients",
    "History",
    "Progress",
    "Run",
    "SoftmaxCrossEntropy",
    "TrainingDiverged",
    "backend",
    "clip_norm",
    "evaluate",
    "fit",
    "get_num_threads",
    "load",
    "save",
    "set_num_threads",
    "threads",
]
