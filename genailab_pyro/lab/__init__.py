"""The ELBO lab: gradient estimators, posterior collapse and count distributions to play with, in a browser."""
