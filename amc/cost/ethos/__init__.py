"""Arm's Ethos-U as devices: what its compiler Vela estimates of every operator.

`tflite` writes models of single operators, `models` says which, `worker` has Vela estimate them in
a process of its own, and `runtime` is the device.
"""
