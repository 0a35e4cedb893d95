"""What a run costs before it is started: memory, bytes on the network, stage times, the split of devices.

Pure arithmetic on options and on the figures of the models; no torch, Ray or vLLM is imported for it.
"""
