//! Sends and receives in async code, under two executors that know nothing of each other or of the store: deliveries and
//! `recv` are plain futures, woken by whoever appends.
//!
//! ```text
//! cargo run --release --example async_consumer
//! ```

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::error::Error;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::thread;
use std::time::{Duration, Instant};

use oncelog::{Record, StartAt, Store, TopicConfig};

const ORDERS: &str = "orders";
const BILLS: &str = "bills";
const COUNT: u64 = 1000;
const LONG: Duration = Duration::from_secs(30);

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> Outcome<()> {
    let store = Store::temporary()?;
    store.create_topic(ORDERS, TopicConfig::new().partitions(4))?;
    store.create_topic(BILLS, TopicConfig::new())?;
    let started = Instant::now();
    thread::scope(|scope| -> Outcome<()> {
        // Each order is awaited: it is on stable storage before the next is sent.
        let sender = scope.spawn(|| pollster::block_on(send_orders(&store)));
        let biller = scope.spawn(|| futures_executor::block_on(bill_orders(&store)));
        let billed = pollster::block_on(take_bills(&store))?;
        for worker in [sender, biller] {
            worker.join().map_err(|_| "a worker panicked")??;
        }
        println!("pollster          {billed} bills in {:.1?}", started.elapsed());
        Ok(())
    })?;
    let (first, second) = futures_executor::block_on(race(&store))?;
    println!("futures-executor  two consumers in one task: {first} orders and {second} bills");
    store.close(LONG)?;
    Ok(())
}

async fn send_orders(store: &Store) -> Outcome<()> {
    let producer = store.producer().build()?;
    for number in 0..COUNT {
        let order = number.to_string();
        let placed = producer.send(Record::to(ORDERS).key(&order).value(&order))?.await?;
        assert_eq!(&*placed.topic, ORDERS);
    }
    Ok(())
}

/// Makes a bill of each order, as a member of a group.
async fn bill_orders(store: &Store) -> Outcome<()> {
    let producer = store.producer().build()?;
    let mut consumer = store.consumer().group("billing").start(StartAt::Earliest).build()?;
    consumer.subscribe(&[ORDERS])?;
    let mut billed = 0;
    while billed < COUNT {
        let orders = consumer.recv().await?;
        let mut deliveries = Vec::new();
        for order in &orders {
            let bill =
                format!("bill {}", String::from_utf8_lossy(order.value().unwrap_or_default()));
            deliveries.push(producer.send(Record::to(BILLS).value(&bill))?);
        }
        for delivery in deliveries {
            delivery.await?;
            billed += 1;
        }
        consumer.commit()?;
    }
    Ok(())
}

async fn take_bills(store: &Store) -> Outcome<u64> {
    let mut consumer = store.consumer().start(StartAt::Earliest).build()?;
    consumer.assign(&[(BILLS, 0)])?;
    let mut taken = 0;
    while taken < COUNT {
        taken += consumer.recv().await?.count() as u64;
    }
    Ok(taken)
}

/// Two consumers are awaited at once; whichever has something is taken from.
async fn race(store: &Store) -> Outcome<(usize, usize)> {
    let mut orders = store.consumer().start(StartAt::Earliest).max_poll_records(500).build()?;
    orders.assign(&[(ORDERS, 0), (ORDERS, 1), (ORDERS, 2), (ORDERS, 3)])?;
    let mut bills = store.consumer().start(StartAt::Earliest).max_poll_records(500).build()?;
    bills.assign(&[(BILLS, 0)])?;
    let (mut first, mut second) = (0, 0);
    let all = usize::try_from(COUNT)?;
    while first < all || second < all {
        let (mut next_orders, mut next_bills) = (pin!(orders.recv()), pin!(bills.recv()));
        // The future that is not ready is dropped, and loses nothing by it.
        poll_fn(|context| {
            if let Poll::Ready(records) = next_orders.as_mut().poll(context) {
                return Poll::Ready(records.map(|records| first += records.count()));
            }
            next_bills.as_mut().poll(context).map_ok(|records| second += records.count())
        })
        .await?;
    }
    Ok((first, second))
}
