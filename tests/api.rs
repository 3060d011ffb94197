//! The calls of the public face, written as its users write them.
#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

use std::time::Duration;

use oncelog::{
    Acks, Error, Isolation, Offset, Record, RecordMetadata, Records, StartAt, Store, Timestamp,
    TopicConfig,
};

#[test]
fn producers_transactions_and_consumers_are_called_like_this() -> Result<(), Error> {
    let store = Store::in_memory(3)?;
    store.create_topic("orders", TopicConfig::new().partitions(6).replication_factor(3))?;
    store.create_topic("bills", TopicConfig::new())?;
    let second = Duration::from_secs(1);

    let producer = store.producer().acks(Acks::All).build()?;
    let record = || Record::to("orders").key(b"k").value(b"v").header("h", b"x");
    let delivery = producer.send(record())?;
    let RecordMetadata { topic, partition, offset, timestamp } = delivery.wait(second * 5)?;
    assert!(&*topic == "orders" && partition < 6 && offset == Offset(0));
    assert!(timestamp > Timestamp(0));
    producer.send_with(record(), |result: Result<RecordMetadata, Error>| drop(result.unwrap()))?;
    producer.try_send(record())?.wait(second * 5)?;
    producer.flush(second * 5)?;
    let named = store.producer().name("meter-17").build()?;
    assert_eq!(named.next_sequence("orders", 0)?, 0);

    let builder = store.consumer().group("billing").isolation(Isolation::ReadCommitted);
    let mut consumer = builder.start(StartAt::Earliest).build()?;
    consumer.on_rebalance(|event| assert!(event.partitions().len() <= 6));
    consumer.subscribe(&["orders"])?;
    let batch: Records = consumer.poll(Duration::from_millis(100))?;
    let mut seen = 0;
    for record in &batch {
        assert_eq!((record.topic(), record.key()), ("orders", Some(&b"k"[..])));
        consumer.commit()?;
        seen += 1;
    }
    assert_eq!(seen, 3);

    let builder = store.producer().transaction_timeout(second * 30);
    let mut producer = builder.transactional_id("billing-1").build()?;
    let mut txn = producer.begin()?;
    txn.send(Record::to("bills").value(b".."))?;
    txn.send_offsets(&consumer.position_map(), &consumer.group_metadata())?;
    txn.commit(second * 10)?;

    let map = consumer.position_map();
    consumer.commit_offsets(&map)?;
    assert!(!consumer.committed(&[("orders", partition)])?.is_empty());
    consumer.seek("orders", 0, Offset(0))?;
    assert_eq!(consumer.position("orders", 0)?, Offset(0));
    consumer.pause(&[("orders", 0)])?;
    consumer.resume(&[("orders", 0)])?;
    assert_eq!(consumer.lag()?.len(), 6);
    assert!(consumer.offsets_for_times(&[("orders", partition, Timestamp(0))])?.len() == 1);
    consumer.waker().wake();
    drop(consumer);
    assert_eq!(store.groups()?, ["billing"]);
    assert_eq!(store.group("billing")?.offsets.len(), 6);
    store.delete_group("billing")?;
    let mut alone = store.consumer().start(StartAt::Latest).build()?;
    alone.assign(&[("orders", 0)])?;
    store.close(second * 10)
}
