"""Parts of `StableDiffusionLoRA`, one concern a file; import from the file."""
