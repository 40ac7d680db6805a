"""A packed model in the form in which others run it: C, ONNX, a web page.

Everything is made from the packed file alone, with its integers; nothing is quantized or calibrated again.
"""
