"""The fingerprint of a tokenizer: a sha256 over all that decides ids or latents.

    fingerprint = sha256(digest of the tensors of encoder and bottleneck, in float32, + identity)

Casting the networks to a narrower type is a numeric setting, not another tokenizer: the fingerprint
stays that of the float32 weights for as long as the weights are what the cast made of them. Casts
hash nothing. They keep the weights from before, on the CPU, until a fingerprint is asked for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, UntypedStorage

from imagetok.modelfile import tensors_digest

Tensors = Mapping[str, Tensor]


@dataclass
class _Cast:
    """Weights from before one or several casts.

    Attributes:
        source: The weights, by name.
        dtypes: What each cast made of them, by name, in order.
    """

    source: dict[str, Tensor]
    dtypes: list[dict[str, torch.dtype]] = field(default_factory=list)

    def explains(self, tensors: Tensors) -> bool:
        """Whether the casts give exactly these tensors."""
        for name, tensor in tensors.items():
            expected = self.source[name].cpu()
            for dtypes in self.dtypes:
                expected = expected.to(dtypes[name])
            if not torch.equal(expected, tensor.cpu()):
                return False
        return True


class WeightFingerprint:
    """Takes fingerprints of one tokenizer, and remembers what casts hide.

    `read` answers from memory while storage and version of every tensor are those of the last time:
    training, `load_state_dict` and any change in place give another answer. `take` always hashes:
    it also sees changes that go around torch's versions, as through `.data`, and is what jobs
    and evaluations record.
    """

    def __init__(self) -> None:
        self._cast: _Cast | None = None
        self._narrowed: tuple[str, str] | None = None  # digest of narrow weights, fingerprint
        self._read: tuple[list[UntypedStorage], list[tuple[str, int]], str, str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Everything except the remembered answer, which belongs to these tensors alone."""
        return {**self.__dict__, "_read": None}

    def read(self, tensors: Tensors, identity: Mapping[str, Any]) -> str:
        """The fingerprint of tensors and identity, from memory where nothing has changed."""
        text = json.dumps(identity, sort_keys=True)
        if any(tensor.is_inference() for tensor in tensors.values()):
            return self.take(tensors, identity)  # such tensors count no versions
        versions = [(name, tensor._version) for name, tensor in tensors.items()]
        storages = [tensor.untyped_storage() for tensor in tensors.values()]
        if self._read is not None:
            known_storages, known_versions, known_text, fingerprint = self._read
            # The storages are held, so that no other tensor can stand at the same address.
            same = [s.data_ptr() for s in storages] == [s.data_ptr() for s in known_storages]
            if same and known_versions == versions and known_text == text:
                return fingerprint
        fingerprint = self.take(tensors, identity)
        self._read = (storages, versions, text, fingerprint)
        return fingerprint

    def take(self, tensors: Tensors, identity: Mapping[str, Any]) -> str:
        """The fingerprint of tensors and identity, hashed anew."""
        digest, cast = _digest(tensors), self._cast
        if cast is not None:
            self._cast = None
            if cast.explains(tensors):
                source = _digest(cast.source)
                self._narrowed = (digest, self._fingerprint_of(source, cast.source, identity))
        return self._fingerprint_of(digest, tensors, identity)

    def note_cast(self, before: Tensors, after: Tensors) -> None:
        """Remember what a change of device or dtype made of the tensors, hashing nothing."""
        self._read = None
        narrow = any(_is_narrow(tensor) for tensor in after.values())
        if not narrow or any(tensor.is_meta for tensor in (*before.values(), *after.values())):
            self._cast = self._narrowed = None
            return
        dtypes = {name: tensor.dtype for name, tensor in after.items()}
        if dtypes == {name: tensor.dtype for name, tensor in before.items()}:
            return
        if self._cast is None:
            changed = {n: t.cpu() if t.dtype != dtypes[n] else after[n] for n, t in before.items()}
            self._cast = _Cast(changed)
        self._cast.dtypes.append(dtypes)

    def _fingerprint_of(self, digest: str, tensors: Tensors, identity: Mapping[str, Any]) -> str:
        narrow = any(_is_narrow(tensor) for tensor in tensors.values())
        if narrow and self._narrowed is not None and self._narrowed[0] == digest:
            return self._narrowed[1]
        text = f"{digest}{json.dumps(identity, sort_keys=True)}"
        return hashlib.sha256(text.encode()).hexdigest()


def _is_narrow(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.dtype.itemsize < 4


def _digest(tensors: Tensors) -> str:
    """Digest of weights as they are, in float32."""
    return tensors_digest(
        {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}
    )
