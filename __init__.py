"""ComfyUI entry point of CogVideoX for ComfyUI."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """Return the extension; imported late so that tests can collect this package without a host."""
    from .nodes import CogVideoXExtension

    return CogVideoXExtension()
