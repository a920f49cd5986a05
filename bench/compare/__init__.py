"""`jbatch bench compare`: jbatch beside PyTorch on one device."""
