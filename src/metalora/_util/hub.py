"""Repositories on the Hugging Face Hub: a copy of one on this machine, and a folder of this machine as one."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from metalora._util.shown import cut

KINDS = {  # the file that tells what a repository holds -> what messages call it
    "learner.json": "a learner: metalora.learner.MetaLearner loads it",
    "task.safetensors": "a task: metalora.learner.AdaptedTask loads it",
    "finetuned.json": "a fine-tuned network: metalora.learner.FineTuned loads it",
    "adapter_config.json": "an adapter of PEFT, such as a LoRA",
    "modules.json": "a model of sentence-transformers",
    "config.json": "a model of transformers or timm",
}
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")  # endings of files, which no repository should have
LOGIN = "`hf auth login` or the environment variable HF_TOKEN"


def local_folder(
    name: str | Path, marker: str, noun: str, revision: str | None = None, *, place: str = "folder"
) -> Path:
    """Return a folder of this machine: the one given, or a copy of a repository on the Hub.

    OWNER/NAME is a repository if there is no such path here. The file that tells the kind is downloaded first, so that
    nothing large is downloaded of a repository of another kind.

    Args:
        name: The folder, or the name of the repository.
        marker: The file that every folder of this kind has.
        noun: What messages call what it should hold, such as "a learner".
        revision: A branch, a tag or a commit of the repository; None: its main branch.
        place: What messages call what may have that name here.

    Raises:
        ValueError: A revision of a folder was asked for, or the repository cannot be read or is of another kind.

    Example:
        >>> str(local_folder("/srv/learner", "learner.json", "a learner"))
        '/srv/learner'
        >>> local_folder("/srv/learner", "learner.json", "a learner", revision="v1")
        Traceback (most recent call last):
        ValueError: /srv/learner: a folder has no revision 'v1', only a repository on the Hub has
    """
    if is_repository(name):
        return _downloaded(str(name), marker, noun, revision, place, whole=True)
    _check_no_revision(name, revision, place)
    return Path(name)


def local_file(name: str | Path, file: str, noun: str, revision: str | None = None) -> Path:
    """Return a file of this machine: the one given, or a copy of one file of a repository on the Hub.

    Args:
        name: The file, or the name of the repository, OWNER/NAME.
        file: The name of the file in the repository.
        noun: What messages call what it should be, such as "an adapter of metalora".
        revision: A branch, a tag or a commit of the repository; None: its main branch.

    Raises:
        ValueError: A revision of a file was asked for, or the repository cannot be read or has no such file.

    Example:
        >>> str(local_file("runs/lotr.safetensors", "adapter.safetensors", "an adapter of metalora"))
        'runs/lotr.safetensors'
    """
    if is_repository(name):
        return _downloaded(str(name), file, noun, revision, "file", whole=False) / file
    _check_no_revision(name, revision, "file")
    return Path(name)


def _check_no_revision(name: str | Path, revision: str | None, place: str) -> None:
    if revision is not None:
        raise ValueError(f"{name}: a {place} has no revision {revision!r}, only a repository on the Hub has")


def is_repository(name: str | Path) -> bool:
    """Return whether a name is that of a repository: OWNER/NAME, and there is no such path here.

    Example:
        >>> is_repository("somebody/learner"), is_repository("./somebody/learner"), is_repository("a/b/learner")
        (True, False, False)
        >>> is_repository("runs/adapter.safetensors")
        False
    """
    is_path = str(name).startswith((".", "/", "~")) or str(name).endswith(WEIGHTS)
    return not is_path and len(Path(name).parts) == 2 and not Path(name).exists()


def _downloaded(name: str, marker: str, noun: str, revision: str | None, place: str, *, whole: bool) -> Path:
    """Return the copy of a repository in the cache of huggingface_hub; a ValueError says why there is none.

    Args:
        name: The name of the repository.
        marker: The file that is downloaded first; it may be in a folder of the repository.
        noun: What messages call what the repository should hold.
        revision: A branch, a tag or a commit; None: the main branch.
        place: What messages call what was looked for on this machine.
        whole: Whether the other files are downloaded, too.
    """
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import HFValidationError, HTTPError, RemoteEntryNotFoundError

    try:
        file = Path(hf_hub_download(name, marker, revision=revision))
        copy = file.parents[len(Path(marker).parts) - 1]  # .../snapshots/COMMIT
        return Path(snapshot_download(name, revision=copy.name)) if whole else copy
    except RemoteEntryNotFoundError:
        raise ValueError(f"{name}: not {noun}: it has no {marker}{_kind(name, revision)}") from None
    except (HTTPError, HFValidationError, OSError) as error:
        raise ValueError(f"{name}: neither a {place} nor a repository of the Hub: {_reason(error, revision)}") from None


def _kind(name: str, revision: str | None) -> str:
    """Return what a message adds about the kind of a repository; nothing if its files do not tell."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    try:
        files = HfApi().list_repo_files(name, revision=revision)
    except (HTTPError, OSError):
        return ""
    return next((f", it holds {kind}" for marker, kind in KINDS.items() if marker in files), "")


def _reason(error: Exception, revision: str | None) -> str:
    """Return in one clause why the Hub did not give a repository."""
    from huggingface_hub import errors

    if isinstance(error, errors.RevisionNotFoundError):
        return f"it has no revision {revision!r}"
    if isinstance(error, errors.GatedRepoError):
        return "its owner must grant access first: ask on the page of the repository, then `hf auth login`"
    if isinstance(error, errors.RepositoryNotFoundError) or _status(error) in (401, 403):
        return f"there is none that you may read (a private one needs {LOGIN})"
    unreachable = _unreachable(error)
    return f"{unreachable}, and the cache of this machine does not have it" if unreachable else _shown(error)


def _reason_of_upload(error: Exception, revision: str | None) -> str:
    """Return in one clause why the Hub did not take a folder."""
    from huggingface_hub import errors

    if isinstance(error, errors.RevisionNotFoundError):
        return f"it has no revision {revision!r}"
    if isinstance(error, errors.RepositoryNotFoundError) or _status(error) in (401, 403):
        return f"you may not write to it (this needs {LOGIN}, with the right to write)"
    return _unreachable(error) or _shown(error)


def _unreachable(error: Exception) -> str:
    """Return why no server answered; nothing if one did."""
    from huggingface_hub import constants, errors

    of_the_network = (errors.HTTPError, errors.LocalEntryNotFoundError, ConnectionError)
    if _status(error) is not None or not isinstance(error, of_the_network):
        return ""  # such as a full disk
    return "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} cannot be reached"


def _status(error: Exception) -> int | None:
    """Return the status of the answer of a server; None if there was no answer."""
    response = getattr(error, "response", None)
    return None if response is None else int(response.status_code)


def _shown(error: Exception) -> str:
    return cut(" ".join(str(error).split()))


class Uploadable:
    """The base of objects that are saved as a folder, which can also be a repository on the Hub."""

    def write_for_hub(self, folder: Path) -> None:
        """Write the folder that is uploaded."""
        raise NotImplementedError

    def push_to_hub(self, repository: str, **options: Any) -> str:
        """Upload the folder that `save_pretrained` writes to a repository on the Hub, and return its address.

        Args:
            repository: The name of the repository, OWNER/NAME; it is made if there is none.
            options: `token`, `private`, and what `huggingface_hub.HfApi.upload_folder` takes, such as `revision`.

        Raises:
            ValueError: The Hub cannot be reached or does not take the folder.
        """
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HFValidationError, HTTPError

        api = HfApi(token=options.pop("token", None))
        private = options.pop("private", None)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "folder"
            self.write_for_hub(folder)
            try:
                api.create_repo(repository, private=private, exist_ok=True)
                return str(api.upload_folder(repo_id=repository, folder_path=folder, **options))
            except (HTTPError, HFValidationError, OSError) as error:
                reason = _reason_of_upload(error, options.get("revision"))
                raise ValueError(f"{repository}: not uploaded: {reason}") from None
