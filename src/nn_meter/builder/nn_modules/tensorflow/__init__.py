"""The operators as Keras layers and functions of TensorFlow.

Who lives here: `operators` (one class per operator), `models` (how a model is made, saved and run).
"""
