"""Settings of all tests."""

import torch

# Small tensors gain nothing from threads, and workers that run side by side lose by them.
torch.set_num_threads(1)
