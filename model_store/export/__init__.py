"""A published version as a file that other programs run: ONNX, or a program of ``torch.export``.

``program`` makes of a surrogate a graph that is open in its batch and its grid, with the help of ``forms``;
``onnx_model`` translates the graph, ``functions`` holds what ONNX has no operator for, and ``check`` runs the
file beside the surrogate before anybody else may.
"""
