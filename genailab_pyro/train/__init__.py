"""Training by stochastic variational inference, and the fit that it returns."""

from genailab_pyro.train.diagnosis import Diagnosis
from genailab_pyro.train.fit import TrainingError, fit, resume
from genailab_pyro.train.fitted import Fit
from genailab_pyro.train.loading import load
from genailab_pyro.train.schedules import Warmup
from genailab_pyro.train.settings import Training

__all__ = ["Diagnosis", "Fit", "Training", "TrainingError", "Warmup", "fit", "load", "resume"]
