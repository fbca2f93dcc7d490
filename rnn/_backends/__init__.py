"""What runs a layer's forward pass and its BPTT. Users choose with `rnn.backend`; the contract is in
`base.py`.
"""
