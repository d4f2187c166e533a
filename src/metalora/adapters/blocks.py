"""The `using` and `disabled` blocks that are entered: every thread and every asyncio task has its own."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import sys
import threading
from collections.abc import Iterator
from contextvars import ContextVar, Token
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch

from metalora.adapters.conditioning.condition import Values

_GENERATOR = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR


@dataclass(frozen=True, eq=False)
class Block:
    """A `using` or `disabled` block, or a call of `generate`.

    Attributes:
        values: The values of the factors that differ by example; None: this block gives none.
        disabled: Whether the frozen base runs inside.
        beams: How many rows of the batch share one condition; None: this block does not say it.
        prompt: How many positions the forward has that makes the condition of a call of `generate`; None: any number.
        generator: The frame of the generator that has entered the block; None if no generator has.
        owner: The thread and the asyncio task that have entered it.
    """

    values: Values | None = None
    disabled: bool = False
    beams: int | None = None
    prompt: int | None = None
    generator: FrameType | None = None
    owner: tuple[int, object] | None = None


@dataclass(frozen=True, eq=False)
class Active:
    """What the entered blocks amount to.

    Attributes:
        blocks: The blocks, the innermost one last.
        values: The values of the innermost `using`; None outside of one.
        enabled: False inside of `disabled`.
        beams: How many rows of the batch share one condition.
        prompt: That of the innermost block.
        depth: How many blocks are entered.
        in_generators: The blocks that decide what runs and that generators have entered.
    """

    blocks: tuple[Block, ...] = ()
    values: Values | None = None
    enabled: bool = True
    beams: int = 1
    prompt: int | None = None
    depth: int = 0
    in_generators: tuple[Block, ...] = ()

    def check_generators(self) -> None:
        """Raise a RuntimeError if a generator that is suspended has entered a block: its caller would run under it."""
        if torch.compiler.is_compiling():
            return
        for block in self.in_generators:
            assert block.generator is not None
            # Another thread or task has a copy of the blocks on purpose: it was started inside of the block.
            if block.owner == _thread_and_task() and not is_running(block.generator):
                what = "disabled()" if block.disabled else "using(condition)"
                raise RuntimeError(
                    f"the generator {block.generator.f_code.co_name!r} is suspended inside of {what}, and a forward "
                    "outside of it would run under it: leave the block before each yield, or pass condition=... to "
                    "the model"
                )


def _active(blocks: tuple[Block, ...]) -> Active:
    """Sum up blocks, the innermost one last."""
    using = [block for block in blocks if block.values is not None]
    disabled = [block for block in blocks if block.disabled]
    return Active(
        blocks,
        values=using[-1].values if using else None,
        enabled=not disabled,
        beams=next((block.beams for block in reversed(blocks) if block.beams is not None), 1),
        prompt=blocks[-1].prompt if blocks else None,
        depth=len(blocks),
        in_generators=tuple(block for block in (*using[-1:], *disabled) if block.generator is not None),
    )


class Blocks:
    """The blocks of one adapter that the running thread or task has entered; a copy (pickle, deepcopy) has none.

    They are in a context variable: a task or a thread with a copy of the context starts with the blocks that are
    entered at this time and keeps them; nobody sees the blocks that it enters itself.

    Attributes:
        active: The context variable; `blocks.active.get()` is what a layer reads.

    Example:
        >>> blocks = Blocks()
        >>> with blocks.entered(values={"C": torch.zeros(1, 2)}):
        ...     with blocks.entered(values={"C": torch.ones(1, 2)}):
        ...         print(blocks.active.get().values)
        {'C': tensor([[1., 1.]])}
        >>> blocks.active.get().values is None
        True
    """

    def __init__(self) -> None:
        # One for each adapter, so that it is freed with the adapter: a context keeps only what is entered in it.
        self.active: ContextVar[Active] = ContextVar("metalora", default=_OUTSIDE)

    def __reduce__(self) -> tuple[Any, ...]:
        return Blocks, ()

    @contextlib.contextmanager
    def entered(
        self,
        values: Values | None = None,
        disabled: bool = False,
        beams: int | None = None,
        prompt: int | None = None,
    ) -> Iterator[None]:
        """Enter a block; the arguments are those of `Block`.

        Raises:
            RuntimeError: At the end, if a block that was entered later is still active, or if another thread or task
                leaves it. The block is left in any case.
        """
        generator = _entering_generator(sys._getframe(1))
        block = Block(values, disabled, beams, prompt, generator, None if generator is None else _thread_and_task())
        token = self.active.set(_active((*self.active.get().blocks, block)))
        problem = ""
        try:
            yield
        except Exception:  # it says more than the problem does
            self._leave(block, token)
            raise
        except BaseException:
            problem = self._leave(block, token)
            if not problem:
                raise
        else:
            problem = self._leave(block, token)
        if problem:
            raise RuntimeError(
                f"a using or disabled block was left {problem}, so that conditions cannot be kept apart: leave such a "
                "block before each yield of a generator"
            )

    def _leave(self, block: Block, token: Token[Active]) -> str:
        """Remove a block; return why that is an error, or an empty text if it is the innermost one of its context."""
        blocks = self.active.get().blocks
        remaining = tuple(other for other in blocks if other is not block)
        problem = "while a block that was entered after it is still active" if blocks[-1:] != (block,) else ""
        try:
            self.active.reset(token)  # so that nothing stays in the context, if no block is left
        except ValueError:  # the token is of another context
            problem = "by another thread or task than the one that entered it"
        if self.active.get().blocks != remaining:
            self.active.set(_active(remaining))
        return problem


_OUTSIDE = _active(())


def is_running(frame: FrameType) -> bool:
    """Return True if a frame is among those that have called this function.

    Example:
        >>> is_running(sys._getframe())
        True
    """
    running: FrameType | None = sys._getframe(1)
    while running is not None:
        if running is frame:
            return True
        running = running.f_back
    return False


def _thread_and_task() -> tuple[int, object]:
    """Return the identity of the running thread, and the running task of asyncio or None."""
    try:
        task: object = asyncio.current_task()
    except RuntimeError:  # no event loop runs in this thread
        task = None
    return threading.get_ident(), task


def _entering_generator(frame: FrameType | None) -> FrameType | None:
    """Return the generator whose `with` statement has entered a block, or None if that is no generator.

    A generator that contextlib has made a context manager of is not meant: its caller's `with` statement is.
    """
    while frame is not None:
        if frame.f_code.co_filename == contextlib.__file__:
            frame = frame.f_back
            continue
        if not frame.f_code.co_flags & _GENERATOR:
            return None
        if frame.f_back is None or frame.f_back.f_code.co_filename != contextlib.__file__:
            return frame
        frame = frame.f_back
    return None
