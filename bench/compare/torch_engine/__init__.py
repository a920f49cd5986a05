"""An executor in PyTorch that jbatch's own engine drives."""
