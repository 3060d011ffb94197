//! Copies records into a SQLite database and keeps its positions there too: rows and positions change in one transaction
//! of the database, so that each record is in it once, whenever the copying is interrupted. No group is needed for that.
//!
//! ```text
//! cargo run --release --example sqlite_sink [-- --dir DIR]
//! ```
//!
//! The records are the flights that `quickstart` stores; here they are put into a store of their own. The copying is given
//! up in the middle of a transaction nine times, as a crash would do it.

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Duration;

use oncelog::{Offset, Record, Records, Store, TopicConfig};
use rusqlite::{Connection, OptionalExtension, Transaction, params};

const TOPIC: &str = "flights";
const PARTITIONS: u32 = 4;
const INTERRUPTIONS: u32 = 9;
const LONG: Duration = Duration::from_secs(30);

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> Outcome<()> {
    let mut arguments = std::env::args_os().skip(1);
    let scratch = tempfile::tempdir()?;
    let directory = match (arguments.next(), arguments.next()) {
        (None, _) => scratch.path().to_owned(),
        (Some(name), Some(value)) if name == "--dir" => PathBuf::from(value),
        (Some(name), _) => {
            return Err(format!("{}: only --dir DIR is known", name.display()).into());
        }
    };
    let store = Store::open(directory.join("store"))?;
    if store.topics().iter().all(|topic| topic.name != TOPIC) {
        fill(&store)?;
    }
    let count: u64 = (0..PARTITIONS)
        .map(|number| Ok(store.partition(TOPIC, number)?.high_watermark().0))
        .sum::<oncelog::Result<u64>>()?;
    let database = directory.join("flights.sqlite");
    for attempt in 0..=INTERRUPTIONS {
        let copied = copy(&store, &database, attempt < INTERRUPTIONS)?;
        println!("attempt   {attempt}: {copied} rows were committed");
    }
    let connection = Connection::open(&database)?;
    let (rows, places): (u64, u64) = connection.query_row(
        "SELECT count(*), count(DISTINCT partition || '-' || offset) FROM flights",
        [],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    println!("database  {rows} rows from {places} places in the log, of {count} records");
    if (rows, places) != (count, count) {
        return Err("rows are missing, or there twice".into());
    }
    let mut statement = connection.prepare(
        "SELECT carrier, count(*) FROM flights GROUP BY carrier ORDER BY 2 DESC LIMIT 5",
    )?;
    let mut carriers = statement.query([])?;
    while let Some(row) = carriers.next()? {
        println!("          {} {}", row.get::<_, String>(0)?, row.get::<_, u64>(1)?);
    }
    store.close(LONG)?;
    Ok(())
}

fn fill(store: &Store) -> Outcome<()> {
    store.create_topic(TOPIC, TopicConfig::new().partitions(PARTITIONS))?;
    let lines = std::fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/examples/data/flights-2013-01.csv"
    ))?;
    let producer = store.producer().build()?;
    let mut deliveries = Vec::new();
    for line in lines.lines() {
        let carrier = line.split(',').nth(1).unwrap_or_default();
        deliveries.push(producer.send(Record::to(TOPIC).key(carrier).value(line))?);
    }
    for delivery in deliveries {
        delivery.wait(LONG)?;
    }
    Ok(())
}

/// Copies from where the database is, until nothing is left; or gives up in the middle. Returns how many rows count.
fn copy(store: &Store, database: &Path, interrupted: bool) -> Outcome<u64> {
    let mut connection = Connection::open(database)?;
    connection.execute_batch(
        "CREATE TABLE IF NOT EXISTS flights (partition INT, offset INT, carrier TEXT, line TEXT);
         CREATE TABLE IF NOT EXISTS positions (topic TEXT, partition INT, offset INT, PRIMARY KEY (topic, partition));",
    )?;
    // Where a partition has no position, `StartAt::Error`, the default, would say so: nothing is skipped by oversight.
    let mut consumer = store.consumer().max_poll_records(500).build()?;
    let partitions: Vec<_> = (0..PARTITIONS).map(|number| (TOPIC, number)).collect();
    consumer.assign(&partitions)?;
    for (topic, number) in &partitions {
        consumer.seek(topic, *number, position(&connection, topic, *number)?)?;
    }
    let (mut copied, mut polls) = (0, 0);
    loop {
        let records = consumer.poll(Duration::ZERO)?;
        if records.is_empty() {
            return Ok(copied);
        }
        let transaction = connection.transaction()?;
        write(&transaction, &records)?;
        for (partition, next) in consumer.position_map() {
            transaction.execute(
                "INSERT OR REPLACE INTO positions VALUES (?1, ?2, ?3)",
                params![partition.topic(), partition.partition(), next.offset.0],
            )?;
        }
        polls += 1;
        if interrupted && polls == 3 {
            // Dropped without a commit, as by a crash: neither the rows nor the positions count.
            return Ok(copied);
        }
        transaction.commit()?;
        copied += records.count() as u64;
    }
}

fn write(transaction: &Transaction<'_>, records: &Records) -> Outcome<()> {
    let mut insert = transaction.prepare_cached("INSERT INTO flights VALUES (?1, ?2, ?3, ?4)")?;
    for record in records {
        let text =
            |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned();
        insert.execute(params![
            record.partition(),
            record.offset().0,
            text(record.key()),
            text(record.value()),
        ])?;
    }
    Ok(())
}

fn position(connection: &Connection, topic: &str, partition: u32) -> Outcome<Offset> {
    let found = connection
        .query_row(
            "SELECT offset FROM positions WHERE topic = ?1 AND partition = ?2",
            params![topic, partition],
            |row| row.get(0),
        )
        .optional()?;
    Ok(Offset(found.unwrap_or(0)))
}
