"""Blocks of samples in, blocks of stems out.

separate_blocks.py                  a stream of blocks through the network, segment by segment
overlap_add.py                      cuts segments, cross-fades their stems; live_windows.py: the same for live sound
backend.py                          what a loaded model can do; onnx_backend.py,
                                    openvino_backend.py (both a graph_backend.py), torch_backend.py: how
features.py, stft_numpy.py, mask_apply.py   before and after our own networks; families/: and those of others
ensemble.py, bag.py                 the mean of several models; one model of several networks
stem_matrix.py                      "vocals,drums+bass" -> which of a model's stems add up to it
metadata.py, hardware.py            what a model file says about itself; CPUs and GPUs
"""
