"""The network: its shape (config), attentions, blocks, masks (mask_head), STFT, and the whole (unet)."""
