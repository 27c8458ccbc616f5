"""From a trained network to a version on disk: the ONNX file, its parity check, the model card and the report.

The files are a contract: `serving` reads tensor names and metadata, programs read the card.
"""
