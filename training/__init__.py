"""Trains recurrent networks on sensor series and exports each as a one-step ONNX graph. Never imports `serving`."""
