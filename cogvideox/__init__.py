"""CogVideoX as plain torch modules: no host, no pipeline library.

Shape letters used in this package: B batch, T latent frames, F pixel frames, C channels, H W latent height and width,
L text tokens, S all tokens (text and video), D model width.
"""
