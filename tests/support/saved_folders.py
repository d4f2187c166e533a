"""Changes of a folder that PEFT or `metalora.peft` has saved, as a stranger would make them."""

from safetensors.torch import load_file, save_file

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"


def tensors(change):
    """A change of the folder that calls `change` with its tensors by name, and writes them again."""

    def run(folder):
        values = load_file(folder / TENSORS)
        change(values)
        save_file(values, folder / TENSORS)

    return run
