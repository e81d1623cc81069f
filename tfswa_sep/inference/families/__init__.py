"""Families of ONNX models: each prepares a network's inputs and turns its outputs into stems.

band_masks.py        our own networks
spectra.py           htdemucs, SCNet, BS-RoFormer and Mel-Band RoFormer, as unblend exports them
waveforms.py         htdemucs, as demucs-onnx exports it
mdx_net.py           MDX-Net, as UVR and audio-separator have it
magnitude_masks.py   Spleeter
family.py, choose.py what a family has to offer; which one a file belongs to
"""
