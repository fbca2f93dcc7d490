"""Slow, plain implementations that the kernels are checked against and timed against.

They share no code with the kernels. In an installed package this folder is `rnn.baselines`.
"""
