"""What a library did with a damaged file: refused it clearly, gave the right output, or one of the faults."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from attack.readers import Overflow

FINE = ("refused", "same", "legal other file", "overflow")
FAULTS = ("other output", "NaN", "unclear error", "model changed", "hang", "died", "network")
UNREADABLE = (ValueError, KeyError, TypeError, RuntimeError, IndexError, AttributeError, AssertionError, OSError)


@dataclass(frozen=True)
class Kind:
    """A kind of file under attack.

    Attributes:
        name: Its row in the table.
        share: How many of 100 mutations are of this kind.
        suffix: Of the name of a file; empty for a folder.
        write: Write a valid file or folder; the second argument is the number of its owner.
        model: Return a new model that `use` takes.
        use: Load a file into the model, and return the output.
        other_reader: Read a damaged file with no code of the library, and return the output that is right for it, or
            None for a legal file whose output it does not compute. It raises an error for any other file. Without a
            reader, every change has to be refused.
        seal: Whether the attacker computes checksums again.
    """

    name: str
    share: int
    suffix: str
    write: Callable[[Path, int], object]
    model: Callable[[], nn.Module]
    use: Callable[[nn.Module, Path], Tensor]
    other_reader: Callable[[Path], Tensor | None] | None = None
    seal: bool = False


def state_of(model: nn.Module, x: Tensor) -> tuple:
    """All that an error must leave as it was: modules, hooks, modes, gradients, numbers, and the output."""
    modules = tuple((name, id(module), module.training, *_hooks(module)) for name, module in model.named_modules())
    parameters = tuple((name, id(value), value.requires_grad) for name, value in model.named_parameters())
    numbers = {name: value.clone() for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    return modules, parameters, numbers, output_of(model, x)


def _hooks(module: nn.Module) -> tuple[int, int, bool]:
    return len(module._forward_hooks), len(module._forward_pre_hooks), "forward" in vars(module)


def output_of(model: nn.Module, x: Tensor) -> Tensor | str:
    """The output of a model; the error of one that needs a condition."""
    try:
        with torch.no_grad():
            return model(x)
    except (ValueError, RuntimeError) as error:
        return str(error)


def same_state(before: tuple, after: tuple) -> bool:
    outputs = before[3], after[3]
    are_tensors = all(isinstance(output, Tensor) for output in outputs)
    return (
        before[:2] == after[:2]
        and before[2].keys() == after[2].keys()
        and all(torch.equal(value, after[2][name]) for name, value in before[2].items())
        and (torch.equal(*outputs) if are_tensors else outputs[0] == outputs[1])
    )


def judge(kind: Kind, path: Path, right: Tensor, x: Tensor) -> tuple[str, str]:
    """Load a damaged file.

    Args:
        kind: Its kind.
        path: The file or folder.
        right: The output that the undamaged file gives.
        x: An input of the model.

    Returns:
        The verdict, one of `FINE` and `FAULTS`, and the message of the error or the largest difference of the outputs.
    """
    model = kind.model()
    before = state_of(model, x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with torch.no_grad():
                output = kind.use(model, path)
        except Exception as error:
            words = f"{type(error).__name__}: {error}"
            if not same_state(before, state_of(model, x)):
                return "model changed", words
            is_clear = type(error) is ValueError and str(path) in str(error) and len(str(error)) < 2000
            return ("refused" if is_clear else "unclear error"), words
        return _judge_output(kind, path, output, right)


def _judge_output(kind: Kind, path: Path, output: Tensor, right: Tensor) -> tuple[str, str]:
    """Compare with the right output or, if the file may be another legal one, with that of the other reader."""
    is_finite = bool(output.isfinite().all())
    if output.shape == right.shape and torch.equal(output, right):
        return "same", ""
    fault = "other output" if is_finite else "NaN"
    if kind.other_reader is None:
        return fault, _difference(output, right)
    try:
        expected = kind.other_reader(path)
    except Overflow:
        return "overflow", ""
    except UNREADABLE as error:
        return fault, f"not readable by another reader ({type(error).__name__}: {error})"
    if expected is None:
        return ("legal other file", "") if is_finite else (fault, "")
    is_right = expected.shape == output.shape and torch.allclose(output, expected.to(output), rtol=1e-3, atol=1e-4)
    return ("legal other file", "") if is_right else (fault, _difference(output, expected))


def _difference(output: Tensor, expected: Tensor) -> str:
    if output.shape != expected.shape:
        return f"shape {tuple(output.shape)}, expected {tuple(expected.shape)}"
    return f"off by {(output - expected).abs().max().item():.3g}"
