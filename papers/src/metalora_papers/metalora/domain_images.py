"""What the suites of shifted domains have in common: sampling domains, batches over them, banks and queries."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

Domain = TypeVar("Domain")


@dataclass(frozen=True)
class DomainBatch:
    """Images (n, 3, 28, 28) of several domains, the clean image of each, class labels and domain numbers (n,)."""

    shifted: Tensor
    clean: Tensor
    labels: Tensor
    domain: Tensor
    domains: tuple[Any, ...]
    ids: Tensor


@dataclass(frozen=True)
class BankAndQueries:
    """Queries of one domain and two banks with the same base images: the domain's own, and clean references."""

    bank_x: Tensor
    clean_bank_x: Tensor
    bank_y: Tensor
    query_x: Tensor
    query_y: Tensor
    bank_ids: Tensor
    query_ids: Tensor


class DomainImages(ABC, Generic[Domain]):
    """A family of domains over base images; "train", "val" and "test" name both disjoint domains and image splits.

    Every draw comes from a seed or a generator. `has_clean` says whether clean images exist at all.
    Labels are class numbers of the source, int64, seen and unseen alike.
    """

    has_clean: bool

    @abstractmethod
    def sample_domain(self, split: str, generator: torch.Generator) -> Domain:
        """Draw a domain of a split."""

    @abstractmethod
    def draw_ids(
        self, domains: Sequence[Domain], index: Tensor, split: str, classes: str, generator: torch.Generator
    ) -> Tensor:
        """Draw one base image (n,) for each domain number (n,), classes uniform."""

    @abstractmethod
    def draw_bank(
        self, domain: Domain, split: str, classes: str, per_class: int, n_query: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Draw ids of `per_class` bank images of every class and of n_query others; no image occurs twice."""

    @abstractmethod
    def labels_of(self, ids: Tensor) -> Tensor:
        """Class numbers (n,) of base images (n,)."""

    @abstractmethod
    def shifted(
        self, ids: Tensor, domains: Sequence[Domain], index: Tensor, companions: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Draw each base image in its domain; `companions` are ids that may appear beside it as distractors."""

    @abstractmethod
    def clean_like(self, ids: Tensor, domains: Sequence[Domain], index: Tensor) -> Tensor:
        """The teacher's view: each base image without its domain's shift, but for what is part of the object."""

    @abstractmethod
    def reference(self, ids: Tensor, generator: torch.Generator) -> Tensor:
        """Clean images that depend on no domain: backbone pre-training and the clean bank."""

    @abstractmethod
    def companions(self, split: str, taken: Tensor) -> Tensor:
        """Ids of a split, any class, that are not `taken`."""

    def domains(self, split: str, n: int, seed: int) -> list[Domain]:
        """Draw n domains of a split."""
        generator = torch.Generator().manual_seed(seed)
        return [self.sample_domain(split, generator) for _ in range(n)]

    def batch(self, split: str, n: int, seed: int, n_domains: int, classes: str = "seen") -> DomainBatch:
        """Draw n images over n_domains fresh domains, as evenly as possible; ValueError if n < n_domains."""
        if not 0 < n_domains <= n:
            raise ValueError(f"n_domains={n_domains}: expected 1..{n}, the number of images")
        generator = torch.Generator().manual_seed(seed)
        domains = [self.sample_domain(split, generator) for _ in range(n_domains)]
        index = torch.arange(n) % n_domains
        ids = self.draw_ids(domains, index, split, classes, generator)
        shifted = self.shifted(ids, domains, index, self.companions(split, ids[:0]), generator)
        clean = self.clean_like(ids, domains, index)
        return DomainBatch(shifted, clean, self.labels_of(ids), index, tuple(domains), ids)

    def reference_batch(self, split: str, n: int, seed: int, classes: str = "seen") -> tuple[Tensor, Tensor]:
        """Draw n clean images (n, 3, 28, 28) and labels (n,) to pre-train a backbone on."""
        generator = torch.Generator().manual_seed(seed)
        domains = [self.sample_domain(split, generator) for _ in range(n)]
        ids = self.draw_ids(domains, torch.arange(n), split, classes, generator)
        return self.reference(ids, generator), self.labels_of(ids)

    def bank_and_queries(
        self, domain: Domain, classes: str, per_class: int, n_query: int, seed: int, split: str = "test"
    ) -> BankAndQueries:
        """Draw a bank and queries of one domain from the image files of a split, no base image in both or twice.

        Distractors, where the suite has them, are neither bank nor query images.
        ValueError: a class with too few images.
        """
        generator = torch.Generator().manual_seed(seed)
        bank, query = self.draw_bank(domain, split, classes, per_class, n_query, generator)
        ids = torch.cat([bank, query])
        index = torch.zeros_like(ids)
        images = self.shifted(ids, [domain], index, self.companions(split, ids), generator)
        bank_x, query_x = images[: len(bank)], images[len(bank) :]
        clean = self.reference(bank, generator)
        return BankAndQueries(bank_x, clean, self.labels_of(bank), query_x, self.labels_of(query), bank, query)
