import os

# The default tests use tiny matrices: BLAS threads would only fight with their neighbours.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
