"""specjax beside another framework, on the same checkpoints and prompts, in turns."""
