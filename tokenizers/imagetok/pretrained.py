"""`PretrainedCodec`: a codec built from its config, and its way to files, to the Hub and back."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from imagetok.arguments import read_dtype, read_folder
from imagetok.build import build_parts
from imagetok.cards import write_model_card
from imagetok.codec import Codec
from imagetok.errors import InvalidValueError
from imagetok.files import file_sha256, naming_os_errors, write_atomic
from imagetok.hub import Pushed, is_repo_id, load_remote_model, push_model, read_subfolder
from imagetok.launch import read_device
from imagetok.modelfile import (
    CARD_FILE,
    MODEL_FILE,
    ModelFiles,
    carry_evaluation,
    load_model,
    read_evaluation,
    save_model,
)
from imagetok.tokenizer_config import TokenizerConfig


@dataclass(frozen=True)
class Origin:
    """Where a tokenizer was loaded from.

    Attributes:
        name: Repository on the Hub, or the folder as it was given.
        revision: Commit on the Hub; None for a local folder.
        folder: That holds its files.
        sha256: Of the whole file model.safetensors.
    """

    name: str
    revision: str | None
    folder: Path
    sha256: str


class PretrainedCodec(Codec):
    """Building, saving, loading and pushing.

    Attributes:
        origin: Where the tokenizer was loaded from; None if it was built.
    """

    origin: Origin | None = None

    @property
    def revision(self) -> str | None:
        """Commit on the Hub that the tokenizer was loaded from; None if it came from elsewhere."""
        return None if self.origin is None else self.origin.revision

    @classmethod
    def from_config(cls, config: TokenizerConfig) -> Self:
        """Build with fresh weights, drawn from torch's global generator."""
        parts = build_parts(config)
        return cls(
            parts.preprocessor,
            parts.encoder,
            parts.bottleneck,
            parts.decoder,
            parts.likelihood,
            config,
        )

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        *,
        revision: str | None = None,
        subfolder: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
    ) -> Self:
        """Load a saved tokenizer.

        Args:
            name: Local folder that `save_pretrained` wrote, or repository `user/name` on the Hub.
                Where there is such a folder, it is taken.
            revision: Branch, tag or commit on the Hub; None is its main branch. It is resolved once
                to the commit that every file comes from; `revision` of the result names it.
            subfolder: Folder inside of it that holds the tokenizer.
            token: For private repositories; None takes the one that `hf auth login` saved, False
                sends none.
            cache_dir: Of the Hub's files; None is huggingface_hub's own.
            local_files_only: Take what is in the cache, and make no request.
            device: Where to put it; None is the CPU.
            dtype: Of the two networks: float32, bfloat16 or float16; None is float32.

        Raises:
            ModelFileError: The folder or a file is missing, damaged, or disagrees with itself. A
                damaged download is taken out of the cache, so that the next call fetches it again.
            HubAccessError: The repository, revision or file is not there, or not allowed.
            HubError: The Hub cannot be reached.
            InvalidValueError: Unknown dtype, a device that this machine has not, or a revision of
                a local folder.
            InvalidTypeError: name is no path.
        """
        network_dtype, network_device = read_dtype(dtype), read_device(device)
        if isinstance(name, str) and is_repo_id(name):
            remote = load_remote_model(
                name,
                revision=revision,
                subfolder=subfolder,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                expect=cls._expect,
            )
            files = remote.files
            origin = Origin(name, remote.revision, remote.folder, files.sha256)
        else:
            if revision is not None:
                raise InvalidValueError(
                    f"revision={revision!r} is of a repository on the Hub, and {os.fspath(name)!r} "
                    "is none: name it user/name, or leave the revision out"
                )
            files = load_model(read_folder(name) / read_subfolder(subfolder), expect=cls._expect)
            folder = files.path.parent.absolute()
            origin = Origin(os.fspath(name), None, folder, files.sha256)
        tokenizer = cls._from_files(files)
        tokenizer.origin = origin
        return tokenizer.to(device=network_device, dtype=network_dtype)

    @classmethod
    def _expect(cls, config: TokenizerConfig) -> dict[str, Tensor]:
        """The tensors of a config's model, of which nothing is allocated."""
        with torch.device("meta"):
            return cls.from_config(config).float().state_dict()

    @classmethod
    def _from_files(cls, files: ModelFiles) -> Self:
        # Whatever torch's defaults are, and drawing nothing from its generator.
        with torch.device("cpu"), torch.random.fork_rng(devices=[]):
            tokenizer = cls.from_config(files.config).float()
        tokenizer.load_state_dict(files.tensors)
        return tokenizer.requires_grad_(False).eval()

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write `model.safetensors`, `config.json` and a card; interrupted, the old files stay.

        The figures and the picture that lie beside the loaded file go along while they are of the
        same weights.

        Weights are saved in float32: those of a tokenizer in a half type as that type rounded them.

        Raises:
            InvalidValueError: The tokenizer was put together by hand and has no config, or a
                weight is not finite.
            InvalidTypeError: folder is no path.
            UnwritableFileError: The folder cannot be made or written.
        """
        self._save(read_folder(folder), None)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
        token: str | bool | None = None,
    ) -> Pushed:
        """Save to a repository on the Hub, in one commit; it is made where it is missing.

        A card that was edited there is kept: only its generated block is renewed.

        Args:
            repo_id: `user/name`.
            private: Of a repository that is made; None is the account's default.
            revision: Branch to push to, made where it is missing; None is the main branch.
            commit_message: First line of the commit.
            create_pr: Open a pull request instead of writing to the branch.
            token: None takes the one that `hf auth login` saved.

        Returns:
            Address and commit.

        Raises:
            HubAccessError: The token is missing or may not write there, or the name is none.
            HubError: The Hub cannot be reached, or keeps failing.
            InvalidValueError: As of `save_pretrained`.
        """
        with tempfile.TemporaryDirectory(prefix="imagetok-push-") as folder:
            self._save(Path(folder), repo_id)
            return push_model(
                folder,
                repo_id,
                private=private,
                revision=revision,
                commit_message=commit_message,
                create_pr=create_pr,
                token=token,
            )

    def _save(self, folder: Path, repo_id: str | None) -> None:
        if self.config is None:
            raise InvalidValueError(
                "this tokenizer was put together from parts and has no config, so no file could "
                "rebuild it; build it with ImageTokenizer.from_config to save it"
            )
        save_model(folder, self.config, self.state_dict())
        if self.origin is not None:
            carry_evaluation(self.origin.folder, folder)
            _carry_card(self.origin.folder, folder)
        figures = read_evaluation(folder, file_sha256(folder / MODEL_FILE))
        write_model_card(folder, self.config, figures, repo_id)


def _carry_card(source: Path, target: Path) -> None:
    """Copy what people wrote into a card, where there is no card yet."""
    with naming_os_errors("copy the card in", source):
        if (source / CARD_FILE).is_file() and not (target / CARD_FILE).exists():
            write_atomic(target / CARD_FILE, (source / CARD_FILE).read_bytes())
