"""The tables in pyiceberg's terms: schemas, partitioning, properties, and how a table of an older version catches up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pyiceberg.partitioning import PartitionField, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.transforms import IdentityTransform
from pyiceberg.types import BooleanType, DateType, DoubleType, IcebergType, IntegerType, LongType, NestedField, StringType

from keystone.errors import UsageError
from keystone.sinks.iceberg.columns import EVENT_DATE, EVENTS, TABLE_COLUMNS, TABLE_TEXT

if TYPE_CHECKING:
    from pyiceberg.table import Table

TYPES: Final[dict[str, IcebergType]] = {
    "string": StringType(),
    "int64": LongType(),
    "int32": IntegerType(),
    "bool": BooleanType(),
    "double": DoubleType(),
    "date": DateType(),
}
_PARTITION_ID: Final = 1000  # where the format's numbering of partition fields begins
#: Set when a table is made; whoever changes them later is left alone.
PROPERTIES: Final = {
    "commit.manifest-merge.enabled": "true",  # else one more manifest a commit, each opened by every reader
    "commit.manifest.min-count-to-merge": "20",
    "commit.manifest.target-size-bytes": str(1 << 20),  # what a merge reads and writes again: 4,500 files, ~0.4 s every 20 commits; 8 MiB by default
    "write.metadata.delete-after-commit.enabled": "true",
    "write.metadata.previous-versions-max": "5",
    "commit.retry.num-retries": "4",  # never 0: with retries pyiceberg looks before it deletes what a "failed" commit wrote; our producers never delete
    "commit.retry.total-timeout-ms": "60000",
    "write.parquet.compression-codec": "zstd",
}


def schema_of(name: str) -> Schema:
    columns = TABLE_COLUMNS[name]
    return Schema(*(NestedField(k, c.name, TYPES[c.type], required=not c.is_optional, doc=c.description) for k, c in enumerate(columns, 1)))


def spec_of(name: str, schema: Schema) -> PartitionSpec:
    if name != EVENTS:
        return PartitionSpec()
    source = schema.find_field(EVENT_DATE.name).field_id
    return PartitionSpec(PartitionField(source, _PARTITION_ID, IdentityTransform(), EVENT_DATE.name))


def properties_of(name: str, schema: Schema, metadata_path: str) -> dict[str, str]:
    """Columns are found in files by name: what number a table gives a column is its own affair, and others may add columns."""
    mapping = {"schema.name-mapping.default": schema.name_mapping.model_dump_json()}
    return {**PROPERTIES, **mapping, "write.metadata.path": metadata_path, "comment": TABLE_TEXT[name]}


def catch_up(table: Table, name: str) -> Table:
    """Add the columns that this version has and the table lacks. Others' columns stay. ``UsageError`` where types differ."""
    schema = table.schema()
    missing = []
    for column in TABLE_COLUMNS[name]:
        try:
            field = schema.find_field(column.name)
        except ValueError:
            missing.append(column)
            continue
        if field.field_type != TYPES[column.type]:
            raise UsageError(f"table keystone.{name}: column {column.name} is {field.field_type}, this version writes {TYPES[column.type]}: name another lake")
    if [field.name for field in table.spec().fields] != [field.name for field in spec_of(name, schema).fields]:
        raise UsageError(f"table keystone.{name} is partitioned otherwise than this version writes it: name another lake")
    if missing:
        with table.update_schema() as update:
            for column in missing:
                update.add_column(column.name, TYPES[column.type], doc=column.description)  # optional: older files do not have it
    return table
