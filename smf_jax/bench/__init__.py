"""Speed on this machine, ours and PyTorch's, of the same work: `smf bench`."""
