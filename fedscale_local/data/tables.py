"""Reading parquet, with one clear message when a file is not what was expected."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from fedscale_local.errors import DataError


def read_table(file: Path, columns: list[str], others: bool = False) -> pa.Table:
    """The named columns (with ``others``: all) of a parquet file, each as one chunk.

    Raises:
        DataError: no parquet file, or a column is missing.
    """
    try:
        with pq.ParquetFile(file) as source:
            names = source.schema_arrow.names
            missing = [column for column in columns if column not in names]
            table = None if missing else source.read(None if others else columns).combine_chunks()
    except (OSError, pa.ArrowException) as error:
        raise DataError(str(file), f"expected a parquet file ({error})", "check the file") from error
    if table is None:
        raise DataError(
            str(file), f"expected columns {columns}, found {names}", f"give it the columns {missing}"
        )
    return table
