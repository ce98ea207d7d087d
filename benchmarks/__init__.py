import yolojax  # noqa: F401  # before any module imports JAX, which then starts without plugins for devices that are not here
