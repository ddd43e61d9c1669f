"""The guide's place for the plain values of `nn_meter.latency`."""

from nn_meter.latency import Latency, ProfiledResults

__all__ = ["Latency", "ProfiledResults"]
