"""TFSWA-UNet in PyTorch: configuration, attentions, blocks, masks, STFT, and the network itself (unet)."""
