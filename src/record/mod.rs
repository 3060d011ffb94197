//! The bytes of records and batches. Pure: slices in, values or slices out.
//!
//! A batch is the unit of append, checksum and replication: an 80-byte [`BatchHeader`] and a
//! payload of records. Two checksums: the records' is computed before the log's lock is taken, the
//! header's, which covers offset and epoch and is seeded with the partition's identity, under it.
//! The table of every field is in `src/manual/format.md`.

mod batch;
mod compression;
mod encode;
mod header;
#[expect(clippy::module_inception, reason = "the record is what the module is about")]
mod record;
mod varint;
mod view;

pub(crate) use batch::{Batch, find_header};
pub(crate) use compression::{codec_code, codec_is_available, codec_of};
pub(crate) use encode::{Draft, DraftSettings, Place};
pub(crate) use header::{BatchHeader, HEADER_BYTES, LENGTH_AT};
pub use record::Record;
pub(crate) use view::BatchRecords;
pub use view::{Headers, RecordView};
