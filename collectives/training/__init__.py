"""What a training loop calls: codecs and sample weights for DDP models, batch shares, the sampler."""
