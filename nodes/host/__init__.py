"""The adapter: the only room that knows ComfyUI's internals."""
