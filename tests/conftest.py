import os

# The default tests use tiny matrices: BLAS threads would only fight with their neighbours.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from hypothesis import HealthCheck, settings

# A busy machine is no reason to fail: tests say nothing about seconds.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")
