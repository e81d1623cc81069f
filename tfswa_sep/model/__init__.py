"""The network: config its shape, attention the three attentions, block their fusion, unet the whole."""
