"""Live separation: sound comes in from one device and goes out to another, with some stems louder than others.

devices    what the machine offers, and which of it plays back what other programs play
ring       buffers that neither side waits for
loop       from the input's callback to the output's; knows no devices
osc        gains that other programs send
recorder   stems to files, in a thread of its own
session    the loop with real devices: lost ones, slow CPUs, messages
"""
