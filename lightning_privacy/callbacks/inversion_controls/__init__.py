"""Controls for defences against inversion: each does one of the things that sparse coding does, and nothing else."""
