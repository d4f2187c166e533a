"""The command lines in-process."""

import contextlib
import importlib
import io
import subprocess
import sys

import pytest


def run_command(program, module, *arguments):
    """(exit code, stdout, stderr) of `PROGRAM ARGUMENTS`, whose `main` is in `module`."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", [program, *map(str, arguments)])
        patch.setenv("COLUMNS", "240")
        try:
            importlib.import_module(module).main()
        except SystemExit as stop:
            code = stop.code or 0
    return code, out.getvalue(), err.getvalue()


def metalora_command(*arguments):
    """(exit code, stdout, stderr) of `metalora ARGUMENTS`."""
    return run_command("metalora", "metalora.cli.main", *arguments)


def papers_command(*arguments):
    """(exit code, stdout, stderr) of `metalora-papers ARGUMENTS`."""
    return run_command("metalora-papers", "metalora_papers.cli", *arguments)


def check_command(run, program, arguments, code, fragment, folder):
    """Fail unless a command line ends with the code and says the fragment, an error in one line and nothing else.

    `run` is `metalora_command` or `papers_command`; {} in the arguments is the folder, in which no file "m" appears.
    """
    exit_code, out, err = run(*arguments.replace("{}", str(folder)).split())
    assert exit_code == code, err
    assert fragment in (out if code == 0 else err)
    if code:
        assert out == "" and err.startswith(f"{program}: ") and err.count("\n") == 1
    assert not (folder / "m").exists()


def check_usage(run, arguments):
    """Fail unless a wrong command line ends with code 2 and says what is known, without a traceback."""
    code, out, err = run(*arguments.split())
    assert code == 2 and out == "" and "Traceback" not in err and len(err) > 40


HEAVY = ("torch", "timm", "transformers", "peft", "accelerate", "scipy", "optuna", "ray", "submitit")


def heavy_imports(program, module, commands):
    """The large packages that a process has imported after these commands, separated by spaces."""
    code = f"""
import contextlib, io, sys
from {module} import main
for arguments in {commands!r}:
    sys.argv = [{program!r}, *arguments]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main()
print(*[name for name in {HEAVY!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def write_resnet_adapter(folder):
    """adapter.safetensors, a LoRA of resnet10t with random weights, and resnet.safetensors, its base."""
    import timm
    from safetensors.torch import save_file

    import metalora

    model = timm.create_model("resnet10t", pretrained=False)
    metalora.attach(model, metalora.AdapterConfig("lora", 2, targets="layer1.0.conv1"))
    metalora.save(model, folder / "adapter.safetensors")
    metalora.detach(model)
    save_file(model.state_dict(), folder / "resnet.safetensors")


PROGRESS = ("meta-training", "training", "fine-tuning", "Loading weights", "runs")  # lines before that of an error


def check_wrong_input(run, program, arguments, fragment, folder, code=2):
    """Fail unless a wrong command line ends with one line that says the fragment, and leaves the folder as it is.

    Args:
        run: `metalora_command` or `papers_command`.
        program: Its name.
        arguments: The command line.
        fragment: What the line says.
        folder: The folder whose files stay those that they are.
        code: The exit code.
    """
    before = set(folder.rglob("*"))
    exit_code, out, err = run(*arguments)
    lines = [line for line in err.splitlines() if line.strip() and not line.startswith(PROGRESS)]
    assert exit_code == code and out == "" and len(lines) == 1, err
    assert lines[0].startswith(f"{program}: ") and fragment in lines[0] and len(lines[0]) < 1600
    assert set(folder.rglob("*")) == before
