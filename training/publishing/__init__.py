"""From a trained network to a version on disk: the ONNX file, its parity check, the model card and the report.

What is written here is a promise to others: tensor names and metadata are read by `serving`, the card by programs.
"""
