"""Recurrent networks on the CPU: training and inference on kernels written in Halide.

    layer = rnn.LSTM(input_size=1, hidden_size=16, output_size=1, seed=0)
    run = layer.forward(x)                          # x: float32 (T, N, I), time-major
    value, d_output = rnn.MSE()(run.output, target)
    gradients = layer.bptt(run, d_output)           # .weights, .x, .state

`rnn.fit` trains, `rnn.save` and `rnn.load` keep layers in files, `rnn.backend` chooses what runs them.
"""

from . import backend, cells, interchange
from ._explain import Explanation, explain
from ._threads import get_num_threads, set_num_threads, threads
from .checkpoint import Checkpoint, CheckpointError, load, save
from .layers import GRU, LSTM, MGU, RNN, Gradients, IndRNN, Layer, Run, cell
from .losses import MSE, SoftmaxCrossEntropy
from .optim import SGD, Adam, clip_norm
from .training import History, Progress, TrainingDiverged, evaluate, fit

__all__ = [
    "GRU",
    "LSTM",
    "MGU",
    "MSE",
    "RNN",
    "SGD",
    "Adam",
    "Checkpoint",
    "CheckpointError",
    "Explanation",
    "Gradients",
    "History",
    "IndRNN",
    "Layer",
    "Progress",
    "Run",
    "SoftmaxCrossEntropy",
    "TrainingDiverged",
    "backend",
    "cell",
    "cells",
    "clip_norm",
    "evaluate",
    "explain",
    "fit",
    "get_num_threads",
    "interchange",
    "load",
    "save",
    "set_num_threads",
    "threads",
]
