"""Measuring on many devices: the processes that measure stand on other machines, under Dask.

A Dask worker offers devices as a resource (``dask worker --resources "pixel6=1"``). Here a device
looks as a worker process of this machine does: `elsewhere` is a ``Worker`` whose calls are tasks on
the cluster, so converting, reading graphs and the clock's trials go on as they do here, spread over
all devices of a kind. Measuring a test case is one task. No other folder imports ``distributed``.

Who lives here: `settings` (where the scheduler is), `content` (model files as what travels), `link`
(the connection to the scheduler), `fleet` (the devices of one kind: who has which), `elsewhere` (a
device as a worker process), `travel` (what goes with its calls), `connection` (a backend on many
devices), `survey` (what the devices are), `run` (a run of profiling on a kind), `interface` (some
kinds side by side); and, carried out by a Dask worker, `device` and `measuring`.
"""
