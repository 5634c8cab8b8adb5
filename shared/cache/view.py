"""A cache as a user of the Python API holds it: with batches, a dataset for PyTorch, data frames, the Zarr group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from .batch import Batch
from .batches import POOL_ROWS, BatchSettings, CacheDataset, batches
from .format import ARRAYS
from .reader import Cache

if TYPE_CHECKING:
    import pandas as pd


class CacheView(Cache):
    """An open cache with everything that a loop or an analysis of your own needs. Open it with `sp.open_cache`."""

    @classmethod
    def of(cls, cache: Cache) -> CacheView:
        """The same cache."""
        return cls(**{one.name: getattr(cache, one.name) for one in fields(Cache)})

    def batches(
        self,
        sites: Sequence[str] | str = (),
        *,
        batch_size: int = 4096,
        shuffle: bool = False,
        seed: int = 0,
        epoch: int = 0,
        position_0: bool = True,
        pool_rows: int = POOL_ROWS,
    ) -> Iterator[Batch]:
        """The rows of one epoch, each exactly once, padding excluded.

        Args:
            sites: to read; none: all.
            batch_size: rows of a batch; the last one is shorter.
            shuffle: in random order, by seed and epoch; else in the order of the cache.
            position_0: include rows at position 0.
            pool_rows: rows that the random order draws from at a time, held in memory.

        Raises:
            UsageError: a site was not found.
        """
        return batches(self, _settings(sites, locals()))

    def dataset(
        self,
        sites: Sequence[str] | str = (),
        *,
        batch_size: int = 4096,
        shuffle: bool = False,
        seed: int = 0,
        epoch: int = 0,
        position_0: bool = True,
        pool_rows: int = POOL_ROWS,
    ) -> CacheDataset:
        """The same batches as a `torch.utils.data.IterableDataset`: `DataLoader(dataset, batch_size=None)`. Workers
        share the rows; `set_epoch` changes the order.
        """
        return CacheDataset(self.path, self.identity, _settings(sites, locals()))

    def documents(self) -> pd.DataFrame:
        """One row for each document, by doc_id: source, domain, rows, first_row, target_row, and a column per label."""
        from .frames import documents_frame

        return documents_frame(self)

    def group(self) -> Any:
        """The Zarr group, read-only; a bfloat16 site is its uint16 bits there (attribute logical_dtype).

        Raises:
            UsageError: zarr is not installed.
        """
        try:
            import zarr
        except ImportError:
            raise UsageError("the Zarr group needs the package zarr", "pip install zarr") from None
        return zarr.open_group(str(self.path / ARRAYS), mode="r")


def _settings(sites: Sequence[str] | str, given: dict[str, Any]) -> BatchSettings:
    names = tuple([sites] if isinstance(sites, str) else sites)
    return BatchSettings(names, **{one.name: given[one.name] for one in fields(BatchSettings)[1:]})
