"""The shipped Hydra configs: the folder configs/ of a checkout, the package mixaug.configs of an installation."""
