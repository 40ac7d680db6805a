"""The library that the stages share: one concept a file.

A file imports only from those that stand before it in this order: params < data < augment < models <
checkpoint < logger < training < distillation, pruning, quantization < trimming, packing < scoring.
"""
