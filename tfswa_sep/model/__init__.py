"""The network: `config` its shape, `attention` TSA, FSA and SW-MSA, `block` their fusion, `unet` the whole."""
