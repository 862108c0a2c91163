"""Prompts: sets of them from files, the hub or a recipe, and which of them every optimizer step uses."""

from amsd.prompts.data_module import BufferPromptDataModule, PromptDataModule
from amsd.prompts.load import load_prompts
from amsd.prompts.prompt_set import PromptError, PromptSet

__all__ = ["BufferPromptDataModule", "PromptDataModule", "PromptError", "PromptSet", "load_prompts"]
