"""Every method of this library as a tuner of Hugging Face PEFT: an alias of `metalora.integrations.peft`."""

from metalora.integrations.peft import *  # noqa: F403
from metalora.integrations.peft import __all__  # noqa: F401
