"""Halves of networks and what is known of them: made where torch and onnx are."""
