"""Training of the pocket generator: a Stable Diffusion small enough to ship with the package."""
