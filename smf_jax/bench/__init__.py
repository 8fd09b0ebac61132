"""`smf bench`: the speed of smf_jax on this machine, beside PyTorch."""
